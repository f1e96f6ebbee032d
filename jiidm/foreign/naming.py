"""Finds the network in a file and its tensors: prefixes, averaged copies, and what is left out."""
from collections import Counter
from dataclasses import dataclass

from jiidm.foreign.archive import Weights
from jiidm.foreign.unpickle import quote
from jiidm.system.errors import InputError

SIGNATURES = {"unet": "input_blocks.0.0.weight", "autoencoder": "encoder.conv_in.weight"}
# first parts of names that published networks have beside their own tensors
_BESIDE = ("loss", "discriminator", "model_ema", "colorize")
_LITEMA = "model_ema."


@dataclass(frozen=True)
class Network:
    """The tensors of one network.

    Args:
        kind: "autoencoder" or "unet".
        prefix: what comes before their names in the file.
        tensors: by the names that jiidm gives them.
        averaged: whether they are the averaged copy.
        left_out: how many other tensors the file has, by the first part of their names.
    """

    kind: str
    prefix: str
    tensors: dict
    averaged: bool
    left_out: Counter


def find_network(weights: Weights, kind: str | None = None, ema: bool = False) -> Network:
    """Finds the network in a file.

    Args:
        weights: the `Weights`.
        kind: "autoencoder" or "unet". None: the one in the file.
        ema: take the averaged copy.

    Returns:
        The `Network`.

    Raises:
        InputError: there is no such network or copy, or more than one.
    """
    prefixes = {k: _find_prefixes(weights.tensors, signature) for k, signature in SIGNATURES.items()}
    kinds = [k for k, found in prefixes.items() if found and kind in (None, k)]
    if not kinds:
        some = ", ".join(quote(name) for name in list(weights.tensors)[:3])
        raise InputError(
            f"{weights.path}: no {kind or 'UNet or autoencoder'} in it: none of its {len(weights.tensors)} tensors is "
            f"named {' or '.join(SIGNATURES[k] for k in SIGNATURES if kind in (None, k))}, with or without a prefix; "
            f"it has {some}"
        )
    if len(kinds) > 1:
        raise InputError(f"{weights.path}: holds an autoencoder and a UNet; choose one with --kind")
    kind, = kinds
    prefix, averaged = _choose_prefix(weights, kind, prefixes[kind], ema)
    others = [p for found in prefixes.values() for p in found if p != prefix and p.startswith(prefix)]
    tensors, left_out = {}, Counter()
    for name, tensor in weights.tensors.items():
        short = name.removeprefix(prefix)
        first = short.split(".")[0]
        if not name.startswith(prefix) or name.startswith(tuple(others)) or first in _BESIDE or first[:5] == "optim":
            left_out[name.removeprefix("state_dict.").split(".")[0]] += 1
        else:
            tensors[short] = tensor
    if ema and not averaged:
        tensors = _find_litema_copy(weights, prefix, tensors)
    return Network(kind, prefix, tensors, ema or averaged, left_out)


def _find_prefixes(names, signature):
    """What comes before the signature of a network, for each place where it is among the names."""
    return [name.removesuffix(signature) for name in names if name == signature or name.endswith(f".{signature}")]


def _choose_prefix(weights, kind, prefixes, ema):
    """The prefix to read, and whether it is that of an average with its own names."""
    averages = [p for p in prefixes if any("ema" in part.split("_") for part in p.split("."))]
    plain = [p for p in prefixes if p not in averages]
    chosen = averages if ema and averages else plain or averages
    if len(chosen) > 1:
        places = ", ".join(quote(p) or "no prefix" for p in chosen[:3])
        raise InputError(f"{weights.path}: holds {len(chosen)} copies of the {kind}, under {places}; save one alone")
    return chosen[0], chosen == averages


def _find_litema_copy(weights, prefix, tensors):
    """The averages that latent diffusion stores under `model_ema.`, in names without dots."""
    averages = {name[name.index(_LITEMA) + len(_LITEMA):]: tensor for name, tensor in weights.tensors.items()
                if name.startswith(_LITEMA) or f".{_LITEMA}" in name}
    parts = prefix.split(".")  # ends with ""
    found = {}
    for name in tensors:
        full = [("".join(parts[i:]) + name).replace(".", "") for i in range(len(parts))]
        copy = next((averages[f] for f in full if f in averages), None)
        if copy is not None:
            found[name] = copy
    missing = [name for name in tensors if name not in found]
    if missing:
        what = f"no averaged copy of {len(missing)} of {len(tensors)} tensors, the first is {quote(missing[0])}"
        raise InputError(f"{weights.path}: {what}; leave out --ema")
    if len({id(tensor) for tensor in found.values()}) != len(found):
        raise InputError(f"{weights.path}: two tensors share the name of their average; leave out --ema")
    return found
