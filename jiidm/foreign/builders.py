"""The objects that a pickle of weights may build: tensors of PyTorch, arrays of numpy, variables of Jittor.

A builder takes the tuple of arguments in the pickle and raises ValueError for one that it does not know. No builder
copies or computes anything: a pickle of a few bytes may call one a million times.
"""
import re

import numpy as np

from jiidm.checkpoint import BFLOAT16, Span, StoredTensor, last_element, row_major
from jiidm.foreign.unpickle import Buildable, TextSpan, quote

STORAGES = {
    "torch.DoubleStorage": "f8", "torch.FloatStorage": "f4", "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": BFLOAT16, "torch.LongStorage": "i8", "torch.IntStorage": "i4", "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1", "torch.ByteStorage": "u1", "torch.BoolStorage": "b1", "torch.ComplexFloatStorage": "c8",
    "torch.ComplexDoubleStorage": "c16",
}
_FORMATS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8", "c16")
# what trainers store beside the weights: passed over, never built
_INERT = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.[\w.]+"
    r"|torch\.(device|Size|b?float(16|32|64)|u?int(8|16|32|64)|bool)|typing\.Any|argparse\.Namespace"
    r"|collections\.(defaultdict|Counter)|(builtins|__builtin__)\.(int|float|str|bool|dict|list|tuple|set)"
    r"|numpy\.ndarray"
)
_MAX_DIMENSIONS, _MAX_SIDE = 8, 2**40


def inert(name: str) -> bool:
    """Returns whether a name may appear in a pickle of weights, where nothing is built from it."""
    return name in STORAGES or _INERT.fullmatch(name) is not None


def _check_numbers(values, what):
    """Sizes or strides as a tuple; raises ValueError for anything else."""
    few = isinstance(values, tuple | list) and len(values) <= _MAX_DIMENSIONS
    if not few or not all(type(value) is int and 0 <= value < _MAX_SIDE for value in values):
        found = ", ".join(str(v) if type(v) is int else type(v).__name__ for v in values) if few else "unreadable"
        raise ValueError(f"{what} ({found}), expected at most {_MAX_DIMENSIONS} whole numbers of at least 0")
    return tuple(values)


class Storage:
    """The values of one or more PyTorch tensors: `numel` of the format `dtype`; `data` may be set later."""

    def __init__(self, dtype, numel, data=None):
        self.dtype, self.numel, self.data = dtype, numel, data


class Tensor:
    """A view of a storage: start, shape and strides count elements."""

    def __init__(self, storage, start, shape, strides):
        self.storage, self.start, self.shape, self.strides = storage, start, shape, strides

    def stored(self):
        """Returns the `StoredTensor`; raises ValueError where the view goes beyond its storage."""
        if not isinstance(self.storage, Storage) or self.storage.data is None:
            raise ValueError("no storage in the file")
        shape, strides = _check_numbers(self.shape, "shape"), _check_numbers(self.strides, "strides")
        start, = _check_numbers((self.start,), "start")
        if len(strides) != len(shape):
            raise ValueError(f"shape {shape} with strides {strides}")
        if start + last_element(shape, strides) >= self.storage.numel and 0 not in shape:
            raise ValueError(f"shape {shape} with strides {strides} from {start} on, beyond its storage of "
                             f"{self.storage.numel} numbers")
        return StoredTensor(self.storage.data, self.storage.dtype, shape, strides, start)


class NumberFormat(Buildable):
    """numpy's dtype; its state has the byte order."""

    def __init__(self, kind):
        self.dtype = f"<{kind}"

    def build(self, state):
        """Takes the byte order."""
        if not isinstance(state, tuple) or len(state) < 2 or not isinstance(state[1], str) or len(state[1]) != 1:
            raise ValueError("a number format of numpy without a byte order")
        self.dtype = (">" if state[1] == ">" else "<") + self.dtype[1:]


class Array(Buildable):
    """A numpy array; its state has shape, number format, order and data."""

    def __init__(self, *state):
        self.state = state

    def build(self, state):
        """Takes shape, number format, order and data."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("an array of numpy whose state has not five parts")
        self.state = state[1:]

    def stored(self):
        """Returns the `StoredTensor`; raises ValueError where its data does not fit its shape."""
        shape, dtype, fortran, data = self.state or (None,) * 4
        if not isinstance(dtype, NumberFormat) or not isinstance(data, Span | Encoded):
            raise ValueError("an array without number format and data")
        shape = _check_numbers(shape, "shape")
        strides = row_major(shape[::-1])[::-1] if fortran is True else row_major(shape)
        tensor = StoredTensor(data, np.dtype(dtype.dtype).str, shape, strides)
        if isinstance(data, Span) and tensor.nbytes != data.length:
            raise ValueError(f"shape {shape} of {tensor.dtype_name}, but {data.length} bytes")
        return tensor


class Encoded:
    """Bytes that pickle protocol 2 has stored as a text, a character a byte."""

    def __init__(self, text):
        self.text = text

    def read(self, start, count):
        """Reads bytes as `Span.read` does; raises ValueError where the text has fewer."""
        text = self.text
        if isinstance(text, TextSpan):
            text = text.read(0, text.length).tobytes().decode()
        data = np.frombuffer(text.encode("latin-1"), np.uint8)
        if start + count > len(data):
            raise ValueError(f"{len(data)} bytes, expected {start + count}")
        return data[start:start + count]


def _tensor(arguments):
    """A tensor of PyTorch."""
    storage, start, shape, strides, *_ = arguments
    return Tensor(storage, start, shape, strides)


def _first(arguments):
    """The first argument: a parameter is its tensor, a variable its array."""
    return arguments[0] if arguments else None


def _ordered_dict(arguments):
    """An empty dict; the pickle sets its items."""
    if arguments:
        raise ValueError("an OrderedDict made from arguments")
    return {}


def _number_format(arguments):
    """A dtype of numpy."""
    kind = _first(arguments)
    if kind not in _FORMATS:
        what = quote(kind) if isinstance(kind, str) else type(kind).__name__
        raise ValueError(f"an array of numpy's format {what}, expected one of numbers: {', '.join(_FORMATS)}")
    return NumberFormat(kind)


def _empty_array(arguments):
    """An array of numpy; its state follows."""
    return Array()


def _scalar(arguments):
    """A number of numpy."""
    dtype, data = arguments
    return Array((), dtype, False, data)


def _array_from_buffer(arguments):
    """An array of numpy in pickle protocol 5."""
    data, dtype, shape, order = arguments
    return Array(shape, dtype, order == "F", data)


def _bytes_from_text(arguments):
    """Bytes in pickle protocol 2."""
    text, encoding = arguments
    if not isinstance(text, str | TextSpan) or encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes that are made in a way unknown here")
    return Encoded(text)


BUILDERS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "jittor.Var": _first,
    "jittor_core.Var": _first,
    "jittor.jittor_core.Var": _first,
    "numpy.dtype": _number_format,
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_from_buffer for core in ("core", "_core")},
    "_codecs.encode": _bytes_from_text,
}

