"""Scaled dot-product attention without a matrix of all pairs in memory."""
from jiidm.kernels import compiled
from jiidm.kernels.attention_cuda import attention_cuda
from jiidm.kernels.attention_cuda import supports as attention_cuda_supports
from jiidm.kernels.vectors import HEADER
from jiidm.system.runtime import jt, nn, transposed

# All matrices are channel-major (D x T), as a 1x1 convolution leaves them. Two micro-kernels do the work on 4 x 64
# resp. 4 x 4 tiles held in registers: `rows` adds sum_k A[r, k] B[k, :] to row r, `dots` takes inner products of rows.
# T is padded to a multiple of 64 with keys whose weight is 0.
_HEADER = HEADER + r"""
namespace jittor {
static const int64_t W = 64, QUERIES = 64, KEYS = 128;

// C[r][0:cols] += sum_k A[r * sr + k * sk] * B[k][0:cols] for r < rows; ldb and ldc are row strides, cols % W == 0
static void rows(int64_t rows, int64_t cols, int64_t depth, const float* A, int64_t sr, int64_t sk,
                 const float* B, int64_t ldb, float* C, int64_t ldc) {
    for (int64_t j = 0; j < cols; j += W) for (int64_t k0 = 0; k0 < depth; k0 += W) {   // W x W of B at a time
        for (int64_t r = 0; r < rows; r += 4) {
            const int64_t h = std::min<int64_t>(4, rows - r);
            vec acc[4][4] = {};
            for (int64_t k = k0; k < std::min(k0 + W, depth); k++) {
                const float* b = B + k * ldb + j;
                vec b0 = *(const vec*)b, b1 = *(const vec*)(b + 16);
                vec b2 = *(const vec*)(b + 32), b3 = *(const vec*)(b + 48);
                #pragma GCC unroll 4
                for (int q = 0; q < 4; q++) {
                    const float s = A[(r + (q < h ? q : 0)) * sr + k * sk];
                    acc[q][0] += s * b0; acc[q][1] += s * b1; acc[q][2] += s * b2; acc[q][3] += s * b3;
                }
            }
            for (int q = 0; q < h; q++)
                for (int v = 0; v < 4; v++) *(vec*)(C + (r + q) * ldc + j + 16 * v) += acc[q][v];
        }
    }
}

// lane i of the result is the sum of the lanes of a[i]; each round halves the vectors and what a lane still has to add
template <int STEP> static vec halved(vec a, vec b) {
    ivec low, high;   // lanes of a and b by turns, STEP at a time; constants after optimisation
    for (int l = 0; l < 16; l++) {
        low[l] = (l & STEP) ? (l - STEP) + 16 : l;
        high[l] = low[l] + STEP;
    }
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}
static vec sums(const vec* a) {
    vec t[8], u[4];
    for (int i = 0; i < 8; i++) t[i] = halved<1>(a[2 * i], a[2 * i + 1]);
    for (int i = 0; i < 4; i++) u[i] = halved<2>(t[2 * i], t[2 * i + 1]);
    return halved<8>(halved<4>(u[0], u[1]), halved<4>(u[2], u[3]));
}

// C[r * cr + c * cc] += sum_j A[r][j] * B[c][j]
static void dots(int64_t rows, int64_t cols, int64_t length, const float* A, int64_t lda,
                 const float* B, int64_t ldb, float* C, int64_t cr, int64_t cc) {
    for (int64_t c = 0; c < cols; c += 4) for (int64_t r = 0; r < rows; r += 4) {
        const int64_t hr = std::min<int64_t>(4, rows - r), hc = std::min<int64_t>(4, cols - c);
        const float *a[4], *b[4];
        for (int q = 0; q < 4; q++) {
            a[q] = A + (r + (q < hr ? q : 0)) * lda; b[q] = B + (c + (q < hc ? q : 0)) * ldb;
        }
        vec acc[4][4] = {};
        for (int64_t j = 0; j < length; j += 16) {
            vec bv[4];
            #pragma GCC unroll 4
            for (int q = 0; q < 4; q++) bv[q] = *(const vec*)(b[q] + j);
            #pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                vec av = *(const vec*)(a[p] + j);
                #pragma GCC unroll 4
                for (int q = 0; q < 4; q++) acc[p][q] += av * bv[q];
            }
        }
        const vec s = sums(acc[0]);
        for (int p = 0; p < hr; p++) for (int q = 0; q < hc; q++) C[(r + p) * cr + (c + q) * cc] += s[4 * p + q];
    }
}

// the D x T matrix with its rows padded by zeros to P
static std::vector<float> padded(const float* x, int64_t D, int64_t T, int64_t P) {
    std::vector<float> out(D * P, 0.f);
    for (int64_t c = 0; c < D; c++) memcpy(&out[c * P], x + c * T, T * sizeof(float));
    return out;
}
// the same cut into tiles of W columns, each of them D x W: what `rows` reads then fits the first-level cache
static std::vector<float> tiled(const float* x, int64_t D, int64_t T, int64_t P) {
    std::vector<float> out(D * P, 0.f);
    for (int64_t j = 0; j < T; j += W)
        for (int64_t c = 0; c < D; c++)
            memcpy(&out[j * D + c * W], x + c * T + j, std::min(W, T - j) * sizeof(float));
    return out;
}
// Turns a row of scores into exp((score - top) * scale), top being the largest so far, and adds them to the row's sum.
// Returns what the sum and the results so far are worth under the new top (Milakov & Gimelshein 2018).
static float weigh(float* s, int64_t keys, float scale, float& top, float& sum) {
    vec most = vec{} + top, total = {};
    for (int64_t j = 0; j < keys; j += 16) { vec v = *(vec*)(s + j); most = v > most ? v : most; }
    const float before = top;
    for (int l = 0; l < 16; l++) top = std::max(top, most[l]);
    for (int64_t j = 0; j < keys; j += 16) {
        vec e = vec_exp((*(vec*)(s + j) - top) * scale);
        *(vec*)(s + j) = e; total += e;
    }
    const float worth = std::exp((before - top) * scale);
    sum *= worth;
    for (int l = 0; l < 16; l++) sum += total[l];
    return worth;
}
}
"""

