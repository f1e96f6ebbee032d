"""3x3 convolution on the CPU: Winograd's F(4x4, 3x3) forward and for both gradients (Lavin & Gray 2016).

It takes a quarter of the direct method's multiplications. Activations are in blocks of channels (see `layout`).
"""
from jiidm.kernels.layout import BLOCK, blocks_of
from jiidm.kernels.products import HEADER
from jiidm.system.runtime import jt

# A tile of 4 x 4 results takes 6 x 6 inputs. Both become 36 numbers: polynomials' values at 0, +-P, +-Q and infinity. P
# and Q are chosen for small rounding errors. Each of the 36 is a matrix product over the channels. Some tiles at a time
# go through all three stages, so that they stay in the second-level cache.
_HEADER = HEADER + r"""
namespace jittor {
static const float P = 0.625f, Q = 1.5f, P2 = P * P, Q2 = Q * Q;
static const float SCALE_0 = 1 / (P2 * Q2), SCALE_P = 1 / (2 * P2 * (P2 - Q2)), SCALE_Q = 1 / (2 * Q2 * (Q2 - P2));
static const int64_t F = 36, TILES = 24;
// All matrices are in blocks of 16 columns: element (r, c) of n rows is data[(c / 16 * n + r) * 16 + c % 16]. The 36
// are this many floats apart. With a multiple of 4 rows that is no multiple of 4096 bytes, at which all would compete
// for the same cache lines.
static inline int64_t distance(int64_t rows, int64_t blocks) { return rows * blocks * 16 + 16; }

// B^T: 6 inputs to 6 numbers
__attribute__((always_inline)) static inline void of_input(const vec x[6], vec y[6]) {
    const vec e = x[4] - Q2 * x[2], f = x[3] - Q2 * x[1], g = x[4] - P2 * x[2], h = x[3] - P2 * x[1];
    y[0] = x[4] + (P2 * Q2 * x[0] - (P2 + Q2) * x[2]);
    y[1] = e + P * f; y[2] = e - P * f; y[3] = g + Q * h; y[4] = g - Q * h;
    y[5] = x[5] + (P2 * Q2 * x[1] - (P2 + Q2) * x[3]);
}
// A^T: 6 numbers to 4 results
__attribute__((always_inline)) static inline void to_result(const vec m[6], vec y[4]) {
    const vec e = m[1] + m[2], f = m[1] - m[2], g = m[3] + m[4], h = m[3] - m[4];
    y[0] = m[0] + e + g; y[1] = P * f + Q * h; y[2] = P2 * e + Q2 * g; y[3] = m[5] + P2 * P * f + Q2 * Q * h;
}
// A: 4 gradients of results to 6 numbers
__attribute__((always_inline)) static inline void of_result(const vec y[4], vec m[6]) {
    const vec e = y[0] + P2 * y[2], f = P * (y[1] + P2 * y[3]), g = y[0] + Q2 * y[2], h = Q * (y[1] + Q2 * y[3]);
    m[0] = y[0]; m[1] = e + f; m[2] = e - f; m[3] = g + h; m[4] = g - h; m[5] = y[3];
}
// G: 3 weights to 6 numbers
__attribute__((always_inline)) static inline void of_weight(const vec w[3], vec u[6]) {
    const vec e = SCALE_P * (w[0] + P2 * w[2]), f = SCALE_P * P * w[1];
    const vec g = SCALE_Q * (w[0] + Q2 * w[2]), h = SCALE_Q * Q * w[1];
    u[0] = SCALE_0 * w[0]; u[1] = e + f; u[2] = e - f; u[3] = g + h; u[4] = g - h; u[5] = w[2];
}
// G^T: 6 numbers to 3 gradients of weights
__attribute__((always_inline)) static inline void to_weight(const vec u[6], vec w[3]) {
    const vec e = SCALE_P * (u[1] + u[2]), f = SCALE_P * (u[1] - u[2]);
    const vec g = SCALE_Q * (u[3] + u[4]), h = SCALE_Q * (u[3] - u[4]);
    w[0] = SCALE_0 * u[0] + e + g; w[1] = P * f + Q * h; w[2] = u[5] + P2 * e + Q2 * g;
}

// The tiles of images of blocks of channels (images, blocks, H, W, 16)
struct Tiles {
    int64_t blocks, height, width, rows, columns;
    Tiles(int64_t b, int64_t h, int64_t w) : blocks(b), height(h), width(w), rows((h + 3) / 4), columns((w + 3) / 4) {}
    int64_t top(int64_t t) const { return t / columns % rows * 4; }
    int64_t left(int64_t t) const { return t % columns * 4; }
    int64_t plane(int64_t t, int64_t c) const { return (t / (rows * columns) * blocks + c) * height * width * 16; }
};

// block c of tile t of x as 36 numbers a channel, `stride` floats apart
static void tile_of_input(const Tiles& s, const float* x, int64_t c, int64_t t, float* v, int64_t stride) {
    const int64_t top = s.top(t) - 1, left = s.left(t) - 1;
    const bool inside = top >= 0 && left >= 0 && top + 6 <= s.height && left + 6 <= s.width;
    x += s.plane(t, c);
    vec half[6][6];
    for (int j = 0; j < 6; j++) {
        vec column[6], out[6];
        for (int i = 0; i < 6; i++) {
            const bool in = inside || (top + i >= 0 && top + i < s.height && left + j >= 0 && left + j < s.width);
            column[i] = in ? *(const vec*)(x + ((top + i) * s.width + left + j) * 16) : vec{};
        }
        of_input(column, out);
        for (int i = 0; i < 6; i++) half[i][j] = out[i];
    }
    for (int i = 0; i < 6; i++) {
        vec out[6];
        of_input(half[i], out);
        for (int j = 0; j < 6; j++) *(vec*)(v + (i * 6 + j) * stride) = out[j];
    }
}
// the same of y, the gradient of the result; adds it up into `sums`, a number a channel
static void tile_of_result(const Tiles& s, const float* y, int64_t c, int64_t t, float* d, int64_t stride,
                           float* sums) {
    y += s.plane(t, c);
    vec half[6][4], sum = {};
    for (int j = 0; j < 4; j++) {
        vec column[4], out[6];
        for (int i = 0; i < 4; i++) {
            const bool in = s.top(t) + i < s.height && s.left(t) + j < s.width;
            column[i] = in ? *(const vec*)(y + ((s.top(t) + i) * s.width + s.left(t) + j) * 16) : vec{};
            sum += column[i];
        }
        of_result(column, out);
        for (int i = 0; i < 6; i++) half[i][j] = out[i];
    }
    *(vec*)sums += sum;
    for (int i = 0; i < 6; i++) {
        vec out[6];
        of_result(half[i], out);
        for (int j = 0; j < 6; j++) *(vec*)(d + (i * 6 + j) * stride) = out[j];
    }
}
// 36 numbers a channel to block c of tile t of y, plus bias, not below `least`
static void tile_to_result(const Tiles& s, float* y, int64_t c, int64_t t, const float* m, int64_t stride,
                           const float* bias, float least) {
    vec half[4][6];
    for (int j = 0; j < 6; j++) {
        vec column[6], out[4];
        for (int i = 0; i < 6; i++) column[i] = *(const vec*)(m + (i * 6 + j) * stride);
        to_result(column, out);
        for (int i = 0; i < 4; i++) half[i][j] = out[i];
    }
    const vec b = *(const vec*)bias;
    const int64_t h = std::min<int64_t>(4, s.height - s.top(t)), w = std::min<int64_t>(4, s.width - s.left(t));
    y += s.plane(t, c) + (s.top(t) * s.width + s.left(t)) * 16;
    for (int i = 0; i < h; i++) {
        vec out[4];
        to_result(half[i], out);
        for (int j = 0; j < w; j++) {
            const vec sum = out[j] + b;
            *(vec*)(y + (i * s.width + j) * 16) = sum > least ? sum : least + vec{};
        }
    }
}

// Weights out x in x 3 x 3 to 36 matrices (channels read x channels written), both filled up to blocks. The gradient
// with respect to the input reads the result's channels: `back` exchanges the two and turns each kernel by half a turn.
static void matrices_of_weights(const float* w, int64_t out, int64_t in, bool back, float* u) {
    const int64_t O = (out + 15) / 16, I = (in + 15) / 16, size = distance(I * 16, O);
    #pragma omp for schedule(static)
    for (int64_t k = 0; k < O * I; k++) {
        const int64_t o0 = k / I * 16, i0 = k % I * 16, n = std::min<int64_t>(16, in - i0) * 9;
        vec lines[144];   // 16 outputs of each input and position of the kernel
        for (int64_t at = 0; at < 144; at += 16) {
            for (int64_t o = 0; o < 16; o++) {
                const float* from = w + ((o0 + o) * in + i0) * 9 + at;
                if (o0 + o < out && at + 16 <= n) { lines[at + o] = *(const vec*)from; continue; }
                lines[at + o] = vec{};
                for (int64_t l = 0; o0 + o < out && l < n - at; l++) lines[at + o][l] = from[l];
            }
            transpose(lines + at);
        }
        if (back) {   // 16 inputs of each output and position
            for (int64_t at = 0; at < 9; at++) {
                vec square[16];
                for (int64_t i = 0; i < 16; i++) square[i] = lines[i * 9 + at];
                transpose(square);
                for (int64_t i = 0; i < 16; i++) lines[i * 9 + at] = square[i];
            }
        }
        for (int64_t r = 0; r < 16; r++) {
            vec half[6][3];
            for (int j = 0; j < 3; j++) {
                vec column[3], result[6];
                for (int i = 0; i < 3; i++) column[i] = lines[r * 9 + (back ? 8 - (i * 3 + j) : i * 3 + j)];
                of_weight(column, result);
                for (int i = 0; i < 6; i++) half[i][j] = result[i];
            }
            float* to = u + (back ? i0 * O + o0 + r : o0 * I + i0 + r) * 16;
            for (int i = 0; i < 6; i++) {
                vec result[6];
                of_weight(half[i], result);
                for (int j = 0; j < 6; j++) *(vec*)(to + (i * 6 + j) * size) = result[j];
            }
        }
    }
}
// 36 matrices of gradients (in x out) back to gradients of weights out x in x 3 x 3
static void weights_of_matrices(const float* u, int64_t out, int64_t in, float* w) {
    const int64_t O = (out + 15) / 16, I = (in + 15) / 16, size = distance(I * 16, O);
    #pragma omp for schedule(static)
    for (int64_t k = 0; k < O * I; k++) {
        const int64_t o0 = k / I * 16, i0 = k % I * 16, n = std::min<int64_t>(16, in - i0) * 9;
        vec lines[144];
        for (int64_t r = 0; r < 16; r++) {
            vec half[3][6];
            const float* from = u + (o0 * I + i0 + r) * 16;
            for (int j = 0; j < 6; j++) {
                vec column[6], result[3];
                for (int i = 0; i < 6; i++) column[i] = *(const vec*)(from + (i * 6 + j) * size);
                to_weight(column, result);
                for (int i = 0; i < 3; i++) half[i][j] = result[i];
            }
            for (int i = 0; i < 3; i++) to_weight(half[i], lines + r * 9 + i * 3);
        }
        for (int64_t at = 0; at < 144; at += 16) {
            transpose(lines + at);
            for (int64_t o = 0; o < 16 && o0 + o < out; o++) {
                float* to = w + ((o0 + o) * in + i0) * 9 + at;
                if (at + 16 <= n) *(vec*)to = lines[at + o];
                else for (int64_t l = 0; l < n - at; l++) to[l] = lines[at + o][l];
            }
        }
    }
}
}
"""

