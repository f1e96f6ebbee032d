"""PatchGAN discriminator (Isola et al. 2017), the adversary of the autoencoder's second phase."""
import numpy as np

from jiidm.models.blocks import GroupNorm
from jiidm.system.runtime import jt, nn

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


class ProjectedDiscriminator(nn.Module):
    """One small PatchGAN on the features of a fixed network at each of several scales (Sauer et al. 2021).

    On request one more looks at the pixels: it sees the fine texture that the features pass over. Random 1x1
    convolutions that do not learn mix the channels, so that no channel of the features can be left out.
    """

    def __init__(self, channels, width, patch_channels=0):
        """Args:
            channels: of the features, one number a scale.
            width: channels of the discriminators, a multiple of 8.
            patch_channels: of the first layer of the one on the pixels, a multiple of 4; 0 for none.
        """
        rng = np.random.default_rng(0)
        self.mixing = [jt.array(np.float32(rng.standard_normal((width, c, 1, 1)) / np.sqrt(c))).stop_grad()
                       for c in channels]
        self.heads = nn.ModuleList([nn.Sequential(
            nn.Conv(width, width, 3, padding=1), _Norm(width, _GROUPS, _EPS), nn.LeakyReLU(0.2),
            nn.Conv(width, width, 3, padding=1), _Norm(width, _GROUPS, _EPS), nn.LeakyReLU(0.2),
            nn.Conv(width, 1, 3, padding=1)) for _ in channels])
        self.patches = PatchDiscriminator(patch_channels, 1) if patch_channels else None

    def execute(self, features, pictures):
        """Features N, C, h, w of each scale and pictures N, 3, H, W -> scores N, 1, h, w of each."""
        scores = [head(nn.conv2d(x, mixing)) for x, mixing, head in zip(features, self.mixing, self.heads, strict=True)]
        return [*scores, self.patches(pictures)] if self.patches else scores