# Keys are taken some at a time, so that they, the scores and the results of the queries stay in the second-level cache.
_FORWARD = r"""
    @alias(q, in0) @alias(k, in1) @alias(v, in2) @alias(out, out0) @alias(lse, out1)
    const int64_t B = q_shape0, D = q_shape1, T = q_shape2, P = (T + W - 1) / W * W;
    const int64_t blocks = (T + QUERIES - 1) / QUERIES;
    const float scale = data["scale"];
    for (int64_t g = 0; g < B; g += 64) {   // padded copies of at most 64 heads at a time
        const int64_t heads = std::min<int64_t>(64, B - g);
        std::vector<std::vector<float>> ks(heads), vs(heads);
        #pragma omp parallel
        {
            #pragma omp for schedule(static)
            for (int64_t b = 0; b < heads; b++) {
                ks[b] = tiled(k_p + (g + b) * D * T, D, T, P); vs[b] = padded(v_p + (g + b) * D * T, D, T, P);
            }
            std::vector<float> score(QUERIES * KEYS), result(QUERIES * D);
            #pragma omp for schedule(dynamic)
            for (int64_t w = 0; w < heads * blocks; w++) {
                const int64_t b = w / blocks, i0 = w % blocks * QUERIES, n = std::min<int64_t>(QUERIES, T - i0);
                const int64_t o = (g + b) * D * T;
                float top[QUERIES], sum[QUERIES] = {}, worth[QUERIES] = {};
                std::fill_n(top, QUERIES, -1e30f);
                std::fill(result.begin(), result.end(), 0.f);
                for (int64_t j0 = 0; j0 < P; j0 += KEYS) {
                    const int64_t keys = std::min<int64_t>(KEYS, P - j0);
                    std::fill(score.begin(), score.end(), 0.f);
                    for (int64_t j = 0; j < keys; j += W)
                        rows(n, W, D, q_p + o + i0, 1, T, &ks[b][(j0 + j) * D], W, &score[j], KEYS);
                    for (int64_t i = 0; i < n; i++) {
                        float* s = &score[i * KEYS];
                        if (j0 + keys > T) std::fill(s + T - j0, s + keys, -1e30f);
                        worth[i] = weigh(s, keys, scale, top[i], sum[i]);
                    }
                    for (int64_t c = 0; c < D; c++)
                        for (int64_t i = 0; i < QUERIES; i++) result[c * QUERIES + i] *= worth[i];
                    dots(n, D, keys, score.data(), KEYS, &vs[b][j0], P, result.data(), 1, QUERIES);
                }
                for (int64_t i = 0; i < n; i++) lse_p[(g + b) * T + i0 + i] = top[i] * scale + std::log(sum[i]);
                for (int64_t c = 0; c < D; c++)
                    for (int64_t i = 0; i < n; i++) out_p[o + c * T + i0 + i] = result[c * QUERIES + i] / sum[i];
            }
        }
    }
"""

