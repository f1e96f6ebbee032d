"""Convolutions for inference, and for training in bfloat16.

On the CPU `PackedConvolution` packs its weights once and uses Winograd where it pays. Activations stay in blocks of 16
channels (N, C/16, H, W, 16), the layout that oneDNN computes in: nothing is reordered between two layers. Jittor's own
convolution reorders input, weights and output at every call. `LeanConvolution` keeps no packed weights, for little
memory. On CUDA `HalfConvolution` computes in bfloat16.
"""
import functools

from jiidm.kernels.winograd import winograd
from jiidm.system.runtime import device_name, jt, nn, onednn_flags

BLOCK = 16  # channels; oneDNN's layout for AVX-512

_HEADER = r"""
#include <dnnl.hpp>
#include <array>
#include <cstring>
#include <map>
namespace jittor {
typedef dnnl::memory::format_tag Tag;
typedef dnnl::memory::desc Desc;
typedef dnnl::convolution_forward::primitive_desc Chosen;
enum { IN, OUT, HEIGHT, WIDTH, KERNEL, STRIDE, BEFORE, AFTER, BLOCKED_IN, BLOCKED_OUT, WINOGRAD, CASE };
typedef std::array<int64_t, CASE> Case;

static dnnl::engine& engine() { static dnnl::engine e(dnnl::engine::kind::cpu, 0); return e; }
static int64_t out_size(const Case& c, int64_t size) {
    return (size + c[BEFORE] + c[AFTER] - c[KERNEL]) / c[STRIDE] + 1;
}
static Desc input(const Case& c, bool any) {
    return Desc({1, c[IN], c[HEIGHT], c[WIDTH]}, dnnl::memory::data_type::f32,
                any ? Tag::any : c[BLOCKED_IN] ? Tag::nChw16c : Tag::nchw);
}
static Desc output(const Case& c, bool any, bool blocked) {
    return Desc({1, c[OUT], out_size(c, c[HEIGHT]), out_size(c, c[WIDTH])}, dnnl::memory::data_type::f32,
                any ? Tag::any : blocked ? Tag::nChw16c : Tag::nchw);
}
static Chosen described(const Case& c, bool winograd, bool any) {
    Desc w({c[OUT], c[IN], c[KERNEL], c[KERNEL]}, dnnl::memory::data_type::f32, Tag::any);
    Desc b({c[OUT]}, dnnl::memory::data_type::f32, Tag::x);
    return Chosen({dnnl::prop_kind::forward_inference,
                   winograd ? dnnl::algorithm::convolution_winograd : dnnl::algorithm::convolution_direct,
                   input(c, any), w, b, output(c, any, true), {c[STRIDE], c[STRIDE]},
                   {c[BEFORE], c[BEFORE]}, {c[AFTER], c[AFTER]}}, engine());
}
// Winograd where it is asked for, else direct in our layout, else direct in the layout that this processor prefers.
// The output is blocked in any case; the last block of few channels is filled up with zeros.
static Chosen chosen(const Case& c) {
    for (int winograd = c[WINOGRAD]; winograd >= 0; winograd--) {
        try {
            Chosen pd = described(c, winograd, false);
            if (!strncmp(pd.impl_info_str(), "jit", 3)) return pd;   // not one of the slow reference kernels
        } catch (dnnl::error&) {}   // this processor has no such kernel
    }
    return described(c, false, true);
}
// the images of a batch one by one: the plan then depends on no neighbour, and the weights' layout not on the batch
struct Plan {
    Chosen pd; dnnl::convolution_forward run; Desc given, wanted;
    Plan(const Case& c) : pd(chosen(c)), run(pd), given(input(c, false)), wanted(output(c, false, c[BLOCKED_OUT])) {}
};
static Plan& plan(const Case& c) {
    static std::map<Case, Plan> plans;
    auto found = plans.find(c);
    if (found == plans.end()) found = plans.emplace(c, Plan(c)).first;
    return found->second;
}
}
"""

_CASE = r"""
    Case c = {(int64_t)data["in"], (int64_t)data["out"], (int64_t)data["height"], (int64_t)data["width"],
              (int64_t)data["kernel"], (int64_t)data["stride"], (int64_t)data["before"], (int64_t)data["after"],
              (int64_t)data["blocked_in"], (int64_t)data["blocked_out"], (int64_t)data["winograd"]};
    Plan& p = plan(c);
    dnnl::stream stream(engine());
"""

