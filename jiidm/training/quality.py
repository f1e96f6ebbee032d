"""How near pictures are to what they should be: PSNR and SSIM."""
import numpy as np
from skimage.metrics import structural_similarity

from jiidm.system.errors import InputError

SMALLEST = 7  # pixels, the side of the window that SSIM looks through


def psnr_ssim(real, made):
    """Means over N pictures of the peak signal-to-noise ratio in dB and of the structural similarity (at most 1).

    real and made are N, H, W, 3 uint8. SSIM (Wang et al. 2004) is that of scikit-image: a window of 7 x 7, the mean
    over the colours. PSNR is infinite where two pictures are the same. Raises InputError for other shapes.
    """
    real, made = (np.asarray(pictures) for pictures in (real, made))
    if real.shape != made.shape or real.ndim != 4 or real.shape[3] != 3 or 0 in real.shape:
        raise InputError(f"pictures of shapes {real.shape} and {made.shape}: expected N, H, W, 3, the same for both")
    if min(real.shape[1:3]) < SMALLEST:
        raise InputError(f"pictures of {real.shape[2]}x{real.shape[1]}: SSIM needs {SMALLEST}x{SMALLEST} or more")
    errors = ((real.astype(np.float64) - made) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        psnr = 10 * np.log10(255**2 / errors)
    ssim = [structural_similarity(a, b, data_range=255, channel_axis=2) for a, b in zip(real, made, strict=True)]
    return float(psnr.mean()), float(np.mean(ssim))