_BACKWARD = r"""
    @alias(q, in0) @alias(k, in1) @alias(v, in2) @alias(out, in3) @alias(lse, in4) @alias(dout, in5)
    @alias(dq, out0) @alias(dk, out1) @alias(dv, out2)
    const int64_t B = q_shape0, D = q_shape1, T = q_shape2, P = (T + W - 1) / W * W;
    const float scale = data["scale"];
    #pragma omp parallel for schedule(dynamic)
    for (int64_t b = 0; b < B; b++) {
        const int64_t o = b * D * T;
        auto kb = padded(k_p + o, D, T, P), vb = padded(v_p + o, D, T, P);
        std::vector<float> p(QUERIES * P), ds(QUERIES * P), dkb(D * P, 0.f), dvb(D * P, 0.f);
        std::fill_n(dq_p + o, D * T, 0.f);
        for (int64_t i0 = 0; i0 < T; i0 += QUERIES) {
            const int64_t n = std::min<int64_t>(QUERIES, T - i0);
            std::fill(p.begin(), p.end(), 0.f); std::fill(ds.begin(), ds.end(), 0.f);
            rows(n, P, D, q_p + o + i0, 1, T, kb.data(), P, p.data(), P);
            rows(n, P, D, dout_p + o + i0, 1, T, vb.data(), P, ds.data(), P);
            for (int64_t i = 0; i < n; i++) {
                float delta = 0;
                for (int64_t c = 0; c < D; c++) delta += out_p[o + c * T + i0 + i] * dout_p[o + c * T + i0 + i];
                const float l = lse_p[b * T + i0 + i];
                float* pi = &p[i * P]; float* di = &ds[i * P];
                for (int64_t j = 0; j < T; j++) {
                    pi[j] = std::exp(pi[j] * scale - l); di[j] = pi[j] * (di[j] - delta) * scale;
                }
                for (int64_t j = T; j < P; j++) pi[j] = di[j] = 0;
            }
            dots(n, D, P, ds.data(), P, kb.data(), P, dq_p + o + i0, 1, T);
            rows(D, P, n, q_p + o + i0, T, 1, ds.data(), P, dkb.data(), P);
            rows(D, P, n, dout_p + o + i0, T, 1, p.data(), P, dvb.data(), P);
        }
        for (int64_t c = 0; c < D; c++) {
            memcpy(dk_p + o + c * T, &dkb[c * P], T * sizeof(float));
            memcpy(dv_p + o + c * T, &dvb[c * P], T * sizeof(float));
        }
    }
"""


def attention(q, k, v):
    """softmax(q^T k / sqrt(D)) applied to v, without a T x T matrix in memory.

    Compiled on the CPU, forward and backward, and on CUDA, forward.

    Args:
        q, k, v: B, D, T, where B counts samples times heads; fp32, on CUDA also bfloat16.

    Returns:
        B, D, T.
    """
    if not compiled() or (jt.flags.use_cuda and not (jt.flags.no_grad and attention_cuda_supports(q))):
        return attention_plain(q, k, v)
    return attention_cuda(q, k, v) if jt.flags.use_cuda else _Attention.apply(q, k, v)


def attention_plain(q, k, v):
    """`attention` in Jittor's own operators, the softmax in fp32."""
    scale = q.shape[1] ** -0.25
    weight = nn.matmul(transposed(q * scale, 0, 2, 1), k * scale)
    weight = nn.softmax(weight.float32(), dim=-1).cast(q.dtype)
    return nn.bmm_transpose(v, weight)


class _Attention(jt.Function):
    def execute(self, q, k, v):
        self.data = {"scale": q.shape[1] ** -0.5}
        out, lse = jt.code(
            [q.shape, (q.shape[0], q.shape[2])], ["float32"] * 2, [q, k, v],
            cpu_header=_HEADER, cpu_src=_FORWARD, data=self.data,
        )
        self.saved = q, k, v, out, lse
        return out

    def grad(self, dout):
        return tuple(jt.code(
            [self.saved[0].shape] * 3, ["float32"] * 3, [*self.saved, dout],
            cpu_header=_HEADER, cpu_src=_BACKWARD, data=self.data,
        ))
