// What jiidm's CUDA kernels use of CUDA, on the CPU, so that their arithmetic can be tested without a GPU.
//
// The threads of a block (or of a cluster of blocks) are fibres that run one after the other. A warp runs until it
// waits for other warps, so that a missing barrier shows: it reads what they have not written yet, or overwrites what
// they have not read. `emulation::backwards` begins with the last thread in place of the first; asynchronous copies then
// arrive at once in place of as late as they may. Shared memory is filled with NaN before each block. Threads that wait
// for others that never come end the process.
//
// The test rewrites three things in the kernels' text: #include of CUDA's headers, __shared__ and <<<...>>>.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900
#define CUDART_VERSION 13000
#define LOGf std::abort(), std::cerr

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulation {
constexpr int MOST_BLOCKS = 8, WARP = 32;
static bool backwards = false;
static int processors = 132;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what);
    std::abort();
}

struct Barrier {
    int size = 0, arrived = 0;
    long generation = 0;
};

// what the lanes of a warp hand to each other; two sets, so that one barrier an exchange is enough
struct Warp {
    Barrier barrier;
    alignas(16) unsigned char given[2][WARP][64];
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    std::unique_ptr<char[]> stack;
    bool started, finished;
    int thread, block;       // in the block, in the cluster
    long exchanges;
    struct Copy { void* to; const void* from; size_t size, zeros; };
    std::vector<std::vector<Copy>> copies;   // committed groups, and last the open one
};

struct Array { char* base; size_t size; };   // a __shared__ array of all blocks, and its size in one

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static std::vector<Barrier> blocks;
static std::vector<Array> arrays;
static Barrier cluster;
static std::function<void()> body;
static jmp_buf scheduler;
static Fiber* self;
static int first_block;
static bool progress;
static size_t dynamic_size;
static std::vector<std::vector<char>> dynamic;

inline void yield() {
    if (!_setjmp(self->resume)) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier) {
    const long generation = barrier.generation;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    while (barrier.generation == generation) yield();
    progress = true;
}

inline Warp& warp() { return warps[(self->block * int(blockDim.x) + self->thread) / WARP]; }
inline int lane() { return self->thread % WARP; }

// gives `value` to the warp; returns what all its lanes have given
template <typename T> inline auto exchange(const T& value) {
    static_assert(sizeof(T) <= 64, "");
    Warp& w = warp();
    auto* given = w.given[self->exchanges++ % 2];
    std::memcpy(given[lane()], &value, sizeof(T));
    wait(w.barrier);
    return [given](int lane) -> const T& { return *reinterpret_cast<const T*>(given[lane]); };
}

template <typename T, int LINE> inline T& shared() {
    alignas(16) static char storage[MOST_BLOCKS][(sizeof(T) + 15) / 16 * 16];
    static bool known = false;
    if (!known) {
        arrays.push_back({storage[0], sizeof storage[0]});
        std::memset(storage, 0xff, sizeof storage);
        known = true;
    }
    return *reinterpret_cast<T*>(storage[self->block]);
}

inline char* dynamic_shared() {
    char* p = dynamic[self->block].data();
    return p + (-reinterpret_cast<uintptr_t>(p) & 127);
}

inline void begin() {
    body();
    self->finished = true;
    for (auto& group : self->copies) if (!group.empty()) fail("a thread ends before its asynchronous copies");
    _longjmp(scheduler, 1);
}

inline void enter(Fiber& f) {
    self = &f;
    threadIdx.x = f.thread;
    blockIdx.x = first_block + f.block;
    if (_setjmp(scheduler)) return;
    if (f.started) _longjmp(f.resume, 1);
    f.started = true;
    setcontext(&f.context);
}

// runs a kernel; `size` blocks at a time can see each other
inline void run(dim3 grid, dim3 block, size_t bytes, int size, std::function<void()> call) {
    if (grid.y * grid.z * block.y * block.z != 1 || block.x % WARP || grid.x % size || !grid.x || bytes > 232448)
        fail("a launch that this cannot do");
    gridDim = grid; blockDim = block; body = call;
    fibers.resize(size * block.x);
    warps.resize(fibers.size() / WARP);
    blocks.assign(size, Barrier{int(block.x)});
    for (auto& w : warps) w.barrier = Barrier{WARP};
    cluster = Barrier{int(fibers.size())};
    for (first_block = 0; first_block < int(grid.x); first_block += size) {
        for (auto& a : arrays) std::memset(a.base, 0xff, a.size * MOST_BLOCKS);
        dynamic.assign(size, std::vector<char>(bytes + 128, char(0xff)));
        for (size_t i = 0; i < fibers.size(); i++) {
            Fiber& f = fibers[i];
            constexpr size_t STACK = 64 << 10;
            if (!f.stack) f.stack.reset(new char[STACK]);
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.get();
            f.context.uc_stack.ss_size = STACK;
            f.context.uc_link = nullptr;
            makecontext(&f.context, begin, 0);
            f.started = f.finished = false;
            f.thread = i % block.x; f.block = i / block.x; f.exchanges = 0;
            f.copies.assign(1, {});
        }
        for (int left = fibers.size(); left;) {
            const int before = left;
            bool any = false;
            for (size_t w = 0; w < warps.size(); w++)
                do {
                    progress = false;
                    for (int l = 0; l < WARP; l++) {
                        const size_t i = w * WARP + l;
                        Fiber& f = fibers[backwards ? fibers.size() - 1 - i : i];
                        if (!f.finished) enter(f), left -= f.finished;
                    }
                    any |= progress;
                } while (progress);
            if (!any && left == before) fail("threads wait at a barrier that others never reach");
        }
    }
}
inline void launch(dim3 grid, dim3 block, std::function<void()> call) { run(grid, block, 0, 1, call); }
inline void launch(dim3 grid, dim3 block, size_t bytes, std::function<void()> call) {
    run(grid, block, bytes, 1, call);
}
}  // namespace emulation

