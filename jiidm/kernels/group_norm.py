"""Group normalisation, modulation and SiLU in one pass over the tensor."""
from jiidm.kernels import compiled
from jiidm.kernels.blocked_norm import blocked_group_norm
from jiidm.kernels.group_norm_cuda import group_norm_cuda
from jiidm.system.runtime import jt

# y = act(xhat * a + b). A group's channels are contiguous and fit the second-level cache: statistics and result cost
# one read and one write of main memory. The variance is the mean of (x - mean)^2, in a second pass over cached data:
# E[x^2] - E[x]^2 would cancel. exp is a polynomial (Cephes), which vectorises everywhere.
_HEADER = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
namespace jittor {
static inline float exp_simd(float x) {
    x = x < -87.f ? -87.f : (x > 88.f ? 88.f : x);
    float n = std::floor(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    int32_t e = ((int32_t)n + 127) << 23;
    float s; memcpy(&s, &e, 4);
    return p * s;
}
static inline float sigmoid_simd(float u) { return 1.f / (1.f + exp_simd(-u)); }
}
"""

_FORWARD = r"""
    @alias(x, in0) @alias(a, in1) @alias(b, in2) @alias(y, out0) @alias(mean, out1) @alias(rstd, out2)
    const int64_t N = x_shape0, C = x_shape1, S = x_shape2, G = (int64_t)data["groups"], M = C / G, L = M * S;
    const bool silu = data["silu"] > 0, field = a_shape2 > 1;
    const double eps = data["eps"];
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * G; k++) {
        const float* xg = x_p + k * L;
        // partial sums of one channel keep float additions short; they are added up in double
        double total = 0, square = 0;
        for (int64_t c = 0; c < M; c++) {
            float s = 0;
            #pragma omp simd reduction(+:s)
            for (int64_t i = 0; i < S; i++) s += xg[c * S + i];
            total += s;
        }
        float m = total / L;
        // what float additions made the mean miss shows in the sum of the differences
        double missed = 0;
        for (int64_t c = 0; c < M; c++) {
            float s = 0, e = 0;
            #pragma omp simd reduction(+:s,e)
            for (int64_t i = 0; i < S; i++) { float d = xg[c * S + i] - m; s += d * d; e += d; }
            square += s; missed += e;
        }
        missed /= L;
        m += missed;
        const float r = 1 / std::sqrt(std::max(square / L - missed * missed, 0.) + eps);
        mean_p[k] = m; rstd_p[k] = r;
        for (int64_t c = 0; c < M; c++) {
            const float* xc = xg + c * S;
            float* yc = y_p + k * L + c * S;
            if (field) {
                const float* ac = a_p + k * L + c * S; const float* bc = b_p + k * L + c * S;
                #pragma omp simd
                for (int64_t i = 0; i < S; i++) {
                    float u = (xc[i] - m) * r * ac[i] + bc[i]; yc[i] = silu ? u * sigmoid_simd(u) : u; }
            } else {
                const float sc = r * a_p[k * M + c], sh = b_p[k * M + c];
                #pragma omp simd
                for (int64_t i = 0; i < S; i++) {
                    float u = (xc[i] - m) * sc + sh; yc[i] = silu ? u * sigmoid_simd(u) : u; }
            }
        }
    }
"""

_BACKWARD = r"""
    @alias(x, in0) @alias(a, in1) @alias(b, in2) @alias(mean, in3) @alias(rstd, in4) @alias(dy, in5)
    @alias(dx, out0) @alias(da, out1) @alias(db, out2)
    const int64_t N = x_shape0, C = x_shape1, S = x_shape2, G = (int64_t)data["groups"], M = C / G, L = M * S;
    const bool silu = data["silu"] > 0, field = a_shape2 > 1;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * G; k++) {
        const float m = mean_p[k], r = rstd_p[k];
        double sum_g = 0, sum_gx = 0;      // over the group: d(xhat), d(xhat) * xhat
        for (int64_t c = 0; c < M; c++) {
            const int64_t o = k * L + c * S, f = field ? o : k * M + c;
            const float* xc = x_p + o; const float* gc = dy_p + o; float* dxc = dx_p + o;
            float sg = 0, sgx = 0;
            if (field) {
                const float* ac = a_p + o; const float* bc = b_p + o; float* dac = da_p + o; float* dbc = db_p + o;
                #pragma omp simd reduction(+:sg,sgx)
                for (int64_t i = 0; i < S; i++) {
                    float h = (xc[i] - m) * r, g = gc[i];
                    float u = h * ac[i] + bc[i], s = sigmoid_simd(u);
                    g *= silu ? s * (1 + u * (1 - s)) : 1.f;   // no branch, so that the loop vectorises
                    dac[i] = g * h; dbc[i] = g;
                    float d = g * ac[i];
                    dxc[i] = d; sg += d; sgx += d * h;
                }
            } else {
                const float sc = a_p[f], sh = b_p[f];
                #pragma omp simd reduction(+:sg,sgx)
                for (int64_t i = 0; i < S; i++) {
                    float h = (xc[i] - m) * r, g = gc[i];
                    float u = h * sc + sh, s = sigmoid_simd(u);
                    g *= silu ? s * (1 + u * (1 - s)) : 1.f;
                    dxc[i] = g * sc; sg += g; sgx += g * h;
                }
                da_p[f] = sgx; db_p[f] = sg;
                sg *= sc; sgx *= sc;
            }
            sum_g += sg; sum_gx += sgx;
        }
        const float mg = sum_g / L, mgx = sum_gx / L;
        #pragma omp simd
        for (int64_t i = 0; i < L; i++) {
            float h = (x_p[k * L + i] - m) * r;
            dx_p[k * L + i] = r * (dx_p[k * L + i] - mg - h * mgx);
        }
    }
