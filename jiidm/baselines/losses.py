"""The losses of GauGAN (Park et al. 2019, section 3 and appendix A), which CLADE shares.

Scores and features come from `MultiscaleDiscriminator`: for each scale a list, the scores last.
"""
from jiidm.system.runtime import jt, nn


def discriminator_loss(real, made):
    """Hinge loss of the discriminator: mean max(0, 1 - real) + mean max(0, 1 + made), averaged over the scales."""
    each = [nn.relu(1 - a[-1]).mean() + nn.relu(1 + b[-1]).mean() for a, b in zip(real, made, strict=True)]
    return sum(each) / len(each)


def generator_loss(made):
    """Minus the mean score of made pictures, averaged over the scales."""
    return -sum(found[-1].mean() for found in made) / len(made)


def feature_matching(real, made):
    """L1 between the discriminator's features of real and made pictures: the sum over layers, the mean over scales
    (Wang et al. 2018, eq. 4). No gradient flows to the real ones."""
    total = 0
    for a, b in zip(real, made, strict=True):
        for features, others in zip(a[:-1], b[:-1], strict=True):
            total = total + jt.abs(features.detach() - others).mean()
    return total / len(made)


def style_divergence(mean, log_variance):
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from the standard normal: summed over the channels,
    averaged over N pictures (both N, C)."""
    return 0.5 * (mean * mean + jt.exp(log_variance) - 1 - log_variance).sum(1).mean()
