"""1x1 convolution for training on the CPU, of activations in blocks of channels (see `layout`): a matrix product."""
from jiidm.kernels.layout import BLOCK, blocks_of
from jiidm.kernels.products import HEADER
from jiidm.system.runtime import jt

# Weights are a matrix of channels read x channels written: as they are for the gradient with respect to the input.
_CONVOLVE = r"""
    @alias(x, in0) @alias(weight, in1) @alias(bias, in2) @alias(y, out0)
    const bool back = data["back"] > 0;
    const int64_t N = x_shape0, I = x_shape1, O = y_shape1, S = x_shape2 * x_shape3, SOME = 48;
    static Room room;
    const float* w = weight_p;
    if (!back) {
        float* turned = room.of(I * O * 256);
        for (int64_t k = 0; k < O * I; k++) {
            const int64_t o0 = k / I * 16, i0 = k % I * 16;
            vec square[16];
            for (int64_t o = 0; o < 16; o++) square[o] = *(const vec*)(w + (o0 + o) * I * 16 + i0);
            transpose(square);
            for (int64_t i = 0; i < 16; i++) *(vec*)(turned + (i0 + i) * O * 16 + o0) = square[i];
        }
        w = turned;
    }
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t n = 0; n < N; n++)
        for (int64_t p = 0; p < S; p += SOME) {
            const int64_t o = (n * O * S + p) * 16;
            product(std::min(SOME, S - p), O, {x_p + (n * I * S + p) * 16, 16, S * 16}, I,
                    {const_cast<float*>(w), O * 16, 16}, {y_p + o, 16, S * 16}, back ? nullptr : bias_p);
        }
"""

_TO_WEIGHT = r"""
    @alias(x, in0) @alias(dy, in1) @alias(dweight, out0) @alias(dbias, out1)
    const int64_t N = x_shape0, I = x_shape1, O = dy_shape1, S = x_shape2 * x_shape3;
    #pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < O; o++) {
        float* to = dweight_p + o * I * 256;
        std::fill_n(to, I * 256, 0.f);
        vec sum = {};
        for (int64_t n = 0; n < N; n++) {
            const float* d = dy_p + (n * O + o) * S * 16;
            accumulate(S, I, d, 16, {x_p + n * I * S * 16, 16, S * 16}, {to, I * 16, 16});
            vec part = {};
            for (int64_t p = 0; p < S; p++) part += *(const vec*)(d + p * 16);
            sum += part;
        }
        *(vec*)(dbias_p + o * 16) = sum;
    }
"""


def pointwise(x, weight, bias):
    """1x1 convolution; differentiable in all arguments.

    Args:
        x: N, C/16, H, W, 16.
        weight: C_out, C; both are multiples of 16.
        bias: C_out.

    Returns:
        N, C_out/16, H, W, 16.
    """
    return _Pointwise.apply(x, weight, bias)


class _Pointwise(jt.Function):
    def execute(self, x, weight, bias):
        self.saved = x, weight, bias
        return _convolve(x, weight, bias, back=False)

    def grad(self, dy):
        x, weight, bias = self.saved
        dweight, dbias = jt.code([weight.shape, bias.shape], ["float32"] * 2, [x, dy], cpu_header=HEADER,
                                 cpu_src=_TO_WEIGHT)
        return _convolve(dy, weight, bias, back=True), dweight, dbias


def _convolve(x, weight, bias, back):
    shape = [x.shape[0], blocks_of(weight.shape[1 if back else 0]), *x.shape[2:4], BLOCK]
    return jt.code(shape, "float32", [x, weight, bias], cpu_header=HEADER, cpu_src=_CONVOLVE, data={"back": int(back)})
