"""Group normalisation, modulation and SiLU of activations in blocks of 16 channels, for inference on the CPU."""
from jiidm.kernels.vectors import HEADER
from jiidm.system.runtime import jt

# A slab is the fewest whole blocks that hold whole groups. A first pass computes each channel's mean and its sum of
# squared differences from the mean, chunk by chunk. A chunk stays in the first-level cache and has its own mean; chunks
# are merged as in Chan et al. 1983. (E[x^2] - E[x]^2 would cancel.) A second pass, mostly over cached data, normalises.
_HEADER = HEADER + r"""
namespace jittor {
static const int64_t B = 16, CHUNK = 128;

static inline vec vec_silu(vec u) { return u / (1.f + vec_exp(-u)); }

struct Moments { vec mean, deviations; };
static Moments moments(const float* x, int64_t positions) {
    Moments all = {};
    for (int64_t i = 0; i < positions; i += CHUNK) {
        const int64_t n = std::min(CHUNK, positions - i);
        const vec* v = (const vec*)(x + i * B);
        vec s0 = {}, s1 = {}, s2 = {}, s3 = {};
        int64_t j = 0;
        for (; j + 4 <= n; j += 4) { s0 += v[j]; s1 += v[j + 1]; s2 += v[j + 2]; s3 += v[j + 3]; }
        for (; j < n; j++) s0 += v[j];
        const vec mean = (s0 + s1 + (s2 + s3)) * (1.f / n);
        s0 = s1 = s2 = s3 = vec{};
        for (j = 0; j + 4 <= n; j += 4) {
            vec d0 = v[j] - mean, d1 = v[j + 1] - mean, d2 = v[j + 2] - mean, d3 = v[j + 3] - mean;
            s0 += d0 * d0; s1 += d1 * d1; s2 += d2 * d2; s3 += d3 * d3;
        }
        for (; j < n; j++) { vec d = v[j] - mean; s0 += d * d; }
        const vec delta = mean - all.mean;
        const float share = float(n) / (i + n);
        all.mean += delta * share;
        all.deviations += s0 + s1 + (s2 + s3) + delta * delta * (share * i);
    }
    return all;
}
template <bool MAPS, bool SILU>
static void modulate(const float* x, const float* gamma, const float* beta, float* y, int64_t positions,
                     vec mean, vec rstd, vec scale, vec shift, const float* next) {
    const vec *xv = (const vec*)x, *g = (const vec*)gamma, *b = (const vec*)beta;
    if (!MAPS) rstd *= scale;
    for (int64_t i = 0; i < positions; i++) {
        __builtin_prefetch(next + i * B, 0, 2);
        vec u = (xv[i] - mean) * rstd;
        if (MAPS) u = (u * g[i] + b[i]) * scale;
        u += shift;
        ((vec*)y)[i] = SILU ? vec_silu(u) : u;
    }
}
}
"""

_SOURCE = r"""
    @alias(x, in0) @alias(gamma, in1) @alias(beta, in2) @alias(scale, in3) @alias(shift, in4) @alias(y, out0)
    const int64_t N = x_shape0, blocks = x_shape1, S = x_shape2 * x_shape3, C = blocks * B;
    const int64_t groups = data["groups"], M = C / groups;
    int64_t slab = M;
    while (slab % B) slab += M;
    const bool maps = data["maps"] > 0, silu = data["silu"] > 0;
    const double eps = data["eps"];
    const int64_t map_stride = gamma_shape0 == 1 ? 0 : C * S, channel_stride = scale_shape0 == 1 ? 0 : C;
    const int64_t slabs = C / slab, per = slab / B;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * slabs; k++) {
        const int64_t n = k / slabs, c0 = k % slabs * slab;
        std::vector<double> mean(slab), deviations(slab);
        for (int64_t b = 0; b < per; b++) {
            const Moments m = moments(x_p + (n * C + c0 + b * B) * S, S);
            for (int64_t l = 0; l < B; l++) { mean[b * B + l] = m.mean[l]; deviations[b * B + l] = m.deviations[l]; }
        }
        std::vector<float> m(slab), r(slab);
        for (int64_t g = 0; g < slab; g += M) {
            double center = 0, squares = 0;
            for (int64_t c = g; c < g + M; c++) center += mean[c] / M;
            for (int64_t c = g; c < g + M; c++) squares += deviations[c] + S * (mean[c] - center) * (mean[c] - center);
            for (int64_t c = g; c < g + M; c++) { m[c] = center; r[c] = 1 / std::sqrt(squares / (M * S) + eps); }
        }
        for (int64_t b = 0; b < per; b++) {
            const int64_t c = c0 + b * B, o = (n * C + c) * S, f = n * map_stride + c * S;
            const float* s = scale_p + n * channel_stride + c; const float* t = shift_p + n * channel_stride + c;
            // what this thread reads next arrives while it computes; the last slab of all has no next
            const int64_t next = o + slab * S < N * C * S ? o + slab * S : o;
            auto run = maps ? (silu ? modulate<true, true> : modulate<true, false>)
                            : (silu ? modulate<false, true> : modulate<false, false>);
            run(x_p + o, gamma_p + f, beta_p + f, y_p + o, S, *(const vec*)&m[b * B], *(const vec*)&r[b * B],
                *(const vec*)s, *(const vec*)t, x_p + next);
        }
    }
"""


def blocked_group_norm(x, groups, eps, maps, modulation, silu):
    """`group_norm` of N, C/16, H, W, 16; the maps are in blocks too, for 1 or N images. No gradients."""
    n, blocks = x.shape[:2]
    width = blocks * x.shape[4]
    scale, shift = modulation if modulation is not None else (jt.ones((1, width)), jt.zeros((1, width)))
    gamma, beta = maps if maps is not None else (x, x)  # not read; inputs of the same kinds share one compiled kernel
    return jt.code(
        x.shape, "float32", [x, gamma, beta, *(v.reshape(-1, width) for v in (scale, shift))],
        cpu_header=_HEADER, cpu_src=_SOURCE,
        data={"groups": groups, "eps": eps, "maps": int(maps is not None), "silu": int(silu)},
    )
