"""Group normalisation, modulation and SiLU on CUDA, for inference."""
from jiidm.system.runtime import jt

# y = act((xhat * gamma + beta) * scale + shift). A group's statistics are moments (count, mean, squared differences
# from the mean) of x - pivot. The pivot is the group's first number: the difference is nearly exact where the mean is
# large and the std small. Moments of parts are merged by Chan's formula; nothing is ever E[x^2] - E[x]^2.
#
# Two ways, chosen by `group_norm_launch`: a cluster of up to 8 blocks (sm_90 on; else one block) holds a group in its
# registers, so that x is read once, and exchanges moments through distributed shared memory. A group that fits no
# cluster takes two kernels, moments of chunks and normalisation of chunks, and x is read twice.
HEADER = r"""
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <cstdint>
namespace jittor {
constexpr int THREADS = 512, WARPS = THREADS / 32, CLUSTER = 8, PACK = 16;   // PACK: bytes a thread reads at once
constexpr int FEW = 32, MANY = 64, CHUNK = 16;   // numbers a thread holds of a group in registers, of a chunk

template <typename T, int WIDTH> struct alignas(sizeof(T) * WIDTH < PACK ? sizeof(T) * WIDTH : PACK) Pack {
    T at[WIDTH];
};
static __device__ __forceinline__ float number(float v) { return v; }
static __device__ __forceinline__ float number(__nv_bfloat16 v) { return __bfloat162float(v); }
static __device__ __forceinline__ void put(float& to, float v) { to = v; }
static __device__ __forceinline__ void put(__nv_bfloat16& to, float v) { to = __float2bfloat16(v); }

struct Moments { float count, mean, square; };
struct Sizes {
    int count, groups;           // groups of all samples, groups of a sample
    int length, channels, area;  // of a group: its numbers, channels, and numbers of a channel
    int chunks;                  // of a group, where it takes two kernels
    bool one_map, one_channel;   // the maps, the numbers by channel have batch 1
    bool clusters;               // compiled for sm_90 or above
    float eps;
};

static __device__ __forceinline__ Moments merged(Moments a, Moments b) {
    const float count = a.count + b.count, d = b.mean - a.mean, share = count > 0 ? b.count / count : 0.f;
    return {count, a.mean + d * share, a.square + b.square + d * d * a.count * share};
}

static __device__ __forceinline__ Moments over_warp(Moments m) {
    #pragma unroll
    for (int d = 16; d; d /= 2)
        m = merged(m, {__shfl_xor_sync(~0u, m.count, d), __shfl_xor_sync(~0u, m.mean, d),
                       __shfl_xor_sync(~0u, m.square, d)});
    // a merged with b is not to the last bit b merged with a: all take lane 0's
    return {__shfl_sync(~0u, m.count, 0), __shfl_sync(~0u, m.mean, 0), __shfl_sync(~0u, m.square, 0)};
}

static __device__ __forceinline__ Moments over_block(Moments m) {
    __shared__ Moments parts[WARPS];
    m = over_warp(m);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = m;
    __syncthreads();
    return over_warp(threadIdx.x % 32 < WARPS ? parts[threadIdx.x % 32] : Moments{0.f, 0.f, 0.f});
}

// up to NUMBERS of a group in a thread's registers, in packs that lie `step` numbers apart
template <typename X, int WIDTH, int NUMBERS> struct Held {
    static constexpr int DEPTH = NUMBERS / WIDTH;
    Pack<X, WIDTH> pack[DEPTH];
    int filled = 0, first, step;

    __device__ __forceinline__ Held(const X* __restrict__ x, int first, int step, int length)
            : first(first), step(step) {
        #pragma unroll
        for (int h = 0; h < DEPTH; h++) if (first + h * step < length) {
            pack[h] = *reinterpret_cast<const Pack<X, WIDTH>*>(x + first + h * step);
            filled = h + 1;
        }
    }

    __device__ __forceinline__ Moments moments(float pivot) const {
        float sum = 0, square = 0;
        #pragma unroll
        for (int h = 0; h < DEPTH; h++) if (h < filled)
            #pragma unroll
            for (int j = 0; j < WIDTH; j++) sum += number(pack[h].at[j]) - pivot;
        const float count = filled * WIDTH, mean = filled ? sum / count : 0.f;
        #pragma unroll
        for (int h = 0; h < DEPTH; h++) if (h < filled)
            #pragma unroll
            for (int j = 0; j < WIDTH; j++) {
                const float d = number(pack[h].at[j]) - pivot - mean;
                square += d * d;
            }
        return {count, mean, square};
    }

    template <bool MAPS, bool CHANNELS, bool SILU, typename M>
    __device__ __forceinline__ void finish(
            const M* __restrict__ gamma, const M* __restrict__ beta, const float* __restrict__ scale,
            const float* __restrict__ shift, X* __restrict__ y, const Sizes& s, int k, float pivot, Moments m) const {
        const float rstd = rsqrtf(m.square / m.count + s.eps);
        const int64_t map = int64_t(s.one_map ? k % s.groups : k) * s.length;
        const int64_t channel = int64_t(s.one_channel ? k % s.groups : k) * s.channels;
        #pragma unroll
        for (int h = 0; h < DEPTH; h++) if (h < filled) {
            const int i = first + h * step;
            float u[WIDTH];
            for (int j = 0; j < WIDTH; j++) u[j] = (number(pack[h].at[j]) - pivot - m.mean) * rstd;
            if (MAPS) {
                const auto g = *reinterpret_cast<const Pack<M, WIDTH>*>(gamma + map + i);
                const auto b = *reinterpret_cast<const Pack<M, WIDTH>*>(beta + map + i);
                for (int j = 0; j < WIDTH; j++) u[j] = u[j] * number(g.at[j]) + number(b.at[j]);
            }
            if (CHANNELS) {   // few packs reach into the next channel
                int64_t c = channel + i / s.area;
                float a = scale[c], b = shift[c];
                for (int j = 0, inside = i % s.area; j < WIDTH; j++) {
                    if (j && ++inside == s.area) { inside = 0; c++; a = scale[c]; b = shift[c]; }
                    u[j] = u[j] * a + b;
                }
            }
            Pack<X, WIDTH> out;
            for (int j = 0; j < WIDTH; j++) put(out.at[j], SILU ? u[j] / (1.f + __expf(-u[j])) : u[j]);
            *reinterpret_cast<Pack<X, WIDTH>*>(y + int64_t(k) * s.length + i) = out;
        }
    }
};

// `blocks` blocks a group, a cluster where that is more than one; they take turns pack by pack
template <bool MAPS, bool CHANNELS, bool SILU, int NUMBERS, typename X, typename M>
__global__ void __launch_bounds__(THREADS, NUMBERS > FEW ? 1 : 2) group_norm_held(
        const X* __restrict__ x, const M* __restrict__ gamma, const M* __restrict__ beta,
        const float* __restrict__ scale, const float* __restrict__ shift, X* __restrict__ y, Sizes s, int blocks) {
    constexpr int WIDTH = PACK / sizeof(X);
    const int k = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const X* group = x + int64_t(k) * s.length;
    const float pivot = number(group[0]);
    const int first = (block * THREADS + threadIdx.x) * WIDTH;
    const Held<X, WIDTH, NUMBERS> held(group, first, blocks * THREADS * WIDTH, s.length);
    Moments m = over_block(held.moments(pivot));
#if __CUDA_ARCH__ >= 900
    if (blocks > 1) {
        __shared__ Moments parts[CLUSTER];
        auto cluster = cooperative_groups::this_cluster();
        cluster.sync();   // the other blocks run: their shared memory may be written
        if (threadIdx.x < blocks) *cluster.map_shared_rank(parts + block, threadIdx.x) = m;
        cluster.sync();
        m = parts[0];
        for (int b = 1; b < blocks; b++) m = merged(m, parts[b]);
    }
#endif
    held.template finish<MAPS, CHANNELS, SILU>(gamma, beta, scale, shift, y, s, k, pivot, m);
}

template <int WIDTH, typename X>
__global__ void __launch_bounds__(THREADS) group_norm_moments(const X* __restrict__ x, Sizes s, Moments* parts) {
    constexpr int STEP = THREADS * WIDTH;
    const int k = blockIdx.x / s.chunks, chunk = blockIdx.x % s.chunks;
    const X* group = x + int64_t(k) * s.length;
    const Held<X, WIDTH, CHUNK> held(group, chunk * CHUNK * THREADS + threadIdx.x * WIDTH, STEP, s.length);
    const Moments m = over_block(held.moments(number(group[0])));
    if (threadIdx.x == 0) parts[blockIdx.x] = m;
}

template <bool MAPS, bool CHANNELS, bool SILU, int WIDTH, typename X, typename M>
__global__ void __launch_bounds__(THREADS) group_norm_chunks(
        const X* __restrict__ x, const M* __restrict__ gamma, const M* __restrict__ beta,
        const float* __restrict__ scale, const float* __restrict__ shift, X* __restrict__ y, Sizes s,
        const Moments* __restrict__ parts) {
    constexpr int STEP = THREADS * WIDTH;
    const int id = gridDim.x - 1 - blockIdx.x;   // backwards: what was read last is still in the cache
    const int k = id / s.chunks, chunk = id % s.chunks;
    const X* group = x + int64_t(k) * s.length;
    const Held<X, WIDTH, CHUNK> held(group, chunk * CHUNK * THREADS + threadIdx.x * WIDTH, STEP, s.length);
    Moments m = {0.f, 0.f, 0.f};
    for (int c = threadIdx.x; c < s.chunks; c += THREADS) m = merged(m, parts[int64_t(k) * s.chunks + c]);
    held.template finish<MAPS, CHANNELS, SILU>(gamma, beta, scale, shift, y, s, k, number(group[0]), over_block(m));
}

template <bool MAPS, bool CHANNELS, bool SILU, typename X, typename M>
static void group_norm_launch(const X* x, const M* gamma, const M* beta, const float* scale, const float* shift, X* y,
                              Moments* parts, Sizes s) {
    constexpr int WIDTH = PACK / sizeof(X);
    auto* held = group_norm_held<MAPS, CHANNELS, SILU, FEW, X, M>;
    int device, processors;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    const auto placed = [](const void* p) { return uintptr_t(p) % PACK == 0; };
    const bool packed = s.length % WIDTH == 0 && placed(x) && placed(y) && placed(gamma) && placed(beta);
    // more blocks a group while it does not fit, or while processors would idle
    int blocks = 1;
    while (s.clusters && blocks < CLUSTER && s.length > blocks * THREADS * WIDTH
           && (s.length > blocks * THREADS * FEW || s.count * blocks < processors)) blocks *= 2;
    // without clusters, few groups are better split over more blocks in two kernels
    const int most = s.clusters || s.count >= processors ? MANY : CHUNK;
    if (packed && s.length <= blocks * THREADS * most) {
        if (s.length > blocks * THREADS * FEW) held = group_norm_held<MAPS, CHANNELS, SILU, MANY, X, M>;
        if (blocks == 1) held<<<s.count, THREADS>>>(x, gamma, beta, scale, shift, y, s, blocks);
#if CUDART_VERSION >= 11080
        else {
            cudaLaunchAttribute cluster;
            cluster.id = cudaLaunchAttributeClusterDimension;
            cluster.val.clusterDim.x = blocks;
            cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
            cudaLaunchConfig_t config = {};
            config.gridDim = dim3(s.count * blocks);
            config.blockDim = dim3(THREADS);
            config.attrs = &cluster;
            config.numAttrs = 1;
            cudaLaunchKernelEx(&config, held, x, gamma, beta, scale, shift, y, s, blocks);
        }
#endif
    } else {
        auto* first = packed ? group_norm_moments<WIDTH, X> : group_norm_moments<1, X>;
        auto* second = packed ? group_norm_chunks<MAPS, CHANNELS, SILU, WIDTH, X, M>
                              : group_norm_chunks<MAPS, CHANNELS, SILU, 1, X, M>;
        first<<<s.count * s.chunks, THREADS>>>(x, s, parts);
        second<<<s.count * s.chunks, THREADS>>>(x, gamma, beta, scale, shift, y, s, parts);
    }
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) LOGf << "group norm:" << cudaGetErrorString(error);
}
}
"""

