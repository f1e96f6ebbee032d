"""Attention in bfloat16 on CUDA: the text of the kernel."""

# Matrices are channel-major (D x T). A block takes 64 queries and goes over the keys in tiles of 64; each query's
# maximum, sum and result are corrected when a tile raises the maximum (Milakov & Gimelshein 2018; Dao et al. 2022).
#
# Each of 4 warps takes 16 queries. Queries, scores and results stay in registers as fragments of mma.m16n8k16, whose
# layout of results is that of the first operand of the next product. The next tile of keys and values is copied while
# the present one is worked on.
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
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
}
static __device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)) : "memory");
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

static __device__ __forceinline__ uint32_t packed(float low, float high) {
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

        // a lane's: rows lane / 4 and 8 more, columns n * 8 + lane % 4 * 2 and 1 more
        float score[TILE / 8][4] = {};
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
            const float *left = score[2 * j], *right = score[2 * j + 1];
            const uint32_t weight[4] = {packed(left[0], left[1]), packed(left[2], left[3]),
                                        packed(right[0], right[1]), packed(right[2], right[3])};
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
    const int bytes = 4 * ((D + 15) / 16 * 16) * ROW * sizeof(bf16);
    if (bytes > 48 << 10) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    kernel<<<B * ((T + TILE - 1) / TILE), 128, bytes>>>(q, k, v, out, T, 1.44269504f / sqrtf(D));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) LOGf << "attention:" << cudaGetErrorString(error);
}
}
"""
