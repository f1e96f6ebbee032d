"""Scaled dot-product attention on CUDA, for inference: online softmax over tiles of keys, no T x T matrix in memory."""
from jiidm.runtime import jt

# Matrices are channel-major (D x T). A block takes some queries and goes over the keys tile by tile; each query's maximum,
# sum and result are corrected when a tile raises the maximum (Milakov & Gimelshein 2018; Dao et al. 2022).
#
# bfloat16: each of 4 warps takes 16 queries. Queries, scores and results stay in registers as fragments of
# mma.m16n8k16, whose layout of results is that of the first operand of the next product. The next tile of keys and
# values is copied while the present one is worked on.
MATRIX_UNITS = r"""
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <cmath>
#include <cstdint>
#include <cstring>
namespace jittor {
// four 8 x 8 matrices from shared memory; lane l gives the address of row l % 8 of matrix l / 8
static __device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)));
}
static __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint32_t)__cvta_generic_to_shared(row)));
}
// d (16 x 8) += a (16 x 16) * b (16 x 8)
static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
}
"""

BFLOAT16 = r"""
namespace jittor {
typedef __nv_bfloat16 bf16;
constexpr int TILE = 64;         // queries of a block, keys of a tile
constexpr int ROW = TILE + 8;    // of a tile in shared memory: eight rows of 16 bytes then lie in different banks

static __device__ __forceinline__ uint32_t pair(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

// columns `from` to `from` + TILE of the D x T matrix `x`, zero beyond T and, up to PADDED, below D
template <int D, int PADDED, bool ALIGNED>
static __device__ __forceinline__ void copy_tile(bf16* tile, const bf16* __restrict__ x, int from, int T) {
    for (int i = threadIdx.x; i < PADDED * TILE / 8; i += blockDim.x) {
        const int d = i / (TILE / 8), c = i % (TILE / 8) * 8, left = d < D ? T - from - c : 0;
        bf16* to = tile + d * ROW + c;
        if (ALIGNED) __pipeline_memcpy_async(to, left > 0 ? x + int64_t(d) * T + from + c : x, 16, left > 0 ? 0 : 16);
        else for (int j = 0; j < 8; j++) to[j] = j < left ? x[int64_t(d) * T + from + c + j] : __float2bfloat16(0.f);
    }
}

template <int D, bool ALIGNED>
__global__ void __launch_bounds__(128) attention_bf16(const bf16* __restrict__ q, const bf16* __restrict__ k,
                                                      const bf16* __restrict__ v, bf16* __restrict__ out, int T,
                                                      float scale) {
    constexpr int P = (D + 15) / 16 * 16, SIZE = P * ROW;
    extern __shared__ float4 shared[];
    bf16* const tiles = reinterpret_cast<bf16*>(shared);   // keys, values; keys, values of the next tile
    const int blocks = (T + TILE - 1) / TILE, i0 = blockIdx.x % blocks * TILE;
    const int64_t head = int64_t(blockIdx.x / blocks) * D * T;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;

    copy_tile<D, P, ALIGNED>(tiles, q + head, i0, T);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    uint32_t query[P / 16][4];
    #pragma unroll
    for (int d = 0; d < P / 16; d++)
        load_transposed(query[d], tiles + (d * 16 + matrix / 2 * 8 + row) * ROW + warp * 16 + matrix % 2 * 8);
    __syncthreads();

    float result[P / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
    copy_tile<D, P, ALIGNED>(tiles, k + head, 0, T);
    copy_tile<D, P, ALIGNED>(tiles + SIZE, v + head, 0, T);
    __pipeline_commit();
    for (int j0 = 0, stage = 0; j0 < T; j0 += TILE, stage ^= 1) {
        const bf16 *keys = tiles + stage * 2 * SIZE, *values = keys + SIZE;
        if (j0 + TILE < T) {
            copy_tile<D, P, ALIGNED>(tiles + (stage ^ 1) * 2 * SIZE, k + head, j0 + TILE, T);
            copy_tile<D, P, ALIGNED>(tiles + (stage ^ 1) * 2 * SIZE + SIZE, v + head, j0 + TILE, T);
        }
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();

        float score[TILE / 8][4] = {};   // this lane's: rows lane / 4 and that + 8, columns n * 8 + lane % 4 * 2 and that + 1
        #pragma unroll
        for (int d = 0; d < P / 16; d++)
            #pragma unroll
            for (int n = 0; n < TILE / 8; n += 2) {
                uint32_t key[4];
                load_transposed(key, keys + (d * 16 + matrix % 2 * 8 + row) * ROW + n * 8 + matrix / 2 * 8);
                multiply_add(score[n], query[d], key[0], key[1]);
                multiply_add(score[n + 1], query[d], key[2], key[3]);
            }
        if (j0 + TILE > T)
            for (int n = 0; n < TILE / 8; n++) for (int e = 0; e < 4; e++)
                if (j0 + n * 8 + lane % 4 * 2 + e % 2 >= T) score[n][e] = -INFINITY;
        #pragma unroll
        for (int r = 0; r < 2; r++) {   // a row is spread over four lanes
            float high = top[r];
            for (int n = 0; n < TILE / 8; n++) high = fmaxf(high, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
            high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
            const float correction = exp2f((top[r] - high) * scale);
            top[r] = high;
            total[r] *= correction;
            for (int c = 0; c < P / 8; c++) { result[c][2 * r] *= correction; result[c][2 * r + 1] *= correction; }
            for (int n = 0; n < TILE / 8; n++) for (int e = 2 * r; e < 2 * r + 2; e++) {
                score[n][e] = exp2f((score[n][e] - high) * scale);
                total[r] += score[n][e];
            }
        }
        #pragma unroll
        for (int j = 0; j < TILE / 16; j++) {
            const uint32_t weight[4] = {pair(score[2 * j][0], score[2 * j][1]), pair(score[2 * j][2], score[2 * j][3]),
                                        pair(score[2 * j + 1][0], score[2 * j + 1][1]),
                                        pair(score[2 * j + 1][2], score[2 * j + 1][3])};
            #pragma unroll
            for (int c = 0; c < P / 8; c += 2) {
                uint32_t value[4];
                load_matrices(value, values + (c * 8 + matrix / 2 * 8 + row) * ROW + j * 16 + matrix % 2 * 8);
                multiply_add(result[c], weight, value[0], value[1]);
                multiply_add(result[c + 1], weight, value[2], value[3]);
            }
        }
        __syncthreads();   // the next turn overwrites this stage
    }
    // through shared memory, so that neighbours write neighbours
    for (int r = 0; r < 2; r++) {
        total[r] += __shfl_xor_sync(~0u, total[r], 1);
        total[r] += __shfl_xor_sync(~0u, total[r], 2);
        for (int c = 0; c < P / 8; c++) for (int e = 0; e < 2; e++)
            tiles[(c * 8 + lane % 4 * 2 + e) * ROW + warp * 16 + lane / 4 + 8 * r] =
                __float2bfloat16(result[c][2 * r + e] / total[r]);
    }
    __syncthreads();
    constexpr int WIDTH = ALIGNED ? 8 : 1;
    for (int i = threadIdx.x * WIDTH; i < D * TILE; i += blockDim.x * WIDTH) {
        const int c = i / TILE, column = i % TILE;
        if (i0 + column >= T) continue;
        bf16* to = out + head + int64_t(c) * T + i0 + column;
        if (ALIGNED) *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(tiles + c * ROW + column);
        else *to = tiles[c * ROW + column];
    }
}

template <int D>
static void attention_launch(const bf16* q, const bf16* k, const bf16* v, bf16* out, int64_t B, int T) {
    const auto misplaced = [](const void* p) { return uintptr_t(p) % 16 > 0; };
    const bool aligned = T % 8 == 0 && !misplaced(q) && !misplaced(k) && !misplaced(v) && !misplaced(out);
    auto* kernel = aligned ? attention_bf16<D, true> : attention_bf16<D, false>;
    const int bytes = 4 * (D + 15) / 16 * 16 * ROW * sizeof(bf16);
    if (bytes > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    kernel<<<B * ((T + TILE - 1) / TILE), 128, bytes>>>(q, k, v, out, T, 1.44269504f / sqrtf(D));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) LOGf << "attention:" << cudaGetErrorString(error);
}
}
"""

