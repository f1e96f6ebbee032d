"""Group normalisation, modulation and SiLU of activations in blocks of 16 channels, on the CPU."""
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
                     vec mean, vec rstd, vec scale, vec shift, float one, const float* next) {
    const vec *xv = (const vec*)x, *g = (const vec*)gamma, *b = (const vec*)beta;
    if (!MAPS) rstd *= scale;
    for (int64_t i = 0; i < positions; i++) {
        __builtin_prefetch(next + i * B, 0, 2);
        vec u = (xv[i] - mean) * rstd;
        if (MAPS) u = (u * (one + g[i]) + b[i]) * scale;
        u += shift;
        ((vec*)y)[i] = SILU ? vec_silu(u) : u;
    }
}
// First pass of the gradients: those of the maps, and in dx that of the normalised x. The sums, a row of channels each,
// are of that, of that times the normalised x, and the gradients of scale and shift.
template <bool MAPS, bool SILU>
static void backward(const float* x, const float* gamma, const float* beta, const float* dy, float* dx, float* dgamma,
                     float* dbeta, int64_t positions, vec mean, vec rstd, vec scale, vec shift, double sums[4][B]) {
    const vec *xv = (const vec*)x, *gv = (const vec*)gamma, *bv = (const vec*)beta, *dv = (const vec*)dy;
    for (int64_t l = 0; l < 4 * B; l++) sums[l / B][l % B] = 0;
    for (int64_t i0 = 0; i0 < positions; i0 += CHUNK) {
        vec part[4] = {};
        for (int64_t i = i0; i < std::min(i0 + CHUNK, positions); i++) {
            const vec h = (xv[i] - mean) * rstd, g = MAPS ? 1.f + gv[i] : vec{}, w = MAPS ? h * g + bv[i] : h;
            vec u = w * scale + shift, du = dv[i];
            if (SILU) { const vec s = 1.f / (1.f + vec_exp(-u)); du *= s * (1.f + u * (1.f - s)); }
            part[2] += du * w; part[3] += du;
            du *= scale;
            if (MAPS) { ((vec*)dgamma)[i] = du * h; ((vec*)dbeta)[i] = du; du *= g; }
            ((vec*)dx)[i] = du;
            part[0] += du; part[1] += du * h;
        }
        for (int64_t k = 0; k < 4; k++) for (int64_t l = 0; l < B; l++) sums[k][l] += part[k][l];
    }
}
}
"""

# The maps are two Vars; or one of twice the channels, gamma - 1 before beta.
_FORWARD = r"""
    @alias(x, in0) @alias(gamma, in1) @alias(beta, in2) @alias(scale, in3) @alias(shift, in4)
    @alias(y, out0) @alias(means, out1) @alias(rstds, out2)
    const int64_t N = x_shape0, blocks = x_shape1, S = x_shape2 * x_shape3, C = blocks * B;
    const int64_t groups = data["groups"], M = C / groups;
    int64_t slab = M;
    while (slab % B) slab += M;
    const bool maps = data["maps"] > 0, joint = maps && gamma_shape1 == 2 * blocks, silu = data["silu"] > 0;
    const float* second = joint ? gamma_p + C * S : beta_p;
    const double eps = data["eps"];
    const int64_t map_stride = gamma_shape0 == 1 ? 0 : gamma_shape1 * B * S;
    const int64_t channel_stride = scale_shape0 == 1 ? 0 : C, slabs = C / slab, per = slab / B;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * slabs; k++) {
        const int64_t n = k / slabs, c0 = k % slabs * slab;
        std::vector<double> mean(slab), deviations(slab);
        for (int64_t b = 0; b < per; b++) {
            const Moments m = moments(x_p + (n * C + c0 + b * B) * S, S);
            for (int64_t l = 0; l < B; l++) { mean[b * B + l] = m.mean[l]; deviations[b * B + l] = m.deviations[l]; }
        }
        float *m = means_p + n * C + c0, *r = rstds_p + n * C + c0;
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
            run(x_p + o, gamma_p + f, second + f, y_p + o, S, *(const vec*)&m[b * B], *(const vec*)&r[b * B],
                *(const vec*)s, *(const vec*)t, joint, x_p + next);
        }
    }
