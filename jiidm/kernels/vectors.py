"""C++ that several CPU kernels share: vectors of 16 floats. GCC's vector types compile to whatever the machine has."""

HEADER = r"""
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
namespace jittor {
typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(64)));

// 2^n e^r with n the integer next to x / ln 2; e^r is a minimax polynomial (error 1e-7)
static inline vec vec_exp(vec x) {
    x = x > 88.f ? vec{} + 88.f : x;
    x = x < -87.f ? vec{} - 87.f : x;
    ivec n = __builtin_convertvector(x * 1.44269504f + 127.5f, ivec);   // with the exponent's bias: never negative
    vec r = x + (127.f - __builtin_convertvector(n, vec)) * 0.693147181f;
    vec p = r * 8.2976548e-3f + 4.1915383e-2f;
    p = p * r + 0.16667575f;
    p = p * r + 0.49998894f;
    p = p * r + 0.9999997f;
    p = p * r + 1.0000001f;
    return p * (vec)(n << 23);
}
}
"""
