"""Nearest code of a codebook, by squared distance."""
from jiidm.kernels import compiled
from jiidm.kernels.nearest_code_cuda import nearest_code_cuda, supports
from jiidm.system.runtime import jt

# Each position runs over the codes with a best distance per vector lane: nothing of size N x codes exists.
_SOURCE = r"""
    @alias(z, in0) @alias(codes, in1) @alias(index, out0)
    const int64_t N = z_shape0, D = z_shape1, K = codes_shape1;
    #pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        const int64_t BLOCK = 1024;
        float distance[BLOCK], best = 1e38f; int at = 0;
        for (int64_t k0 = 0; k0 < K; k0 += BLOCK) {
            const int64_t m = K - k0 < BLOCK ? K - k0 : BLOCK;
            for (int64_t k = 0; k < m; k++) distance[k] = 0;
            for (int64_t d = 0; d < D; d++) {
                const float x = z_p[n * D + d]; const float* c = codes_p + d * K + k0;
                #pragma omp simd
                for (int64_t k = 0; k < m; k++) { float e = x - c[k]; distance[k] += e * e; }
            }
            float low = 1e38f;
            #pragma omp simd reduction(min:low)
            for (int64_t k = 0; k < m; k++) low = distance[k] < low ? distance[k] : low;
            if (low < best) {
                best = low; int64_t k = 0;
                while (distance[k] != low) k++;
                at = k0 + k;
            }
        }
        index_p[n] = at;
    }
"""

_CHUNK = 4096


def nearest_code(z, codebook):
    """Index (N, int32) of the code nearest to each row of z; the first one among equals.

    Args:
        z: N, D.
        codebook: K, D.
    """
    if not compiled() or (jt.flags.use_cuda and not supports(z)):
        return nearest_code_plain(z, codebook)
    if jt.flags.use_cuda:
        return nearest_code_cuda(z, codebook)
    with jt.no_grad():
        return jt.code((z.shape[0],), "int32", [z, codebook.transpose(1, 0)], cpu_src=_SOURCE)


def nearest_code_plain(z, codebook):
    """`nearest_code` in Jittor's own operators, with at most 4096 x K distances at a time."""
    with jt.no_grad():
        parts = []
        for start in range(0, z.shape[0], _CHUNK):
            part = z[start : start + _CHUNK]
            distance = ((part.unsqueeze(1) - codebook.unsqueeze(0)) ** 2).sum(2)
            parts.append(jt.argmin(distance, 1)[0].int32())
        return jt.concat(parts) if len(parts) > 1 else parts[0]
