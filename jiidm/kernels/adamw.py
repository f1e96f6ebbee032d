"""AdamW (Loshchilov & Hutter 2019) in one pass over each parameter, on the CPU."""
from jiidm.kernels import compiled
from jiidm.system.runtime import device_name, jt

_SOURCE = r"""
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


def adamw_step(optimizer):
    """`optimizer.step()` of a `jt.optim.AdamW` whose `n_step` and gradients are set."""
    if not compiled() or device_name() != "cpu":
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
            new_p, new_v, new_m = jt.code([p.shape] * 3, ["float32"] * 3, [p, g, v, m], cpu_header="#include <cmath>",
                                          cpu_src=_SOURCE, data=data)
            p.update(new_p)
            v.update(new_v)
            m.update(new_m)
