"""Passes over all parameters of a network, compiled on the CPU: AdamW (Loshchilov & Hutter 2019), averages, norms."""
from jiidm.kernels import compiled
from jiidm.system.runtime import device_name, jt

_ADAMW = r"""
    @alias(p, in0) @alias(g, in1) @alias(v, in2) @alias(m, in3)
    @alias(new_p, out0) @alias(new_v, out1) @alias(new_m, out2)
    const float b0 = data["beta0"], b1 = data["beta1"], kept = data["kept"], step = data["step"];
    const float correction = data["correction"], eps = data["eps"];
    const int64_t n = in0->num;
    #pragma omp parallel for simd schedule(static) if(n > 10000)
    for (int64_t i = 0; i < n; i++) {
        const float a = b0 * m_p[i] + (1 - b0) * g_p[i], b = b1 * v_p[i] + (1 - b1) * g_p[i] * g_p[i];
        new_m_p[i] = a; new_v_p[i] = b;
        new_p_p[i] = p_p[i] * kept - step * a / (std::sqrt(b) * correction + eps);
    }
"""

_TOWARDS = r"""
    @alias(a, in0) @alias(b, in1) @alias(y, out0)
    const float share = data["share"];
    const int64_t n = in0->num;
    #pragma omp parallel for simd schedule(static) if(n > 10000)
    for (int64_t i = 0; i < n; i++) y_p[i] = a_p[i] + (b_p[i] - a_p[i]) * share;
"""

# sums of fixed parts, so that the result does not depend on the number of threads
_SQUARES = r"""
    @alias(x, in0) @alias(y, out0)
    const int64_t n = in0->num, part = 8192, parts = (n + part - 1) / part;
    std::vector<double> sums(parts);
    #pragma omp parallel for schedule(static) if(parts > 1)
    for (int64_t k = 0; k < parts; k++) {
        const int64_t end = std::min(n, (k + 1) * part);
        float sum = 0;
        #pragma omp simd reduction(+:sum)
        for (int64_t i = k * part; i < end; i++) sum += x_p[i] * x_p[i];
        sums[k] = sum;
    }
    double total = 0;
    for (int64_t k = 0; k < parts; k++) total += sums[k];
    y_p[0] = total;
"""


def adamw_step(optimizer):
    """`optimizer.step()` of a `jt.optim.AdamW` whose `n_step` and gradients are set."""
    if not _on_cpu():
        optimizer.step()
        return
    for group in optimizer.param_groups:
        rate, eps = group.get("lr", optimizer.lr), group.get("eps", optimizer.eps)
        beta0, beta1 = group.get("betas", optimizer.betas)
        decay = group.get("weight_decay", optimizer.weight_decay)
        data = {"beta0": beta0, "beta1": beta1, "eps": eps, "kept": 1 - rate * decay,
                "step": rate / (1 - beta0**optimizer.n_step), "correction": (1 - beta1**optimizer.n_step) ** -0.5}
        for p, g, v, m in zip(group["params"], group["grads"], group["values"], group["m"], strict=True):
            if p.is_stop_grad():
                continue
            new_p, new_v, new_m = _code([p.shape] * 3, [p, g, v, m], _ADAMW, data)
            p.update(new_p)
            v.update(new_v)
            m.update(new_m)


def towards(a, b, share):
    """a + (b - a) * share, for two float32 Vars of one shape that take no gradients."""
    if not _on_cpu():
        return a.detach() + (b.detach() - a.detach()) * share
    return _code([a.shape], [a, b], _TOWARDS, {"share": share})[0]


def sum_of_squares(x):
    """The sum of the squares of a Var's values, as a Var of one value."""
    return _code([[1]], [x], _SQUARES, {})[0] if _on_cpu() else (x * x).sum()


def numbers_of(scalars):
    """The numbers of Vars of one fp32 value each. On CUDA in one copy: each `item()` would wait for the GPU anew."""
    if device_name() == "cpu":
        jt.sync(scalars)
        return [scalar.item() for scalar in scalars]
    copies = "".join(f"cudaMemcpyAsync(out0_p + {i}, in{i}_p, sizeof(float), cudaMemcpyDeviceToDevice);\n"
                     for i in range(len(scalars)))
    return jt.code((len(scalars),), "float32", scalars, cuda_header="#include <cuda_runtime.h>",
                   cuda_src=copies).numpy().tolist()


def _on_cpu():
    return compiled() and device_name() == "cpu"


def _code(shapes, inputs, source, data):
    header = "#include <algorithm>\n#include <cmath>\n#include <vector>"
    return jt.code(shapes, ["float32"] * len(shapes), inputs, cpu_header=header, cpu_src=source, data=data)