"""


def group_norm(x, groups, eps, maps=None, modulation=None, silu=False):
    """(GroupNorm(x) * gamma + beta) * scale + shift, then SiLU. Statistics are fp32 and numerically stable.

    Compiled on the CPU, forward and backward, and on CUDA, forward.

    Args:
        x: N, C, H, W; on the CPU also in blocks of 16 channels, and then the maps too (see `blocked_group_norm`).
        groups: how many groups the channels make.
        eps: added to the variance.
        maps: gamma and beta of SPADE (both 1 or N, C, H, W); None leaves them out.
        modulation: scale and shift (both C, or 1 or N, C); None leaves them out.
        silu: whether SiLU follows.
    """
    if x.ndim == 5:
        return blocked_group_norm(x, groups, eps, maps, modulation, silu)
    if not compiled() or (jt.flags.use_cuda and not jt.flags.no_grad):
        return group_norm_plain(x, groups, eps, maps, modulation, silu)
    if jt.flags.use_cuda:
        return group_norm_cuda(x, groups, eps, maps, modulation, silu)
    n, c = x.shape[:2]
    own = (jt.ones((n, c)), jt.zeros((n, c))) if modulation is None else modulation
    scale, shift = (v.broadcast((n, c)) for v in own)
    if maps is not None and modulation is None:
        scale, shift = (v.broadcast(x.shape) for v in maps)
    elif maps is not None:
        scale, shift = (v.reshape(n, c, 1, 1) for v in (scale, shift))
        scale, shift = maps[0] * scale, maps[1] * scale + shift
    # the kernel tells a map from a number per channel by the last axis
    scale, shift = (v.reshape(n, c, -1) for v in (scale, shift))
    return _GroupNorm.apply(x.reshape(n, c, -1), scale, shift, groups, eps, silu).reshape(x.shape)


def group_norm_plain(x, groups, eps, maps=None, modulation=None, silu=False):
    """`group_norm` in Jittor's own operators."""
    n, c = x.shape[:2]
    h = x.float32().reshape(n, groups, -1)
    for _ in range(2):  # the second time takes off what float additions made the first mean miss
        h = h - h.mean(2, keepdims=True)
    h = (h / jt.sqrt((h * h).mean(2, keepdims=True) + eps)).reshape(x.shape)
    if maps is not None:
        h = h * maps[0] + maps[1]
    if modulation is not None:
        scale, shift = (v.reshape(-1, c, 1, 1) for v in modulation)
        h = h * scale + shift
    if silu:
        h = h * jt.sigmoid(h)
    return h.cast(x.dtype)


class _GroupNorm(jt.Function):
    def execute(self, x, scale, shift, groups, eps, silu):
        n, _, size = x.shape
        self.data = {"groups": groups, "eps": eps, "silu": int(silu)}
        y, mean, rstd = jt.code(
            [x.shape, (n, groups), (n, groups)], ["float32"] * 3, [x, scale, shift],
            cpu_header=_HEADER, cpu_src=_FORWARD, data=self.data,
        )
        self.saved = x, scale, shift, mean, rstd
        return y

    def grad(self, dy):
        x, scale, shift, mean, rstd = self.saved
        dx, dscale, dshift = jt.code(
            [x.shape, scale.shape, shift.shape], ["float32"] * 3, [x, scale, shift, mean, rstd, dy],
            cpu_header=_HEADER, cpu_src=_BACKWARD, data=self.data,
        )
        return dx, dscale, dshift, None, None, None