// ---- barriers and warps

inline void __syncthreads() { emulation::wait(emulation::blocks[emulation::self->block]); }
inline void __syncwarp() { emulation::wait(emulation::warp().barrier); }
template <typename T> T __shfl_sync(unsigned, T v, int lane) { return emulation::exchange(v)(lane); }
template <typename T> T __shfl_xor_sync(unsigned, T v, int mask) {
    return emulation::exchange(v)(emulation::lane() ^ mask);
}

namespace cooperative_groups {
struct cluster_group {
    void sync() const { emulation::wait(emulation::cluster); }
    template <typename T> T* map_shared_rank(T* here, int rank) const {
        char* p = reinterpret_cast<char*>(here);
        for (auto& a : emulation::arrays) {
            char* own = a.base + emulation::self->block * a.size;
            if (p >= own && p < own + a.size)
                return reinterpret_cast<T*>(p + (rank - emulation::self->block) * int64_t(a.size));
        }
        emulation::fail("map_shared_rank of what is not the block's shared memory");
    }
};
inline cluster_group this_cluster() { return {}; }
}  // namespace cooperative_groups

// ---- numbers

struct __nv_bfloat16 { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 v) {
    const uint32_t bits = uint32_t(v.bits) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {   // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (f != f) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __fsub_rn(float a, float b) { volatile float r = a - b; return r; }
inline float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }
inline float __fadd_rn(float a, float b) { volatile float r = a + b; return r; }
struct alignas(16) float4 { float x, y, z, w; };

// ---- asynchronous copies

namespace emulation {
inline void arrive(std::vector<Fiber::Copy>& group) {
    for (auto& c : group) {
        std::memcpy(c.to, c.from, c.size - c.zeros);
        std::memset(static_cast<char*>(c.to) + c.size - c.zeros, 0, c.zeros);
    }
    group.clear();
}
}  // namespace emulation

inline void __pipeline_memcpy_async(void* to, const void* from, size_t size, size_t zeros = 0) {
    if (uintptr_t(to) % size || (zeros < size && uintptr_t(from) % size)) emulation::fail("a misaligned copy");
    emulation::self->copies.back().push_back({to, from, size, zeros});
    if (emulation::backwards) emulation::arrive(emulation::self->copies.back());
}
inline void __pipeline_commit() { emulation::self->copies.emplace_back(); }
inline void __pipeline_wait_prior(size_t open) {
    auto& copies = emulation::self->copies;
    while (copies.size() > open + 1) {
        emulation::arrive(copies.front());
        copies.erase(copies.begin());
    }
}

// ---- matrix units: the layouts are those of the PTX ISA, "ldmatrix" and "mma.m16n8k16"

namespace emulation {
struct Row { const uint16_t* at; };
template <bool TRANSPOSED> inline void matrices(uint32_t (&out)[4], const void* row) {
    if (uintptr_t(row) % 16) fail("ldmatrix of a misaligned row");
    auto rows = exchange(Row{static_cast<const uint16_t*>(row)});
    for (int m = 0; m < 4; m++) {
        uint16_t v[2];
        for (int e = 0; e < 2; e++)
            v[e] = TRANSPOSED ? rows(8 * m + lane() % 4 * 2 + e).at[lane() / 4]
                              : rows(8 * m + lane() / 4).at[lane() % 4 * 2 + e];
        out[m] = v[0] | uint32_t(v[1]) << 16;
    }
    // the rows may be overwritten after the next barrier, not before every lane has read them
    wait(warp().barrier);
}

struct Operands { uint32_t a[4], b[2]; };
inline float half_of(uint32_t pair, int k) { return __bfloat162float({uint16_t(k ? pair >> 16 : pair)}); }
}  // namespace emulation

namespace jittor {
inline void load_matrices(uint32_t (&out)[4], const void* row) { emulation::matrices<false>(out, row); }
inline void load_transposed(uint32_t (&out)[4], const void* row) { emulation::matrices<true>(out, row); }

inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    auto of = emulation::exchange(emulation::Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
    const int group = emulation::lane() / 4, pair = emulation::lane() % 4;
    for (int e = 0; e < 4; e++) {
        const int row = group + e / 2 * 8, column = pair * 2 + e % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            const auto &left = of(row % 8 * 4 + k % 8 / 2), &right = of(column * 4 + k % 8 / 2);
            sum += emulation::half_of(left.a[row / 8 + k / 8 * 2], k % 2) * emulation::half_of(right.b[k / 8], k % 2);
        }
        d[e] += sum;
    }
}
}  // namespace jittor

// ---- the host's side

typedef int cudaError_t;
typedef void* cudaStream_t;
enum { cudaSuccess = 0, cudaDevAttrMultiProcessorCount = 16, cudaLaunchAttributeClusterDimension = 4,
       cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaLaunchAttribute { int id; struct { dim3 clusterDim; } val; };
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute* attrs = nullptr;
    unsigned numAttrs = 0;
};
inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int* value, int, int) { *value = emulation::processors; return 0; }
inline int cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(int) { return ""; }
template <typename F> int cudaFuncSetAttribute(F*, int, int) { return 0; }
template <typename... Parameters, typename... Arguments>
int cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Parameters...), Arguments... arguments) {
    const int size = c->numAttrs ? c->attrs[0].val.clusterDim.x : 1;
    emulation::run(c->gridDim, c->blockDim, c->dynamicSmemBytes, size, [=] { kernel(arguments...); });
    return 0;
}
