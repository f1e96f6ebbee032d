"""The losses of GauGAN (Park et al. 2019, section 3 and appendix A), which CLADE shares.

Scores and features come from `MultiscaleDiscriminator`: for each scale a list, the scores last.
"""
from jiidm.system.runtime import jt
from jiidm.training import adversarial


def discriminator_loss(real, fake):
    """Hinge loss of the discriminator: mean max(0, 1 - real) + mean max(0, 1 + fake), averaged over the scales."""
    return 2 * sum(adversarial.hinge_loss(a[-1], b[-1]) for a, b in zip(real, fake, strict=True)) / len(fake)


def generator_loss(fake):
    """Minus the mean score of fake pictures, averaged over the scales."""
    return sum(adversarial.generator_loss(features[-1]) for features in fake) / len(fake)


def feature_matching(real, fake):
    """L1 between the discriminator's features of real and fake pictures: the sum over layers, the mean over scales
    (Wang et al. 2018, eq. 4). No gradient flows to the real ones."""
    total = 0
    for a, b in zip(real, fake, strict=True):
        for expected, found in zip(a[:-1], b[:-1], strict=True):
            total = total + jt.abs(expected.detach() - found).mean()
    return total / len(fake)


def style_divergence(mean, log_variance):
    """Kullback-Leibler divergence of N(mean, exp(log_variance)) from the standard normal: summed over the channels,
    averaged over N pictures (both N, C)."""
    return 0.5 * (mean * mean + jt.exp(log_variance) - 1 - log_variance).sum(1).mean()