_SOURCE = r"""
    @alias(x, in0) @alias(y, out0) @alias(parts, out1)
    Sizes s;
    s.groups = data["groups"]; s.channels = x_shape1 / s.groups; s.area = x_shape2 * x_shape3;
    s.count = x_shape0 * s.groups; s.length = s.channels * s.area; s.chunks = data["chunks"];
    s.one_map = data["one_map"]; s.one_channel = data["one_channel"];
    s.clusters = data["clusters"]; s.eps = data["eps"];
    group_norm_launch<%s>(x_p, %s, y_p, reinterpret_cast<Moments*>(parts_p), s);
"""
_CHUNK = 8192  # CHUNK * THREADS


def group_norm_cuda(x, groups, eps, maps=None, modulation=None, silu=True):
    """`group_norm` on CUDA, in x's dtype; statistics are float32. No gradients.

    Args:
        x: N, C, H, W in float32 or bfloat16.
        groups, eps, silu: as there.
        maps: gamma and beta (both 1 or N, C, H, W), in x's dtype or float32.
        modulation: scale and shift (both C, or 1 or N, C).

    Raises:
        ValueError: maps or modulation of another size; the kernel would read beyond their end.
    """
    n, c, height, width = x.shape
    if modulation is not None:
        modulation = [v.float32().reshape(-1, c) for v in modulation]
    batches = []
    for pair, rest in ((maps, [c, height, width]), (modulation, [c])):
        extents = {tuple(v.shape) for v in pair or ()}
        if len(extents) > 1 or not extents <= {(1, *rest), (n, *rest)}:
            raise ValueError(f"group norm of {x.shape} modulated by {extents}")
        batches.append(extents.pop()[0] if extents else n)
    given = [*(maps or ()), *(modulation or ())]
    names = iter(f"in{i + 1}_p" for i in range(len(given)))
    pointers = [next(names) if pair is not None else absent
                for pair, absent in ((maps, "decltype(x_p)(nullptr)"), (modulation, "(const float*)nullptr"))
                for _ in range(2)]
    flags = ", ".join("true" if flag else "false" for flag in (maps is not None, modulation is not None, silu))
    chunks = -(-(c // groups) * height * width // _CHUNK)
    y, _ = jt.code(
        [x.shape, (n * groups * chunks * 3,)], [x.dtype, "float32"], [x, *given],
        cuda_header=HEADER, cuda_src=_SOURCE % (flags, ", ".join(pointers)),
        data={"groups": groups, "eps": eps, "chunks": chunks, "one_map": int(batches[0] < n),
              "one_channel": int(batches[1] < n), "clusters": int(min(jt.flags.cuda_archs, default=0) >= 90)},
    )
    return y
