"""The UNet in plain PyTorch: what jiidm's speed and memory are compared with.

As in the authors' release, a guided step runs the whole network twice; nothing is kept between steps or shared between
the branches. It needs PyTorch (pip install torch) and runs without Jittor, whose threads would disturb the timing:

    python -m benchmarks.torch_unet --weights unet.safetensors --inputs inputs.npz

times guided steps and prints a line of JSON. With --output it writes the variants' results instead, for comparison. The
weights are a UNet checkpoint of jiidm. The inputs are latents z (N, C, H, W), timesteps t (N, in the full chain) and
one-hot masks `mask` (N, classes, any size).
"""
import argparse
import contextlib
import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path
from textwrap import shorten

import numpy as np
from safetensors import SafetensorError, safe_open

try:
    import torch
except ModuleNotFoundError:
    print("error: this comparison needs PyTorch: pip install torch", file=sys.stderr)
    sys.exit(2)
from torch import nn
from torch.nn import functional

from jiidm.commands.entry import run_tool
from jiidm.config import Config, from_dict
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole

_EPS = 1e-5
# name: memory format of the weights, the latents and the mask; whether autocast computes in bfloat16
VARIANTS = {
    "eager": (torch.contiguous_format, False),
    "channels_last": (torch.channels_last, False),
    "bf16": (torch.contiguous_format, True),
    "bf16_channels_last": (torch.channels_last, True),
}


# ---- the network

