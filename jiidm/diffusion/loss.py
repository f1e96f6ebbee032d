"""The hybrid training loss of learned variances (Nichol & Dhariwal 2021), and the weights of its squared error."""
import math

import numpy as np

from jiidm.system.runtime import jt

_BIN = 1 / 255  # half a grey level of 8-bit pixels in [-1, 1]; the likelihood at t = 0 treats latents like them


def hybrid_loss(schedule, output, z0, noise, t):
    """Mean squared error of the prediction, and the variational bound in bits per dimension with the mean detached.

    Args:
        schedule: a `Schedule`.
        output: what the network gives (N, 2C, H, W): epsilon or v, then the variance.
        z0, noise: N, C, H, W.
        t: timesteps (N integers, numpy).

    Returns:
        The two terms, N each. The loss is their sum.
    """
    channels = z0.shape[1]
    predicted, variance = output[:, :channels], output[:, channels:]

    def at(values):
        return jt.array(values[t].astype("float32")).reshape(-1, 1, 1, 1)

    alpha, of_v = schedule.alphas_cumprod, schedule.prediction == "v"
    signal, std = at(alpha**0.5), at((1 - alpha) ** 0.5)
    target = signal * noise - std * z0 if of_v else noise
    mse = ((target - predicted) ** 2).mean((1, 2, 3))
    zt = schedule.add_noise(z0, noise, t)
    to_z0, to_zt, true_log = at(schedule.posterior_z0), at(schedule.posterior_zt), at(schedule.posterior_log_variance)
    fraction = (variance + 1) / 2
    log_variance = fraction * at(np.log(schedule.betas)) + (1 - fraction) * true_log
    if of_v:
        mean = to_z0 * (signal * zt - std * predicted.detach()) + to_zt * zt
    else:
        mean = to_z0 * (zt - std * predicted.detach()) / signal + to_zt * zt
    true_mean = to_z0 * z0 + to_zt * zt

    kl = 0.5 * (log_variance - true_log - 1 + jt.exp(true_log - log_variance)
                + (true_mean - mean) ** 2 * jt.exp(-log_variance))
    first = jt.array((t == 0).astype("float32")).reshape(-1, 1, 1, 1)
    bound = first * -_log_likelihood(z0, mean, 0.5 * log_variance) + (1 - first) * kl
    return mse, bound.mean((1, 2, 3)) / math.log(2)


def weighted(schedule, mse, t):
    """The squared errors (N, Jittor) times the schedule's weights at their timesteps t (N integers, numpy)."""
    return mse if schedule.loss_weights is None else mse * jt.array(schedule.loss_weights[t].astype("float32"))


def _log_likelihood(x, mean, log_std):
    """Log-probability of x under a Gaussian, discretised to the bins of 8-bit pixels; the outer bins are open."""
    inverse, centred = jt.exp(-log_std), x - mean
    upper, lower = _normal_cdf((centred + _BIN) * inverse), _normal_cdf((centred - _BIN) * inverse)
    inner = jt.log(jt.clamp(upper - lower, 1e-12))
    low, high = jt.log(jt.clamp(upper, 1e-12)), jt.log(jt.clamp(1 - lower, 1e-12))
    return jt.ternary(x < -0.999, low, jt.ternary(x > 0.999, high, inner))


def _normal_cdf(x):
    return 0.5 * (1 + jt.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