_CONVOLVE = r"""
    @alias(x, in0) @alias(weight, in1) @alias(bias, in2) @alias(y, out0)
    const bool back = data["back"] > 0, relu = data["relu"] > 0;
    const int64_t I = x_shape1, O = y_shape1, i_all = I * 16, o_all = O * 16;
    const Tiles input(I, x_shape2, x_shape3), result(O, x_shape2, x_shape3);
    const int64_t tiles = x_shape0 * input.rows * input.columns, threads = omp_get_max_threads();
    // as many tiles at a time as give each thread the same number of turns
    const int64_t share = (tiles + threads - 1) / threads, turns = std::max<int64_t>(1, share / TILES);
    const int64_t some = (share + turns - 1) / turns, room = (some + 3) / 4 * 4;
    const int64_t v_size = distance(room, I), m_size = distance(room, O), u_size = distance(i_all, O);
    static Room matrices;
    float* u = matrices.of(F * u_size);
    std::vector<float> b(o_all, 0.f);
    if (!back) std::copy(bias_p, bias_p + bias_shape0, b.begin());
    #pragma omp parallel
    {
        matrices_of_weights(weight_p, weight_shape0, weight_shape1, back, u);
        static thread_local Room inputs, results;
        float *v = inputs.of(F * v_size), *m = results.of(F * m_size);
        #pragma omp for schedule(static)
        for (int64_t t0 = 0; t0 < tiles; t0 += some) {
            const int64_t n = std::min(some, tiles - t0);
            for (int64_t c = 0; c < I; c++)
                for (int64_t t = 0; t < n; t++) tile_of_input(input, x_p, c, t0 + t, v + (c * room + t) * 16, v_size);
            for (int64_t f = 0; f < F; f++)
                product((n + 3) / 4 * 4, O, {v + f * v_size, 16, room * 16}, I, {u + f * u_size, 16, i_all * 16},
                        {m + f * m_size, 16, room * 16});
            for (int64_t c = 0; c < O; c++)
                for (int64_t t = 0; t < n; t++)
                    tile_to_result(result, y_p, c, t0 + t, m + (c * room + t) * 16, m_size, &b[c * 16],
                                   relu ? 0.f : -INFINITY);
        }
    }
"""

