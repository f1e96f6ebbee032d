"""A builder of ONNX graphs, with the layers that all networks share.

Values are the names of tensors in the graph. Every method that computes something adds its nodes and returns the name
of the result.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jiidm.system.errors import SetupError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as error:
    raise SetupError("the package onnx is not installed; pip install 'jiidm[onnx]'") from error

OPSET, IR_VERSION = 17, 8  # the oldest that have all operators: the most runtimes read them
FLOAT, HALF, INT32, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
LARGEST = 2**31 - 1  # bytes of a protobuf message
_DTYPES = {FLOAT: "float32", HALF: "float16", INT32: "int32", INT64: "int64"}

Shape = Sequence[int | str]


class Graph:
    """An ONNX graph that grows; `model` finishes it.

    Args:
        name: of the graph.
        parameters: names to the Jittor variables of the network; weights have the same names in the graph.
        half: compute in float16. Statistics, softmax, the search in the codebook, inputs and outputs stay float32.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], half: bool = False):
        self.name, self.half = name, half
        self.dtype = HALF if half else FLOAT
        self._names = {id(variable): name for name, variable in parameters.items()}
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._values: dict[str, str] = {}  # a stored weight -> the value that the nodes read

    # ------------------------------------------------------------------------------------------------------ in and out

    def input(self, name: str, shape: Shape, dtype: int = FLOAT) -> str:
        """Adds an input; strings in its shape are sides that a call chooses."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, shape: Shape, dtype: int = FLOAT) -> None:
        """Makes a value the output `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name))
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def describe(self) -> dict[str, list[dict]]:
        """Names, number formats and shapes of the inputs and outputs, for JSON."""
        def entry(info):
            tensor = info.type.tensor_type
            shape = [side.dim_param or side.dim_value for side in tensor.shape.dim]
            return {"name": info.name, "dtype": _DTYPES[tensor.elem_type], "shape": shape}

        return {"inputs": [entry(i) for i in self._inputs], "outputs": [entry(o) for o in self._outputs]}

    def model(self, metadata: Mapping[str, str], version: str) -> bytes:
        """The whole file, checked.

        Args:
            metadata: names to texts, stored in the file.
            version: of jiidm.

        Raises:
            ValueError: the file would be larger than protobuf allows.
        """
        size = sum(len(tensor.raw_data) for tensor in self._initializers.values())
        if size > LARGEST:
            raise ValueError(f"{size / 2**30:.1f} GB of weights, and an ONNX file holds at most 2")
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs,
                                  list(self._initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                  producer_name="jiidm", producer_version=version)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    # --------------------------------------------------------------------------------------------------------- weights

    def constant(self, values: Any, dtype: Any = None) -> str:
        """A tensor of fixed values; equal ones are stored once. `dtype` is numpy's."""
        array = np.asarray(values, dtype)
        name = f"constant_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if len(name) > 80:
            name = f"constant_{len(self._initializers)}"
        return self._store(name, array)

    def weight(self, variable: Any, shape: Shape | None = None, rows: int | None = None) -> str:
        """A parameter of the network, to be computed with.

        It is stored as float16 where that holds every value exactly, as in float16 checkpoints: half the file, the same
        numbers.

        Args:
            variable: the parameter.
            shape: another shape for it.
            rows: how many of its first rows (None: all).
        """
        name = self._names[id(variable)]
        if name in self._values:
            return self._values[name]
        array = variable.numpy()[:rows]
        array = array.reshape(array.shape if shape is None else shape)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        exact = np.array_equal(half, array)
        stored = half if self.half or exact else array
        value = self._store(name, np.ascontiguousarray(stored))
        if stored.dtype == np.float16 and not self.half:
            value = self.cast(value, FLOAT)
        self._values[name] = value
        return value

    def number(self, value: float) -> str:
        """A number in the graph's number format."""
        return self.constant(value, np.float16 if self.half else np.float32)

    def _store(self, name, array):
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    # ------------------------------------------------------------------------------------------------------- operators

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns its result, or a list of them."""
        label = f"{operator}_{len(self._nodes)}"
        results = [label] if outputs == 1 else [f"{label}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, results, label, **attributes))
        return results[0] if outputs == 1 else results

    def cast(self, x: str, dtype: int) -> str:
        """x in another number format."""
        return self.node("Cast", x, to=dtype)

    def own(self, x: str) -> str:
        """float32 x in the graph's number format."""
        return self.cast(x, HALF) if self.half else x

    def full(self, x: str) -> str:
        """x of the graph's number format in float32."""
        return self.cast(x, FLOAT) if self.half else x

    def add(self, a: str, b: str) -> str:
        """a + b, broadcast."""
        return self.node("Add", a, b)

    def mul(self, a: str, b: str) -> str:
        """a * b, broadcast."""
        return self.node("Mul", a, b)

    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""
        return self.mul(x, self.node("Sigmoid", x))

    def shape(self, x: str, start: int | None = None, end: int | None = None) -> str:
        """The sides of x from axis `start` to below `end` (int64)."""
        ends = {} if end is None else {"end": end}
        return self.node("Shape", x, **({} if start is None else {"start": start}), **ends)

    def reshape(self, x: str, shape: Sequence[int] | str) -> str:
        """x in another shape: whole numbers (0 keeps a side, -1 is what remains), or the name of a shape."""
        return self.node("Reshape", x, shape if isinstance(shape, str) else self.constant(shape, np.int64))

    def unsqueeze(self, x: str, *axes: int) -> str:
        """x with new axes of length 1."""
        return self.node("Unsqueeze", x, self.constant(axes, np.int64))

    def concat(self, values: Sequence[str], axis: int) -> str:
        """The values one after the other."""
        return self.node("Concat", *values, axis=axis)

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """The parts of x along an axis, of these sizes."""
        if len(sizes) == 1:
            return [x]
        return self.node("Split", x, self.constant(sizes, np.int64), outputs=len(sizes), axis=axis)

    def every(self, x: str, step: int, axes: Sequence[int]) -> str:
        """Every `step`-th element of x along the axes, from the first one."""
        if step == 1:
            return x
        many = [2**31 - 1] * len(axes)
        return self.node("Slice", x, *(self.constant(v, np.int64)
                                       for v in ([0] * len(axes), many, axes, [step] * len(axes))))

    # ---------------------------------------------------------------------------------------------------------- layers

    def convolution(self, x: str, layer: Any, groups: int = 1, padding: int = 0, rows: int | None = None) -> str:
        """A convolution of `jiidm.models.blocks`, a Jittor one, or a linear layer over channels.

        Args:
            x: N, C, H, W.
            layer: the module; its weight may lack the last axes.
            groups: of channels.
            padding: rows and columns of zeros around x, where the module does not say.
            rows: how many of the first output channels to compute (None: all).
        """
        shape = (*layer.weight.shape, 1, 1)[:4]
        if hasattr(layer, "zeros"):
            before, after = layer.zeros
        else:
            before = after = getattr(layer, "padding", (padding,))[0]
        stride = getattr(layer, "stride", (1, 1))[0]
        inputs = [x, self.weight(layer.weight, (shape[0] if rows is None else rows, *shape[1:]), rows)]
        if layer.bias is not None:
            inputs.append(self.weight(layer.bias, rows=rows))
        return self.node("Conv", *inputs, kernel_shape=shape[2:], strides=[stride] * 2, group=groups,
                         pads=[before, before, after, after])

    def linear(self, x: str, layer: Any) -> str:
        """A linear layer of N, C."""
        return self.node("Gemm", x, self.weight(layer.weight), self.weight(layer.bias), transB=1)

    def normalize(self, x: str, groups: int, eps: float) -> str:
        """GroupNorm of N, C, H, W without weights."""
        ones, zeros = (self.constant(np.full(groups, value), np.float32) for value in (1, 0))
        h = self.reshape(self.full(x), (0, groups, -1))
        h = self.node("InstanceNormalization", h, ones, zeros, epsilon=eps)
        return self.own(self.reshape(h, self.shape(x)))

    def group_norm(self, x: str, layer: Any, silu: bool = True) -> str:
        """An affine `GroupNorm`, then SiLU."""
        weight, bias = (self.weight(v, (-1, 1, 1)) for v in (layer.weight, layer.bias))
        h = self.add(self.mul(self.normalize(x, layer.groups, layer.eps), weight), bias)
        return self.silu(h) if silu else h

    def attention(self, q: str, k: str, v: str, heads: int, channels: int) -> str:
        """softmax(q^T k / sqrt(D)) applied to v, with the matrix of all pairs in memory.

        Args:
            q, k, v: reshaped to N, heads, D, T; k and v may have another number of positions than q.
            heads: how many there are.
            channels: D, those of a head.
        """
        q, k, v = (self.reshape(x, (0, heads, channels, -1)) for x in (q, k, v))
        q, k = (self.mul(x, self.number(channels**-0.25)) for x in (q, k))  # each a half: float16 holds the products
        weight = self.own(self.node("Softmax", self.full(self.node("MatMul", self._swap(q), k)), axis=-1))
        return self._swap(self.node("MatMul", weight, self._swap(v)))

    def _swap(self, x):
        return self.node("Transpose", x, perm=[0, 1, 3, 2])

    def upsample(self, x: str) -> str:
        """N, C, H, W -> N, C, 2H, 2W, nearest."""
        return self.node("Resize", x, "", self.constant([1, 1, 2, 2], np.float32), mode="nearest",
                         coordinate_transformation_mode="asymmetric", nearest_mode="floor")