_SIZE = _CASE + r"""
    @alias(size, out0)
    size_p[0] = (p.pd.weights_desc().get_size() + 3) / 4;
"""

_PACK = _CASE + r"""
    @alias(weight, in0) @alias(packed, out0)   // further inputs are computed first
    dnnl::memory from({{c[OUT], c[IN], c[KERNEL], c[KERNEL]}, dnnl::memory::data_type::f32, Tag::oihw}, engine(),
                      weight_p);
    dnnl::memory to(p.pd.weights_desc(), engine(), packed_p);
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
"""

# float16, finite, to fp32; what is computed first is the further input
_WIDEN = r"""
    @alias(half, in0) @alias(y, out0)
    const uint16_t* from = (const uint16_t*)half_p;
    const int64_t n = in0->num;
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = ((from[i] & 0x7fff) << 13) + (112u << 23);   // exponents: biased by 15 there, 127 here
        float size;
        memcpy(&size, &bits, 4);
        // subnormal numbers are multiples of 2^-24; shifted like the others they would be taken for zeros
        size = from[i] & 0x7c00 ? size : (from[i] & 0x3ff) * 5.9604644775390625e-8f;
        y_p[i] = from[i] & 0x8000 ? -size : size;
    }
"""

_RUN = _CASE + r"""
    @alias(x, in0) @alias(packed, in1) @alias(bias, in2) @alias(y, out0)
    dnnl::memory weights(p.pd.weights_desc(), engine(), packed_p), b(p.pd.bias_desc(), engine(), bias_p);
    const int64_t images = x_shape0;
    for (int64_t i = 0; i < images; i++) {
        dnnl::memory from(p.given, engine(), x_p + i * (p.given.get_size() / 4));
        dnnl::memory to(p.wanted, engine(), y_p + i * (p.wanted.get_size() / 4)), source = from, result = to;
        if (p.pd.src_desc() != p.given) {
            source = dnnl::memory(p.pd.src_desc(), engine());
            dnnl::reorder(from, source).execute(stream, from, source);
        }
        if (p.pd.dst_desc() != p.wanted) result = dnnl::memory(p.pd.dst_desc(), engine());
        p.run.execute(stream, {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weights}, {DNNL_ARG_BIAS, b},
                               {DNNL_ARG_DST, result}});
        if (p.pd.dst_desc() != p.wanted) dnnl::reorder(result, to).execute(stream, result, to);
        stream.wait();
    }
"""