# All threads transform some tiles, then share the 36 products among them: no sum depends on the number of threads.
_TO_WEIGHT = r"""
    @alias(x, in0) @alias(dy, in1) @alias(dweight, out0) @alias(dbias, out1)
    const int64_t I = x_shape1, O = dy_shape1, i_all = I * 16, o_all = O * 16;
    const Tiles input(I, x_shape2, x_shape3), result(O, x_shape2, x_shape3);
    const int64_t tiles = x_shape0 * input.rows * input.columns, some = std::min<int64_t>(tiles, 96);
    const int64_t room = (some + 3) / 4 * 4;
    const int64_t v_size = distance(room, I), d_size = distance(room, O), u_size = distance(i_all, O);
    static Room inputs, results, matrices;
    float *v = inputs.of(F * v_size), *d = results.of(F * d_size), *u = matrices.of(F * u_size);
    std::vector<float> sums(some * o_all, 0.f);
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int64_t f = 0; f < F; f++) std::fill_n(u + f * u_size, u_size, 0.f);
        for (int64_t t0 = 0; t0 < tiles; t0 += some) {
            const int64_t n = std::min(some, tiles - t0);
            #pragma omp for collapse(2) schedule(static) nowait
            for (int64_t c = 0; c < I; c++)
                for (int64_t t = 0; t < n; t++) tile_of_input(input, x_p, c, t0 + t, v + (c * room + t) * 16, v_size);
            #pragma omp for collapse(2) schedule(static)
            for (int64_t c = 0; c < O; c++)
                for (int64_t t = 0; t < n; t++)
                    tile_of_result(result, dy_p, c, t0 + t, d + (c * room + t) * 16, d_size,
                                   &sums[(c * some + t) * 16]);
            #pragma omp for collapse(2) schedule(static)
            for (int64_t f = 0; f < F; f++)
                for (int64_t c = 0; c < I; c++)
                    accumulate(n, O, v + f * v_size + c * room * 16, 16, {d + f * d_size, 16, room * 16},
                               {u + f * u_size + c * 256, 16, i_all * 16});
        }
        weights_of_matrices(u, dweight_shape0, dweight_shape1, dweight_p);
    }
    for (int64_t o = 0; o < dbias_shape0; o++) {
        double sum = 0;
        for (int64_t t = 0; t < some; t++) sum += sums[(o / 16 * some + t) * 16 + o % 16];
        dbias_p[o] = sum;
    }
"""

