"""Activations in blocks of 16 channels, N, C/16, H, W, 16: the layout in which the CPU computes.

The last block of channels that do not fill it ends with zeros.
"""
from jiidm.kernels import compiled
from jiidm.kernels.vectors import HEADER
from jiidm.system.runtime import device_name, jt

BLOCK = 16  # channels: one vector of AVX-512, and oneDNN's layout for it

TRANSPOSE = HEADER + r"""
namespace jittor {
template <int S> static inline void exchange(vec r[16]) {
    ivec low, high;   // constants after optimisation
    for (int l = 0; l < 16; l++) { low[l] = l & S ? 16 + l - S : l; high[l] = l & S ? 16 + l : l + S; }
    #pragma GCC unroll 16
    for (int i = 0; i < 16; i++) if (!(i & S)) {
        const vec a = r[i], b = r[i + S];
        r[i] = __builtin_shuffle(a, b, low); r[i + S] = __builtin_shuffle(a, b, high);
    }
}
static inline void transpose(vec r[16]) { exchange<1>(r); exchange<2>(r); exchange<4>(r); exchange<8>(r); }
}
"""

_TO = r"""
    @alias(x, in0) @alias(y, out0)
    const int64_t N = x_shape0, C = x_shape1, S = x_shape2 * x_shape3, blocks = y_shape1;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * blocks; k++) {
        const int64_t c0 = k % blocks * 16, some = std::min<int64_t>(16, C - c0);
        const float* from = x_p + (k / blocks * C + c0) * S;
        float* to = y_p + k * S * 16;
        int64_t i = 0;
        for (; i + 16 <= S; i += 16) {
            vec r[16] = {};
            for (int64_t c = 0; c < some; c++) r[c] = *(const vec*)(from + c * S + i);
            transpose(r);
            for (int64_t c = 0; c < 16; c++) *(vec*)(to + (i + c) * 16) = r[c];
        }
        for (; i < S; i++) for (int64_t c = 0; c < 16; c++) to[i * 16 + c] = c < some ? from[c * S + i] : 0;
    }
"""

_FROM = r"""
    @alias(x, in0) @alias(y, out0)
    const int64_t N = y_shape0, C = y_shape1, S = y_shape2 * y_shape3, blocks = x_shape1;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * blocks; k++) {
        const int64_t c0 = k % blocks * 16, some = std::min<int64_t>(16, C - c0);
        const float* from = x_p + k * S * 16;
        float* to = y_p + (k / blocks * C + c0) * S;
        int64_t i = 0;
        for (; i + 16 <= S; i += 16) {
            vec r[16];
            for (int64_t c = 0; c < 16; c++) r[c] = *(const vec*)(from + (i + c) * 16);
            transpose(r);
            for (int64_t c = 0; c < some; c++) *(vec*)(to + c * S + i) = r[c];
        }
        for (; i < S; i++) for (int64_t c = 0; c < some; c++) to[c * S + i] = from[i * 16 + c];
    }
"""


def blocks_available():
    """Whether layers may compute in blocks now: on the CPU, outside of `plain_operators`."""
    return compiled() and device_name() == "cpu"


def blocks_of(channels):
    """How many blocks hold so many channels."""
    return -(-channels // BLOCK)


def to_blocks(x):
    """N, C, H, W -> N, C/16, H, W, 16; differentiable."""
    return _ToBlocks.apply(x)


def from_blocks(x, channels):
    """N, C/16, H, W, 16 -> N, channels, H, W; differentiable."""
    return _FromBlocks.apply(x, channels)


class _ToBlocks(jt.Function):
    def execute(self, x):
        self.channels = x.shape[1]
        return _to(x)

    def grad(self, dy):
        return _from(dy, self.channels)


class _FromBlocks(jt.Function):
    def execute(self, x, channels):
        return _from(x, channels)

    def grad(self, dy):
        return _to(dy), None


def _to(x):
    n, c, h, w = x.shape
    return jt.code((n, blocks_of(c), h, w, BLOCK), "float32", [x], cpu_header=TRANSPOSE, cpu_src=_TO)


def _from(x, channels):
    n, _, h, w, _ = x.shape
    return jt.code((n, channels, h, w), "float32", [x], cpu_header=TRANSPOSE, cpu_src=_FROM)