"""

_BACKWARD = r"""
    @alias(x, in0) @alias(maps, in1) @alias(scale, in2) @alias(shift, in3) @alias(means, in4) @alias(rstds, in5)
    @alias(dy, in6) @alias(dx, out0) @alias(dmaps, out1) @alias(dscale, out2) @alias(dshift, out3)
    const int64_t N = x_shape0, S = x_shape2 * x_shape3, C = x_shape1 * B, groups = data["groups"], M = C / groups;
    int64_t slab = M;
    while (slab % B) slab += M;
    const bool modulated = data["maps"] > 0, silu = data["silu"] > 0;
    const int64_t slabs = C / slab;
    #pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < N * slabs; k++) {
        const int64_t n = k / slabs, c0 = k % slabs * slab;
        std::vector<double> first(slab), second(slab);
        for (int64_t b = 0; b < slab; b += B) {
            const int64_t c = n * C + c0 + b, o = c * S, f = modulated ? (n * C + c) * S : 0;
            double sums[4][B];
            auto run = modulated ? (silu ? backward<true, true> : backward<true, false>)
                                 : (silu ? backward<false, true> : backward<false, false>);
            run(x_p + o, maps_p + f, maps_p + f + C * S, dy_p + o, dx_p + o, dmaps_p + f, dmaps_p + f + C * S, S,
                *(const vec*)(means_p + c), *(const vec*)(rstds_p + c), *(const vec*)(scale_p + c),
                *(const vec*)(shift_p + c), sums);
            for (int64_t l = 0; l < B; l++) {
                first[b + l] = sums[0][l]; second[b + l] = sums[1][l];
                dscale_p[c + l] = sums[2][l]; dshift_p[c + l] = sums[3][l];
            }
        }
        std::vector<float> m0(slab), m1(slab);   // means over the group
        for (int64_t g = 0; g < slab; g += M) {
            double a = 0, b = 0;
            for (int64_t c = g; c < g + M; c++) { a += first[c]; b += second[c]; }
            for (int64_t c = g; c < g + M; c++) { m0[c] = a / (M * S); m1[c] = b / (M * S); }
        }
        for (int64_t b = 0; b < slab; b += B) {
            const int64_t c = n * C + c0 + b;
            const vec mean = *(const vec*)(means_p + c), rstd = *(const vec*)(rstds_p + c);
            const vec a = *(const vec*)&m0[b], e = *(const vec*)&m1[b];
            const vec* xv = (const vec*)(x_p + c * S); vec* dv = (vec*)(dx_p + c * S);
            for (int64_t i = 0; i < S; i++) dv[i] = rstd * (dv[i] - a - (xv[i] - mean) * rstd * e);
        }
    }
"""


def blocked_group_norm(x, groups, eps, maps, modulation, silu):
    """`group_norm` of N, C/16, H, W, 16. The maps are in blocks too, for 1 or N images.

    Gradients exist for N images whose maps are one Var of twice the channels, gamma - 1 before beta.
    """
    n, blocks = x.shape[:2]
    width = blocks * x.shape[4]
    scale, shift = modulation if modulation is not None else (jt.ones((1, width)), jt.zeros((1, width)))
    scale, shift = (v.reshape(-1, width) for v in (scale, shift))
    if jt.flags.no_grad or (maps and len(maps) == 2):
        return _forward(x, maps, scale, shift, groups, eps, silu)[0]
    scale, shift = (v if v.shape[0] == n else v.broadcast((n, width)) for v in (scale, shift))
    return _BlockedGroupNorm.apply(x, maps and maps[0], scale, shift, groups, eps, silu)


def _forward(x, maps, scale, shift, groups, eps, silu):
    # without maps they are not read; inputs of the same kinds share one compiled kernel
    gamma, beta = (maps[0], maps[-1]) if maps else (x, x)
    width = [x.shape[0], x.shape[1] * x.shape[4]]
    return jt.code([x.shape, width, width], ["float32"] * 3, [x, gamma, beta, scale, shift],
                   cpu_header=_HEADER, cpu_src=_FORWARD,
                   data={"groups": groups, "eps": eps, "maps": int(bool(maps)), "silu": int(silu)})


class _BlockedGroupNorm(jt.Function):
    def execute(self, x, maps, scale, shift, groups, eps, silu):
        y, mean, rstd = _forward(x, None if maps is None else (maps,), scale, shift, groups, eps, silu)
        self.saved, self.options = (x, maps, scale, shift, mean, rstd), (groups, silu)
        return y

    def grad(self, dy):
        x, maps, scale, shift, mean, rstd = self.saved
        groups, silu = self.options
        dx, dmaps, dscale, dshift = jt.code(
            [x.shape, (1, 1, 1, 1, 1) if maps is None else maps.shape, scale.shape, shift.shape], ["float32"] * 4,
            [x, x if maps is None else maps, scale, shift, mean, rstd, dy], cpu_header=_HEADER, cpu_src=_BACKWARD,
            data={"groups": groups, "maps": int(maps is not None), "silu": int(silu)})
        return dx, None if maps is None else dmaps, dscale, dshift, None, None, None
