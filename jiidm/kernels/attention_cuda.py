"""Scaled dot-product attention on CUDA, for inference: online softmax over tiles of keys, no T x T matrix in memory."""
from jiidm.kernels.attention_bfloat16_cuda import BFLOAT16, MATRIX_UNITS
from jiidm.kernels.attention_float32_cuda import FLOAT32
from jiidm.system.runtime import jt

_SOURCE = r"""
    @alias(q, in0) @alias(k, in1) @alias(v, in2) @alias(result, out0)
    attention_launch<%d>(q_p, k_p, v_p, result_p, q_shape0, q_shape2);
"""
_HEADERS = {"float32": FLOAT32, "bfloat16": MATRIX_UNITS + BFLOAT16}
_DEEPEST = 128  # channels of a head: more would not fit registers and shared memory
_ARCHITECTURES = {"float32": 70, "bfloat16": 80}


def supports(q):
    """Whether `attention_cuda` takes queries of this dtype and depth, for the cards that Jittor compiles for."""
    needed = _ARCHITECTURES.get(str(q.dtype))
    return needed is not None and q.shape[1] <= _DEEPEST and min(jt.flags.cuda_archs, default=0) >= needed


def attention_cuda(q, k, v):
    """`attention` on CUDA, for what `supports` allows; no gradients.

    The softmax is float32; its weights are rounded to bfloat16 where v is.

    Args:
        q, k, v: B, D, T, all float32 or all bfloat16.
    """
    return jt.code(q.shape, q.dtype, [q, k, v], cuda_header=_HEADERS[str(q.dtype)], cuda_src=_SOURCE % q.shape[1])