def blocked(x):
    """N, C, H, W -> N, C/16, H, W, 16."""
    n, c, h, w = x.shape
    return x.reshape(n, c // BLOCK, BLOCK, h, w).permute(0, 1, 3, 4, 2)


class PackedConvolution:
    """A convolution with constant weights, for inference on the CPU.

    The weights are packed once for each size of the input, except for those of Winograd on large maps.

    Args:
        weight: C_out, C_in, K, K (fp32).
        bias: C_out (fp32).
        stride: of both axes.
        padding: rows and columns of zeros (before, after) the input.
    """

    # Winograd's F(4x4, 3x3) needs a quarter of the multiplications, but its weights are four times as large: on maps of
    # fewer positions than the first number it saves too little for that. oneDNN's keeps them packed; from the second
    # on `winograd`, which transforms them at every call but keeps its tiles in the cache, is the faster one. The batch
    # does not count: a picture must not depend on how many are made with it.
    onednn_winograd_from, winograd_from = 96, 3000

    def __init__(self, weight, bias, stride, padding):
        self.weight, self.bias, self.stride, self.padding = weight, bias, stride, padding
        self._packed = {}

    def __call__(self, x, plain=False):
        """The convolution of x.

        Args:
            x: N, C, H, W, or N, C/16, H, W, 16.
            plain: give N, C, H, W; else blocks, where the channels fill them.
        """
        out, _, kernel, _ = self.weight.shape
        fits = (kernel == 3 and self.stride == 1 and self.padding == (1, 1) and x.ndim == 5 and out % BLOCK == 0
                and not plain)
        positions = x.shape[2] * x.shape[3]
        if fits and positions >= self.winograd_from:
            return winograd(x, self._weight_after(x), self.bias)
        return self._convolve(x, plain, fits and positions >= self.onednn_winograd_from)

    def _convolve(self, x, plain, by_winograd):
        out, channels, kernel, _ = self.weight.shape
        height, width = x.shape[2:4]
        blocks = not plain and out % BLOCK == 0
        case = {
            "in": channels, "out": out, "height": height, "width": width, "kernel": kernel, "stride": self.stride,
            "before": self.padding[0], "after": self.padding[1], "blocked_in": int(x.ndim == 5),
            "blocked_out": int(blocks), "winograd": int(by_winograd),
        }
        with jt.no_grad(), jt.flag_scope(compile_options=onednn_flags()):
            packed = self._pack(case, x)
            height, width = ((s + sum(self.padding) - kernel) // self.stride + 1 for s in (height, width))
            shape = [x.shape[0], out // BLOCK, height, width, BLOCK] if blocks else [x.shape[0], out, height, width]
            return _code(shape, "float32", [x, packed, self.bias], _RUN, case)

    def _pack(self, case, x):
        key = tuple(case.values())
        if key not in self._packed:
            self._packed[key] = _pack(self.weight, case)
        return self._packed[key]

    def _weight_after(self, x):
        """The weight in fp32."""
        return self.weight


class LeanConvolution(PackedConvolution):
    """`PackedConvolution` for little memory: nothing but the weights themselves is kept.

    They are packed or transformed at every call and may be float16, see `jiidm.models.blocks.store_half`. The result is
    fp32 all the same.
    """

    onednn_winograd_from, winograd_from = float("inf"), 768

    def _pack(self, case, x):
        return _pack(self._weight_after(x), case, x)

    def _weight_after(self, x):
        """The weight in fp32, computed when x has been: else Jittor would compute those of all layers ahead."""
        if self.weight.dtype != "float16":
            return self.weight
        return jt.code(self.weight.shape, "float32", [self.weight, x], cpu_header="#include <cstring>", cpu_src=_WIDEN)


class HalfConvolution:
    """A convolution of bfloat16 operands with fp32 accumulation, for inference on CUDA; the result is bfloat16.

    The arguments are those of `PackedConvolution`.
    """

    def __init__(self, weight, bias, stride, padding):
        self.weight, self.bias = weight.bfloat16(), bias.bfloat16().reshape(1, -1, 1, 1)
        self.stride, self.padding = stride, padding

    def __call__(self, x, plain=False):
        """The convolution of x (N, C, H, W); there is no other layout, so `plain` changes nothing."""
        before, after = self.padding
        if before != after:
            x = nn.pad(x, [0, after - before, 0, after - before])
        return nn.conv2d(x.bfloat16(), self.weight, None, self.stride, before) + self.bias


def bfloat16_available():
    """Whether the device computes in bfloat16: CUDA, from compute capability 8.0 on."""
    return device_name() == "cuda" and min(jt.flags.cuda_archs) >= 80


def rounded_convolution(x, weight, bias, stride, padding):
    """A convolution for training with bfloat16 operands and results, in the gradients too, and fp32 accumulation.

    On the CPU, where Jittor would accumulate in bfloat16, the operands are rounded fp32 numbers.

    Args:
        x: N, C, H, W (fp32).
        weight, bias, stride: as for `PackedConvolution`.
        padding: of every side.

    Returns:
        N, C_out, H', W' (fp32).
    """
    x, weight = x.bfloat16(), weight.bfloat16()
    if not jt.flags.use_cuda:
        x, weight = x.float32(), weight.float32()
    y = nn.conv2d(x, weight, None, stride, padding).bfloat16()
    return y.float32() + bias.reshape(1, -1, 1, 1)


def inference_convolution(device, precision, *widths, lean=False):
    """The class that `jiidm.models.blocks.prepare` replaces convolutions by; None where they stay as they are.

    Args:
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16" (on CUDA).
        widths: channels of the tensors between the convolutions.
        lean: on the CPU the one for little memory.
    """
    if device == "cuda":
        return HalfConvolution if precision == "bf16" else None
    if not onednn_flags() or any(w % BLOCK for w in widths):
        return None
    return LeanConvolution if lean else PackedConvolution


def _pack(weight, case, *after):
    """The weights in the layout of a case, computed when the Vars `after` have been."""
    return _code((_packed_size(tuple(case.items())),), "float32", [weight, *after], _PACK, case)


@functools.cache
def _packed_size(case):
    return int(_code((1,), "int64", [], _SIZE, dict(case)).item())


def _code(shape, dtype, inputs, source, case):
    return jt.code(shape, dtype, inputs, cpu_header=_HEADER, cpu_src=source, data=case)
