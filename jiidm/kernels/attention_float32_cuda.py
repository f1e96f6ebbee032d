"""Attention in float32 on CUDA: the text of the kernel."""

# The way of attention_bfloat16_cuda.py with ordinary arithmetic. A block has 16 x 16 threads; each holds an R x R
# piece of the scores and R rows of the result.
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