# float32: a block of 16 x 16 threads; each holds an R x R piece of the scores and R rows of the result.
FLOAT32 = r"""
#include <cuda_runtime.h>
#include <cmath>
#include <cstdint>
namespace jittor {
template <int R> struct alignas(4 * R) Vector { float at[R]; };

template <int D> struct Shape {      // so that 51 kB of shared memory are enough for any D
    static constexpr int R = D > 64 ? 2 : 4, SIDE = 16 * R, ROW = SIDE + 4, PADDED = (D + 15) / 16 * 16;
    static constexpr int KEYS = D > ROW ? D * SIDE : ROW * SIDE;   // the weights take the keys' place
    static constexpr int BYTES = (D * SIDE + KEYS + PADDED * ROW) * 4;
};

template <int D, int PADDED, int SIDE, int ROW>
static __device__ __forceinline__ void copy_columns(float* tile, const float* __restrict__ x, int from, int T) {
    #pragma unroll 8
    for (int i = threadIdx.x; i < PADDED * SIDE; i += 256) {
        const int d = i / SIDE, c = i % SIDE;
        tile[d * ROW + c] = d < D && from + c < T ? x[int64_t(d) * T + from + c] : 0.f;
    }
}

template <int D>
__global__ void __launch_bounds__(256) attention_float32(const float* __restrict__ q, const float* __restrict__ k,
                                                         const float* __restrict__ v, float* __restrict__ out, int T,
                                                         float scale) {
    constexpr int R = Shape<D>::R, SIDE = Shape<D>::SIDE, ROW = Shape<D>::ROW, PADDED = Shape<D>::PADDED;
    extern __shared__ float4 shared[];
    float* const queries = reinterpret_cast<float*>(shared);
    float *const keys = queries + D * SIDE, *const weights = keys, *const values = keys + Shape<D>::KEYS;
    const int blocks = (T + SIDE - 1) / SIDE, i0 = blockIdx.x % blocks * SIDE;
    const int64_t head = int64_t(blockIdx.x / blocks) * D * T;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;

    copy_columns<D, D, SIDE, SIDE>(queries, q + head, i0, T);
    float result[R][PADDED / 16] = {}, top[R], total[R];
    for (int r = 0; r < R; r++) { top[r] = -INFINITY; total[r] = 0; }
    for (int j0 = 0; j0 < T; j0 += SIDE) {
        copy_columns<D, D, SIDE, SIDE>(keys, k + head, j0, T);
        copy_columns<D, PADDED, SIDE, ROW>(values, v + head, j0, T);
        __syncthreads();
        float score[R][R] = {};
        #pragma unroll 4
        for (int d = 0; d < D; d++) {
            const auto a = *reinterpret_cast<const Vector<R>*>(queries + d * SIDE + y * R);
            const auto b = *reinterpret_cast<const Vector<R>*>(keys + d * SIDE + x * R);
            for (int r = 0; r < R; r++) for (int c = 0; c < R; c++) score[r][c] += a.at[r] * b.at[c];
        }
        for (int r = 0; r < R; r++) {   // a row is spread over 16 lanes
            float high = top[r];
            for (int c = 0; c < R; c++) {
                if (j0 + x * R + c >= T) score[r][c] = -INFINITY;
                high = fmaxf(high, score[r][c]);
            }
            for (int lanes = 8; lanes; lanes /= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, lanes));
            const float correction = exp2f((top[r] - high) * scale);
            top[r] = high;
            total[r] *= correction;
            for (int c = 0; c < PADDED / 16; c++) result[r][c] *= correction;
            for (int c = 0; c < R; c++) { score[r][c] = exp2f((score[r][c] - high) * scale); total[r] += score[r][c]; }
        }
        __syncthreads();   // nobody needs these keys any more
        for (int r = 0; r < R; r++) {
            Vector<R> row;
            for (int c = 0; c < R; c++) row.at[c] = score[r][c];
            *reinterpret_cast<Vector<R>*>(weights + (y * R + r) * ROW + x * R) = row;
        }
        __syncwarp();   // a row of weights stays within half a warp
        #pragma unroll 2
        for (int j = 0; j < SIDE; j += 4) {
            Vector<4> w[R];
            for (int r = 0; r < R; r++) w[r] = *reinterpret_cast<const Vector<4>*>(weights + (y * R + r) * ROW + j);
            #pragma unroll
            for (int c = 0; c < PADDED / 16; c++) {
                const auto b = *reinterpret_cast<const Vector<4>*>(values + (x + 16 * c) * ROW + j);
                for (int r = 0; r < R; r++) for (int e = 0; e < 4; e++) result[r][c] += w[r].at[e] * b.at[e];
            }
        }
        __syncthreads();
    }
    for (int r = 0; r < R; r++) {
        for (int lanes = 8; lanes; lanes /= 2) total[r] += __shfl_xor_sync(~0u, total[r], lanes);
        for (int c = 0; c < PADDED / 16; c++)
            if (x + 16 * c < D && i0 + y * R + r < T)
                out[head + int64_t(x + 16 * c) * T + i0 + y * R + r] = result[r][c] / total[r];
    }
}

template <int D>
static void attention_launch(const float* q, const float* k, const float* v, float* out, int64_t B, int T) {
    constexpr int BYTES = Shape<D>::BYTES, SIDE = Shape<D>::SIDE;
    auto* kernel = attention_float32<D>;
    if (BYTES > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    kernel<<<B * ((T + SIDE - 1) / SIDE), 256, BYTES>>>(q, k, v, out, T, 1.44269504f / sqrtf(D));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) LOGf << "attention:" << cudaGetErrorString(error);
}
}
"""

_SOURCE = r"""
    @alias(q, in0) @alias(k, in1) @alias(v, in2) @alias(result, out0)
    attention_launch<%d>(q_p, k_p, v_p, result_p, q_shape0, q_shape2);
"""
_DEEPEST = 128  # channels of a head: more would not fit registers and shared memory
_ARCHITECTURES = {"float32": 70, "bfloat16": 80}


def supports(q):
    """Whether `attention_cuda` takes queries of this dtype and depth, for the cards that Jittor compiles for."""
    needed = _ARCHITECTURES.get(str(q.dtype))
    return needed is not None and q.shape[1] <= _DEEPEST and min(jt.flags.cuda_archs, default=0) >= needed


def attention_cuda(q, k, v):
    """softmax(q^T k / sqrt(D)) applied to v, for q, k, v of shape B, D, T, all float32 or all bfloat16.

    The softmax is float32; the weights are rounded to bfloat16 where v is. No gradients. See `supports`.
    """
    header = FLOAT32 if str(q.dtype) == "float32" else MATRIX_UNITS + BFLOAT16
    return jt.code(q.shape, q.dtype, [q, k, v], cuda_header=header, cuda_src=_SOURCE % q.shape[1])