_WHERE_POSITIVE = r"""
    @alias(dy, in0) @alias(y, in1) @alias(dx, out0)
    const int64_t n = in0->num;
    #pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) dx_p[i] = y_p[i] > 0 ? dy_p[i] : 0.f;
"""


def winograd(x, weight, bias, relu=False):
    """3x3 convolution with one row and column of zeros around the input; differentiable in all arguments.

    Args:
        x: N, C/16, H, W, 16.
        weight: C_out, C, 3, 3.
        bias: C_out.
        relu: whether ReLU follows.

    Returns:
        N, C_out/16, H, W, 16.
    """
    return _Winograd.apply(x, weight, bias, relu)


class _Winograd(jt.Function):
    def execute(self, x, weight, bias, relu):
        y = _convolve(x, weight, bias, back=False, relu=relu)
        self.saved, self.positive = (x, weight, bias), y if relu else None
        return y

    def grad(self, dy):
        x, weight, bias = self.saved
        if self.positive is not None:
            dy = jt.code(dy.shape, "float32", [dy, self.positive], cpu_src=_WHERE_POSITIVE)
        dweight, dbias = jt.code([weight.shape, bias.shape], ["float32"] * 2, [x, dy], cpu_header=_HEADER,
                                 cpu_src=_TO_WEIGHT)
        return _convolve(dy, weight, bias, back=True), dweight, dbias, None


def _convolve(x, weight, bias, back, relu=False):
    shape = [x.shape[0], blocks_of(weight.shape[1 if back else 0]), *x.shape[2:4], BLOCK]
    return jt.code(shape, "float32", [x, weight, bias], cpu_header=_HEADER, cpu_src=_CONVOLVE,
                   data={"back": int(back), "relu": int(relu)})
