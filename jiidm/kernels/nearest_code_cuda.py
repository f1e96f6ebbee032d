"""Nearest code of a codebook, by squared distance, on CUDA."""
from jiidm.system.runtime import jt

# A block takes 64 positions; four threads a position share the codes of each tile in shared memory, eight at a time.
# Distances are summed over the channels in order and without fused multiply-adds: as subtractions, squares and sums of
# their own, so that every way of computing them in float32 agrees to the last bit, and with it on the nearest code.
HEADER = r"""
#include <cuda_runtime.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
namespace jittor {
constexpr int POSITIONS = 64, SHARES = 4, AT_ONCE = 8, FLOATS = 8192;

static __global__ void __launch_bounds__(POSITIONS * SHARES) nearest_code_kernel(
        const float* __restrict__ z, const float* __restrict__ codes, int* __restrict__ index, int N, int K, int D,
        int tile) {
    extern __shared__ float4 shared[];
    float* const own = reinterpret_cast<float*>(shared);   // D x POSITIONS
    float* const near = own + D * POSITIONS;               // D x tile
    const int place = threadIdx.x % POSITIONS, share = threadIdx.x / POSITIONS;
    const int64_t first = int64_t(blockIdx.x) * POSITIONS;
    for (int i = threadIdx.x; i < D * POSITIONS; i += blockDim.x) {
        const int64_t n = first + i / D;
        own[i % D * POSITIONS + i / D] = n < N ? z[n * D + i % D] : 0.f;
    }
    float best = INFINITY;
    int at = 0;
    for (int k0 = 0; k0 < K; k0 += tile) {
        __syncthreads();
        for (int i = threadIdx.x; i < D * tile; i += blockDim.x)   // codes beyond the last are infinitely far
            near[i % D * tile + i / D] = k0 + i / D < K ? codes[int64_t(k0) * D + i] : INFINITY;
        __syncthreads();
        for (int k = share * AT_ONCE; k < tile; k += SHARES * AT_ONCE) {
            float distance[AT_ONCE] = {};
            for (int d = 0; d < D; d++) {
                const float x = own[d * POSITIONS + place];
                const float4* c = reinterpret_cast<const float4*>(near + d * tile + k);
                const float4 low = c[0], high = c[1];
                const float y[AT_ONCE] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
                #pragma unroll
                for (int j = 0; j < AT_ONCE; j++) {
                    const float e = __fsub_rn(x, y[j]);
                    distance[j] = __fadd_rn(distance[j], __fmul_rn(e, e));
                }
            }
            #pragma unroll
            for (int j = 0; j < AT_ONCE; j++) if (distance[j] < best) { best = distance[j]; at = k0 + k + j; }
        }
    }
    __shared__ float bests[SHARES][POSITIONS];
    __shared__ int places[SHARES][POSITIONS];
    bests[share][place] = best;
    places[share][place] = at;
    __syncthreads();
    if (share || first + place >= N) return;
    for (int s = 1; s < SHARES; s++) {   // the first among equals
        const float other = bests[s][place];
        if (other < best || (other == best && places[s][place] < at)) { best = other; at = places[s][place]; }
    }
    index[first + place] = at;
}

static void nearest_code_launch(const float* z, const float* codes, int* index, int64_t N, int K, int D) {
    constexpr int STEP = SHARES * AT_ONCE;
    const int tile = std::min(FLOATS / D / STEP * STEP, (K + STEP - 1) / STEP * STEP);
    const int blocks = (N + POSITIONS - 1) / POSITIONS, bytes = D * (POSITIONS + tile) * sizeof(float);
    nearest_code_kernel<<<blocks, POSITIONS * SHARES, bytes>>>(z, codes, index, N, K, D, tile);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) LOGf << "nearest code:" << cudaGetErrorString(error);
}
}
"""

_SOURCE = r"""
    @alias(z, in0) @alias(codes, in1) @alias(index, out0)
    nearest_code_launch(z_p, codes_p, index_p, z_shape0, codes_shape0, z_shape1);
"""
_DEEPEST = 32  # channels: what shared memory holds of positions and codes


def supports(z):
    """Whether `nearest_code_cuda` takes positions of this dtype and depth."""
    return z.dtype == "float32" and z.shape[1] <= _DEEPEST


def nearest_code_cuda(z, codebook):
    """`nearest_code` on CUDA, for what `supports` allows; nothing of size N x K exists. z and codebook are float32."""
    with jt.no_grad():
        return jt.code((z.shape[0],), "int32", [z, codebook], cuda_header=HEADER, cuda_src=_SOURCE)
