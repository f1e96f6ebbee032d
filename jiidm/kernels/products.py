"""C++ that the convolutions share: matrix products of tiles held in registers, and room that is kept between calls."""
from jiidm.kernels.layout import TRANSPOSE

# A tile of the result is R rows x V vectors. AVX-512 has 32 registers; elsewhere a vec is two of 16.
HEADER = TRANSPOSE + r"""
#include <omp.h>
#include <cstdlib>
namespace jittor {
#ifdef __AVX512F__
static const int WIDEST = 4;
#else
static const int WIDEST = 1;
#endif

// memory that is kept: fresh pages cost as much as what is computed in them
struct Room {
    float* p = nullptr; int64_t size = 0;
    float* of(int64_t n) {
        if (n > size) { free(p); p = (float*)aligned_alloc(64, (n * 4 + 63) / 64 * 64); size = n; }
        return p;
    }
    ~Room() { free(p); }
};

// Rows of a matrix whose columns lie in blocks of 16: element (r, k) is data[r * row + k / 16 * block + k % 16].
struct Rows { const float* data; int64_t row, block; };
// Rows of vectors: vector v of row r is data[r * row + v * vec]
struct Vectors { float* data; int64_t row, vector; };

// C = bias + A B for R rows of A with 16 * blocks columns and V vectors of B; bias is a row, or null for nothing
template <int R, int V> __attribute__((always_inline))
static inline void multiply(Rows a, int64_t blocks, Vectors b, Vectors c, const float* bias) {
    vec acc[R][V];
    #pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) acc[r][v] = bias ? *(const vec*)(bias + 16 * v) : vec{};
    const float *x = a.data, *y = b.data;
    for (int64_t i = 0; i < blocks; i++, x += a.block)
        for (int k = 0; k < 16; k++, y += b.row) {
            vec column[V];
            #pragma GCC unroll 4
            for (int v = 0; v < V; v++) column[v] = *(const vec*)(y + v * b.vector);
            #pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const float s = x[r * a.row + k];
                #pragma GCC unroll 4
                for (int v = 0; v < V; v++) acc[r][v] += s * column[v];
            }
        }
    #pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) *(vec*)(c.data + r * c.row + v * c.vector) = acc[r][v];
}
template <int R, int V> __attribute__((noinline))
static void multiply_rows(int64_t rows, Rows a, int64_t blocks, Vectors b, Vectors c, const float* bias) {
    for (int64_t r = 0; r < rows;) {
        const int64_t left = rows - r;
        const Rows ar = {a.data + r * a.row, a.row, a.block};
        const Vectors cr = {c.data + r * c.row, c.row, c.vector};
        if (left >= R) { multiply<R, V>(ar, blocks, b, cr, bias); r += R; }
        else if (left >= 4) { multiply<4, V>(ar, blocks, b, cr, bias); r += 4; }
        else { multiply<1, V>(ar, blocks, b, cr, bias); r += 1; }
    }
}
// the same for any number of rows and vectors
static void product(int64_t rows, int64_t vectors, Rows a, int64_t blocks, Vectors b, Vectors c,
                    const float* bias = nullptr) {
    for (int64_t v = 0; v < vectors;) {
        const int64_t left = vectors - v;
        const Vectors bv = {b.data + v * b.vector, b.row, b.vector}, cv = {c.data + v * c.vector, c.row, c.vector};
        const float* bias_v = bias ? bias + 16 * v : nullptr;
        if (WIDEST == 1 || left == 1) {
            multiply_rows<WIDEST == 1 ? 6 : 16, 1>(rows, a, blocks, bv, cv, bias_v); v += 1;
        } else if (left % 3 == 0 || left == 5 || left > 8) {
            multiply_rows<8, WIDEST == 1 ? 1 : 3>(rows, a, blocks, bv, cv, bias_v); v += 3;
        } else if (left >= 4) {
            multiply_rows<6, WIDEST == 1 ? 1 : 4>(rows, a, blocks, bv, cv, bias_v); v += 4;
        } else {
            multiply_rows<12, WIDEST == 1 ? 1 : 2>(rows, a, blocks, bv, cv, bias_v); v += 2;
        }
    }
}

// C += sum over k of column k of A, which lies contiguous, times row k of B: R rows x V vectors
template <int R, int V> __attribute__((noinline))
static void gather(int64_t count, const float* a, int64_t step, Vectors b, Vectors c) {
    vec acc[R][V] = {};
    const float* y = b.data;
    for (int64_t k = 0; k < count; k++, a += step, y += b.row) {
        vec row[V];
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) row[v] = *(const vec*)(y + v * b.vector);
        #pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const float s = a[r];
            #pragma GCC unroll 4
            for (int v = 0; v < V; v++) acc[r][v] += s * row[v];
        }
    }
    #pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        #pragma GCC unroll 4
        for (int v = 0; v < V; v++) *(vec*)(c.data + r * c.row + v * c.vector) += acc[r][v];
}
template <int R, int V> static void gather_block(int64_t count, const float* a, int64_t step, Vectors b, Vectors c) {
    for (int64_t r = 0; r < 16; r += R) gather<R, V>(count, a + r, step, b, {c.data + r * c.row, c.row, c.vector});
}
// C += A^T B for a block of 16 columns of A and any number of vectors of B
static void accumulate(int64_t count, int64_t vectors, const float* a, int64_t step, Vectors b, Vectors c) {
    for (int64_t v = 0; v < vectors;) {
        const int64_t left = vectors - v;
        const Vectors bv = {b.data + v * b.vector, b.row, b.vector}, cv = {c.data + v * c.vector, c.row, c.vector};
        if (WIDEST == 1 || left == 1) { gather_block<WIDEST == 1 ? 4 : 16, 1>(count, a, step, bv, cv); v += 1; }
        else if (left == 2 || left == 4) { gather_block<8, WIDEST == 1 ? 1 : 2>(count, a, step, bv, cv); v += 2; }
        else { gather_block<8, WIDEST == 1 ? 1 : 3>(count, a, step, bv, cv); v += 3; }
    }
}
}
"""
