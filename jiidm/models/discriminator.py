"""PatchGAN discriminator (Isola et al. 2017), the adversary of the autoencoder's second phase."""
from jiidm.models.blocks import GroupNorm
from jiidm.system.runtime import nn

_GROUPS, _EPS = 8, 1e-6


class PatchDiscriminator(nn.Module):
    """N, 3, H, W -> N, 1, h, w of real/fake scores, each for one patch.

    GroupNorm stands where the original has BatchNorm: batches here are small.
    """

    def __init__(self, channels, layers):
        blocks = [nn.Conv(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for i in range(1, layers + 1):
            wider = channels * min(2**i, 8)
            blocks += [nn.Conv(width, wider, 4, stride=2 if i < layers else 1, padding=1), _Norm(wider, _GROUPS, _EPS),
                       nn.LeakyReLU(0.2)]
            width = wider
        self.main = nn.Sequential(*blocks, nn.Conv(width, 1, 4, padding=1))

    def execute(self, x):
        return self.main(x)


class _Norm(GroupNorm):
    def execute(self, x):
        return super().execute(x, silu=False)
