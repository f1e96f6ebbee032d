"""Closeness of pictures to their originals: PSNR and SSIM."""
import numpy as np
from skimage.metrics import structural_similarity

from jiidm.system.errors import InputError

SMALLEST = 7  # pixels, the side of SSIM's window


def psnr_ssim(real, fake):
    """Means of the peak signal-to-noise ratio and of the structural similarity over N pairs of pictures.

    Args:
        real, fake: N, H, W, 3 uint8.

    Returns:
        PSNR in dB, infinite for equal pictures; SSIM (Wang et al. 2004), at most 1: scikit-image's, with a window of
        7 x 7, averaged over the channels.

    Raises:
        InputError: for other shapes, or pictures smaller than the window.
    """
    real, fake = (np.asarray(pictures) for pictures in (real, fake))
    if real.shape != fake.shape or real.ndim != 4 or real.shape[3] != 3 or 0 in real.shape:
        raise InputError(f"pictures of shapes {real.shape} and {fake.shape}: expected N, H, W, 3, the same for both")
    if min(real.shape[1:3]) < SMALLEST:
        raise InputError(f"pictures of {real.shape[2]}x{real.shape[1]}: SSIM needs {SMALLEST}x{SMALLEST} or more")
    errors = ((real.astype(np.float64) - fake) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / errors)
    ssim = [structural_similarity(a, b, data_range=255, channel_axis=2) for a, b in zip(real, fake, strict=True)]
    return float(psnr.mean()), float(np.mean(ssim))