def conv3x3(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def skip(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()


def timestep_embedding(t, channels):
    """Sinusoids of the timestep t (N) -> N, channels: cosines, then sines."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([torch.cos(angles), torch.sin(angles)], 1)


class ResBlock(nn.Module):
    """Residual block of the encoder, modulated by the time embedding; `down` halves the resolution."""

    def __init__(self, in_channels, out_channels, config, down=False):
        super().__init__()
        self.down = down
        self.in_layers = nn.Sequential(
            nn.GroupNorm(config.norm_groups, in_channels, _EPS), nn.SiLU(), conv3x3(in_channels, out_channels)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(config.norm_groups, out_channels, _EPS), nn.SiLU(), nn.Identity(),
            conv3x3(out_channels, out_channels),
        )
        self.skip_connection = skip(in_channels, out_channels)

    def forward(self, x, emb, mask):
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.down:
            h, x = functional.avg_pool2d(h, 2), functional.avg_pool2d(x, 2)
        h = conv(h)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        norm, act, _, conv = self.out_layers
        h = conv(act(norm(h) * (1 + scale) + shift))
        return self.skip_connection(x) + h


class SpadeNorm(nn.Module):
    """GroupNorm with gamma and beta as maps made from the mask (Park et al. 2019)."""

    def __init__(self, channels, config):
        super().__init__()
        hidden = config.spade_channels
        self.groups = config.norm_groups
        self.mlp_shared = nn.Sequential(conv3x3(config.num_classes, hidden), nn.ReLU())
        self.mlp_gamma = conv3x3(hidden, channels)
        self.mlp_beta = conv3x3(hidden, channels)

    def forward(self, x, mask):
        hidden = self.mlp_shared(functional.interpolate(mask, size=x.shape[2:], mode="nearest"))
        h = functional.group_norm(x, self.groups, eps=_EPS)
        return h * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SpadeResBlock(nn.Module):
    """Residual block of the middle and the decoder: SPADE norms in place of the affine ones; `up` doubles the size."""

    def __init__(self, in_channels, out_channels, config, up=False):
        super().__init__()
        self.up = up
        self.in_norm = SpadeNorm(in_channels, config)
        self.in_layers = nn.Sequential(nn.SiLU(), conv3x3(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels))
        self.out_norm = SpadeNorm(out_channels, config)
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Identity(), conv3x3(out_channels, out_channels))
        self.skip_connection = skip(in_channels, out_channels)

    def forward(self, x, emb, mask):
        act, conv = self.in_layers
        h = act(self.in_norm(x, mask))
        if self.up:
            h, x = (functional.interpolate(v, scale_factor=2, mode="nearest") for v in (h, x))
        h = conv(h)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers(self.out_norm(h, mask) * (1 + scale) + shift)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Multi-head attention over all positions, plus the input."""

    def __init__(self, channels, config):
        super().__init__()
        self.heads = channels // config.head_channels
        self.norm = nn.GroupNorm(config.norm_groups, channels, _EPS)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb, mask):
        n, c = x.shape[:2]
        h = self.qkv(self.norm(x).flatten(2))
        # N, heads, T, channels of a head, and without gaps: else PyTorch would fall back on its slow attention
        q, k, v = (p.mT.contiguous() for p in h.reshape(n, self.heads, 3 * c // self.heads, -1).chunk(3, dim=2))
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.mT.reshape(n, c, -1)).reshape(x.shape)


class TorchUNet(nn.Module):
    """epsilon and the variance's v (N, 2 * in_channels, H, W), as `jiidm.models.unet.UNet` of the same `UNetConfig`.

    Parameter names are the same, so that `load_state_dict` takes the arrays of that network as tensors. Layers start
    with PyTorch's initial values, not with the UNet's.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, blocks = config.model_channels, config.num_res_blocks
        self.time_embed = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

        def with_attention(block, factor, channels):
            attend = factor in config.attention_resolutions
            return nn.ModuleList([block, AttentionBlock(channels, config)] if attend else [block])

        channels, skips, last = width, [width], len(config.channel_mult) - 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([conv3x3(config.in_channels, width)])])
        for level, mult in enumerate(config.channel_mult):
            for _ in range(blocks):
                block = ResBlock(channels, mult * width, config)
                channels = mult * width
                self.input_blocks.append(with_attention(block, 2**level, channels))
                skips.append(channels)
            if level < last:
                self.input_blocks.append(nn.ModuleList([ResBlock(channels, channels, config, down=True)]))
                skips.append(channels)

        self.middle_block = nn.ModuleList([
            SpadeResBlock(channels, channels, config),
            AttentionBlock(channels, config),
            SpadeResBlock(channels, channels, config),
        ])

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(blocks + 1):
                block = SpadeResBlock(channels + skips.pop(), config.channel_mult[level] * width, config)
                channels = config.channel_mult[level] * width
                layers = with_attention(block, 2**level, channels)
                if level and i == blocks:
                    layers.append(SpadeResBlock(channels, channels, config, up=True))
                self.output_blocks.append(layers)
        self.out = nn.Sequential(
            nn.GroupNorm(config.norm_groups, channels, _EPS), nn.SiLU(), conv3x3(channels, 2 * config.in_channels)
        )

    def forward(self, z, t, mask):
        """z (N, C, H, W), t (N, in the full chain), mask (N, classes, any size; all zero is the null condition)."""
        height, width = z.shape[2:]
        padding = (0, -width % self.config.factor, 0, -height % self.config.factor)
        mask = functional.pad(functional.interpolate(mask, size=(height, width), mode="nearest"), padding)
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels))
        h = self.input_blocks[0][0](functional.pad(z, padding))
        features = [h]
        for layers in self.input_blocks[1:]:
            for layer in layers:
                h = layer(h, emb, mask)
            features.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, mask)
        for layers in self.output_blocks:
            h = torch.cat([h, features.pop()], 1)
            for layer in layers:
                h = layer(h, emb, mask)
        return self.out(h)[:, :, :height, :width].to(z.dtype)


def guided_step(model, z, t, mask, scale):
    """Epsilon under classifier-free guidance (N, C, H, W) as in the release: two whole forwards, one without a mask."""
    epsilon = model(z, t, mask)[:, : z.shape[1]]
    null = model(z, t, torch.zeros_like(mask))[:, : z.shape[1]]
    return null + scale * (epsilon - null)


# ---- the command

def load_network(path, device="cpu"):
    """`TorchUNet` in fp32 on `device`, with configuration and weights of a checkpoint of the UNet that jiidm wrote.

    Raises InputError for another file, and where names or shapes are not those of its configuration.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "unet":
                raise InputError(f"{path}: holds {metadata.get('kind', 'no network of jiidm')}, expected the unet; "
                                 "save it with jiidm.checkpoint.save_checkpoint")
            config = from_dict(Config, json.loads(metadata["config"]), f"{path}, config").unet
            with torch.device("meta"):  # no initial values, which would be memory and time for nothing
                model = TorchUNet(config)
            # each tensor is copied out of the mapped file, which therefore leaves memory with this block
            state = {name: file.get_tensor(name).to(device, torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(state, strict=True, assign=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    except RuntimeError as error:
        raise InputError(f"{path}: {shorten(str(error), 400)}") from error  # it lists all names
    return model.eval()


def load_inputs(path, config, device):
    """z, t and mask of a .npz file as tensors on `device`; raises InputError where one is missing or mis-shaped."""
    try:
        with np.load(path) as file:
            z, t, mask = (torch.from_numpy(file[name]).to(device) for name in ("z", "t", "mask"))
    except (OSError, ValueError, KeyError, TypeError) as error:  # TypeError: a single array
        raise InputError(f"{path}: expected a .npz file of arrays z, t and mask ({error})") from error
    n = len(z)
    if z.shape[1:2] != (config.in_channels,) or z.ndim != 4 or t.shape != (n,) or mask.ndim != 4 or (
            mask.shape[:2] != (n, config.num_classes)):
        raise InputError(f"{path}: z {tuple(z.shape)}, t {tuple(t.shape)}, mask {tuple(mask.shape)}; expected "
                         f"(N, {config.in_channels}, H, W), (N,) and (N, {config.num_classes}, any size)")
    return z.float(), t, mask.float()


@contextlib.contextmanager
def variant(name, model, z, t, mask):
    """Context of a variant of VARIANTS: converts the network, gives the inputs; there are no gradients.

    Autocast keeps bfloat16 copies of the weights until the end of the block, which should therefore hold all steps. It
    does so under no_grad, but would convert them at each use under inference_mode.
    """
    memory_format, bf16 = VARIANTS[name]
    model.to(memory_format=memory_format)
    z, mask = (v.contiguous(memory_format=memory_format) for v in (z, mask))
    with torch.no_grad(), torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
        yield z, t, mask


def compute_outputs(name, model, inputs, scale):
    """Runs a variant; returns the output with mask and without, and the guided epsilon, as arrays."""
    with variant(name, model, *inputs) as (z, t, mask):
        results = {
            name: model(z, t, mask),
            f"{name}_null": model(z, t, torch.zeros_like(mask)),
            f"{name}_guided": guided_step(model, z, t, mask, scale),
        }
        return {key: value.cpu().contiguous().numpy() for key, value in results.items()}


def time_variant(name, model, inputs, scale, steps, warmup):
    """Times `steps` guided steps after `warmup` others; returns each time, their median and the peak memory."""
    cuda = inputs[0].is_cuda
    with contextlib.suppress(OSError):  # a kernel that cannot forget the peak gives that since the start of the process
        Path("/proc/self/clear_refs").write_text("5")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    with variant(name, model, *inputs) as (z, t, mask):
        for _ in range(warmup + steps):
            start = time.perf_counter()
            guided_step(model, z, t, mask, scale)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    seconds = seconds[warmup:]
    result = {"median_seconds": statistics.median(seconds), "seconds": seconds,
              "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if cuda:
        result["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return result


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the UNet (safetensors)")
    parser.add_argument("--inputs", type=Path, required=True, help=".npz file with z, t and mask")
    parser.add_argument("--output", type=Path, help="write the variants' results to this .npz file and time nothing")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
                        help=f"which of {', '.join(VARIANTS)} (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", type=float, default=3.5, help="guidance scale (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed guided steps (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=1, help="guided steps before them (default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0:
        raise InputError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 1 step and 0 before them")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; use --device cpu")
    return args


def main():
    args = parse_arguments()
    torch.backends.cudnn.benchmark = True  # all steps have one size: what a user who wants speed would set
    model = load_network(args.weights, args.device)
    inputs = load_inputs(args.inputs, model.config, args.device)
    report = {
        "torch": torch.__version__, "device": args.device, "threads": torch.get_num_threads(),
        "latents": list(inputs[0].shape), "mask": list(inputs[2].shape), "scale": args.scale,
    }
    if args.device == "cuda":
        report["gpu"] = torch.cuda.get_device_name()
    if args.output:
        results = {}
        for name in args.variants:
            results |= compute_outputs(name, model, inputs, args.scale)
        with written_whole(args.output) as temporary, open(temporary, "wb") as file:
            np.savez(file, **results)
        report["output"] = {key: list(value.shape) for key, value in results.items()}
    else:
        report["variants"] = {
            name: time_variant(name, model, inputs, args.scale, args.steps, args.warmup) for name in args.variants
        }
    print(json.dumps(report))


if __name__ == "__main__":
    run_tool(main)
