"""LPIPS against a computation in numpy, its gradient, the reading of its weights; PSNR and SSIM."""
import numpy as np
import pytest
from helpers import refused, relative_error
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

from jiidm.models.vgg import STAGES, WIDTHS
from jiidm.system.runtime import jt
from jiidm.training.perceptual import Perceptual
from jiidm.training.quality import psnr_ssim


def weights_of(widths, seed=0):
    """Random weights: [[(weight, bias)] a stage], [linear weights]."""
    random, before, stages = np.random.default_rng(seed), 3, []
    for numbers, width in zip(STAGES[16], widths, strict=True):
        stages.append([])
        for _ in numbers:
            scale = np.sqrt(2 / (9 * before))
            stages[-1].append(((scale * random.standard_normal((width, before, 3, 3))).astype(np.float32),
                               (0.1 * random.standard_normal(width)).astype(np.float32)))
            before = width
    return stages, [random.random((1, width, 1, 1), np.float32) for width in widths]


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def features_in_numpy(x, stages):
    """The features of one picture (3, H, W), in float64."""
    shift, scale = (np.reshape(c, (3, 1, 1)) for c in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    x = (x.astype(np.float64) - shift) / scale
    for number, stage in enumerate(stages):
        if number:
            rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
            x = np.maximum.reduce([x[:, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)])
        for weight, bias in stage:
            windows = sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1))), (3, 3), (1, 2))
            x = np.maximum(np.einsum("ihwyx,oiyx->ohw", windows, weight.astype(np.float64)) + bias[:, None, None], 0)
        yield x


def distance_in_numpy(first, second, stages, linear):
    """LPIPS of two pictures (3, H, W), in float64."""
    total = 0.0
    for a, b, weight in zip(features_in_numpy(first, stages), features_in_numpy(second, stages), linear, strict=True):
        a, b = (f / (np.sqrt((f * f).sum(0)) + 1e-10) for f in (a, b))
        total += (weight.reshape(-1, 1, 1) * (a - b) ** 2).sum(0).mean()
    return total


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (1, 3, 33, 50)])
def test_distances_are_those_of_the_paper(shape):
    stages, linear = weights_of((6, 8, 10, 12, 9))
    real, made = pictures(*shape), pictures(*shape, seed=1)
    expected = [distance_in_numpy(a, b, stages, linear) for a, b in zip(real, made, strict=True)]
    distances = Perceptual(stages, linear)(jt.array(real), jt.array(made))
    assert distances.shape == [shape[0]] and min(expected) > 0.1
    assert relative_error(distances, expected) < 1e-5


def test_gradient():
    stages, linear = weights_of((6, 8, 10, 12, 9))
    real, made, direction = (pictures(1, 3, 32, 32, seed=i) for i in range(3))
    x = jt.array(made)
    gradient = jt.grad(Perceptual(stages, linear)(jt.array(real), x).sum(), x).numpy()
    ahead, behind = (distance_in_numpy(real[0], made[0] + side * 1e-6 * direction[0].astype(np.float64), stages, linear)
                     for side in (1, -1))
    assert relative_error((gradient * direction).sum(dtype=np.float64), (ahead - behind) / 2e-6) < 1e-3


def test_equal_pictures_and_dead_features_have_no_distance_and_a_finite_gradient():
    stages, linear = weights_of((6, 8, 10, 12, 9))
    made = jt.array(pictures(1, 3, 32, 32))
    distance = Perceptual(stages, linear)(jt.array(pictures(1, 3, 32, 32)), made)
    assert distance.item() == 0 and not jt.grad(distance.sum(), made).numpy().any()
    for number, lift in ((2, -100), (3, 0), (4, 0)):  # from the third stage on every feature is zero
        stages[number] = [(weight, np.full_like(bias, lift)) for weight, bias in stages[number]]
    distance = Perceptual(stages, linear)(jt.array(pictures(1, 3, 32, 32, seed=1)), made)
    gradient = jt.grad(distance.sum(), made).numpy()
    assert distance.item() > 0 and np.isfinite(gradient).all() and gradient.any()


def test_weights_do_not_learn():
    perceptual, made = Perceptual(*weights_of((6, 8, 10, 12, 9))), jt.array(pictures(1, 3, 16, 16))
    assert all(w.is_stop_grad() and b.is_stop_grad() for stage in perceptual.vgg.stages for w, b in stage)
    assert all(weight.is_stop_grad() for weight in perceptual.linear)
    assert not made.is_stop_grad()


def full_size_files(path, seed=0):
    """Writes files of the published names and shapes; returns their paths and the weights."""
    stages, linear = weights_of(WIDTHS, seed)
    tensors = {}
    for numbers, stage in zip(STAGES[16], stages, strict=True):
        for number, (weight, bias) in zip(numbers, stage, strict=True):
            tensors |= {f"features.{number}.weight": weight, f"features.{number}.bias": bias}
    tensors["classifier.6.bias"] = np.zeros(1000, np.float32)
    save_file(tensors, path / "vgg.safetensors")
    save_file({f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}, path / "lpips.safetensors")
    return (path / "vgg.safetensors", path / "lpips.safetensors"), (stages, linear)


def test_weights_from_files(tmp_path):
    paths, weights = full_size_files(tmp_path)
    real, made = pictures(1, 3, 16, 16), pictures(1, 3, 16, 16, seed=1)
    distance = Perceptual.from_file(*paths)(jt.array(real), jt.array(made))
    assert relative_error(distance, [distance_in_numpy(real[0], made[0], *weights)]) < 1e-5


def test_files_that_are_refused(tmp_path):
    (vgg, lpips), (_, linear) = full_size_files(tmp_path)
    refused(lambda: Perceptual.from_file(tmp_path / "none.pth", lpips), "none.pth", "no such file")
    refused(lambda: Perceptual.from_file(lpips, vgg), "lpips.safetensors", "features.0.weight")
    refused(lambda: Perceptual.from_file(vgg, vgg), "vgg.safetensors", "lin0.model.1.weight")
    tensors = {f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}
    save_file({**tensors, "lin4.model.1.weight": linear[0]}, lpips)
    refused(lambda: Perceptual.from_file(vgg, lpips), "lin4.model.1.weight", "(1, 64, 1, 1)", "(1, 512, 1, 1)")
    save_file({**tensors, "lin1.model.1.weight": linear[1] * np.nan}, lpips)
    refused(lambda: Perceptual.from_file(vgg, lpips), "lin1.model.1.weight", "NaN")


def test_pytorchs_own_file(tmp_path):
    torch = pytest.importorskip("torch", reason="writes the file")
    (vgg, lpips), (stages, linear) = full_size_files(tmp_path)
    torch.save({f"lin{i}.model.1.weight": torch.from_numpy(weight) for i, weight in enumerate(linear)},
               tmp_path / "vgg.pth")
    perceptual = Perceptual.from_file(vgg, tmp_path / "vgg.pth")
    assert all(np.array_equal(a.numpy(), b) for a, b in zip(perceptual.linear, linear, strict=True))


# --------------------------------------------------------------------------------------------------- PSNR and SSIM

def test_psnr_and_ssim():
    real = np.random.default_rng(0).integers(20, 200, (2, 24, 32, 3)).astype(np.uint8)
    made = real + np.uint8(5)
    psnr, ssim = psnr_ssim(real, made)
    assert psnr == pytest.approx(10 * np.log10(255**2 / 25))
    # all windows have one covariance and variance: what is left is the comparison of the means
    windows = [sliding_window_view(p.astype(np.float64), (7, 7), (1, 2)).mean((4, 5)) for p in (real, made)]
    constant = (0.01 * 255) ** 2
    expected = (2 * windows[0] * windows[1] + constant) / (windows[0] ** 2 + windows[1] ** 2 + constant)
    assert ssim == pytest.approx(expected.mean(), rel=1e-6)
    assert psnr_ssim(real[:1], real[:1]) == (np.inf, 1)
    noisy = np.clip(real + np.random.default_rng(1).normal(0, 40, real.shape), 0, 255).astype(np.uint8)
    assert psnr_ssim(real, noisy)[0] < psnr and psnr_ssim(real, noisy)[1] < ssim


def test_pictures_that_cannot_be_compared():
    real = np.zeros((2, 24, 32, 3), np.uint8)
    refused(lambda: psnr_ssim(real, real[:1]), "(2, 24, 32, 3)", "(1, 24, 32, 3)")
    refused(lambda: psnr_ssim(real[0], real[0]), "N, H, W, 3")
    refused(lambda: psnr_ssim(real[:, :6], real[:, :6]), "32x6", "7x7")
