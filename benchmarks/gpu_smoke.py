"""Does jiidm work on this GPU? Parity with the CPU, one guided step and one training step, one table, exit code 1 on a
fault. Needs no files but the package: python benchmarks/gpu_smoke.py [--full]"""
import argparse
import sys
import time

import numpy as np

from jiidm.config import AutoencoderConfig, DiffusionConfig, UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import GuidedDenoiser
from jiidm.diffusion.loss import hybrid_loss
from jiidm.diffusion.schedule import Schedule
from jiidm.kernels.attention import attention
from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.nearest_code import nearest_code
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.runtime import cuda_reason, jt, use_device

SMALL = UNetConfig(model_channels=64, channel_mult=(1, 2, 2), attention_resolutions=(2, 4), head_channels=32)
random = np.random.default_rng(0)
faults = []


def report(name, error, tolerance, seconds):
    """One row of the table; notes a fault when the error is NaN or beyond the tolerance."""
    good = error <= tolerance
    if not good:
        faults.append(name)
    verdict = "pass" if good else "FAIL"
    print(f"| {name:<34} | {error:9.1e} | {tolerance:9.0e} | {seconds:7.2f} | {verdict} |", flush=True)


def compare(name, function, arrays, tolerance):
    """The same function of the same arrays on the CPU and on the GPU: largest difference over the largest value."""
    def run(device):
        use_device(device)
        start = time.perf_counter()
        results = function(*(jt.array(a) for a in arrays))
        values = [r.numpy().astype(np.float64) for r in (results if isinstance(results, list | tuple) else [results])]
        return values, time.perf_counter() - start

    reference, _ = run("cpu")
    values, seconds = run("cuda")
    error = max(np.abs(a - b).max() / (np.abs(b).max() + 1e-30) for a, b in zip(values, reference, strict=True))
    report(name, float(error), tolerance, seconds)


def normal(*shape):
    """Standard normal numbers, float32."""
    return random.standard_normal(shape, np.float32)


def with_gradients(function):
    """The function's result and its gradients by all arguments, for a fixed weighting of the result."""
    def run(*inputs):
        result = function(*inputs)
        weight = jt.array(np.random.default_rng(1).standard_normal(result.shape, np.float32))
        return [result, *jt.grad((result * weight).sum(), list(inputs))]

    return run


def randomised(network):
    """The network with random weights everywhere: zero-initialised layers would hide what lies before them."""
    for name, parameter in network.named_parameters():
        scale = 1 / np.sqrt(np.prod(parameter.shape[1:])) if parameter.ndim > 1 else 0.1
        value = normal(*parameter.shape) * scale + (name.endswith("weight") and parameter.ndim == 1)
        parameter.assign(jt.array(value.astype(np.float32)))
    network.eval()
    return network


def kernels():
    """Each kernel, forward and backward."""
    x, scale, shift = normal(2, 64, 24, 32), normal(2, 64, 24, 32), normal(2, 64, 24, 32)
    compare("group norm, SPADE, SiLU", with_gradients(lambda x, a, b: group_norm(x, 32, 1e-5, a, b, True)),
            [x, scale, shift], 1e-3)
    compare("attention", with_gradients(attention), [normal(8, 32, 200) for _ in range(3)], 1e-2)
    compare("nearest code", lambda z, c: nearest_code(z, c), [normal(5000, 3), normal(1000, 3)], 1e-6)


def networks():
    """Small networks, with made-up weights. cuDNN computes fp32 convolutions in TF32, hence the tolerance."""
    unet = randomised(UNet(SMALL))
    mask = one_hot_batch(random.integers(0, 29, (2, 24, 32)).astype(np.uint8), 29).numpy()
    compare("UNet", lambda z, t, m: unet(z, t, m), [normal(2, 3, 24, 32), np.array([10, 700], np.int32), mask], 2e-2)
    autoencoder = randomised(Autoencoder(AutoencoderConfig(ch=64)))
    compare("encoder", autoencoder.encode, [normal(1, 3, 96, 128)], 2e-2)
    compare("decoder", lambda z: autoencoder.decode(z, quantize=False), [normal(1, 3, 24, 32)], 2e-2)


def guided_step(config, height, width):
    """Seconds of one guided step after the first, which compiles."""
    unet = randomised(UNet(config))
    mask = one_hot_batch(random.integers(0, 29, (1, height, width)).astype(np.uint8), 29)
    denoiser = GuidedDenoiser(unet, mask, height, width)
    z, seconds = jt.array(normal(1, config.in_channels, height, width)), []
    for _ in range(4):
        start = time.perf_counter()
        finite = np.isfinite(denoiser(z, 500, 3.5).numpy()).all()
        seconds.append(time.perf_counter() - start)
    report(f"guided step, {config.model_channels} channels", 0.0 if finite else np.nan, 0, min(seconds[1:]))


def training_step(config, height, width):
    """Three steps of training on one batch: the loss must be finite and fall."""
    unet, schedule = UNet(config), Schedule(DiffusionConfig())
    optimizer = jt.optim.AdamW(unet.parameters(), 1e-3)
    z0, noise, t = jt.array(normal(2, 3, height, width)), jt.array(normal(2, 3, height, width)), np.array([100, 600])
    mask = one_hot_batch(random.integers(0, 29, (2, height, width)).astype(np.uint8), 29)
    zt = schedule.noised(z0, noise, t)
    losses, seconds = [], []
    for _ in range(3):
        start = time.perf_counter()
        mse, bound = hybrid_loss(schedule, unet(zt, jt.array(t.astype(np.int32)), mask), z0, noise, t)
        optimizer.step((mse + bound).mean())
        losses.append(mse.mean().item())
        seconds.append(time.perf_counter() - start)
    ratio = losses[-1] / losses[0] if losses[0] else np.nan
    report("training step, loss after / before", ratio, 0.999, min(seconds[1:]))


def main():
    """Runs all checks; `--full` adds a guided step of the full-size network at 96x128."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also time a step of the full-size network")
    args = parser.parse_args()
    if cuda_reason:
        sys.exit(f"no CUDA: {cuda_reason}")
    print("| check | error | tolerance | seconds | |\n| --- | --- | --- | --- | --- |")
    kernels()
    networks()
    use_device("cuda")
    guided_step(SMALL, 24, 32)
    training_step(SMALL, 24, 32)
    if args.full:
        guided_step(UNetConfig(), 96, 128)
    print("all pass" if not faults else f"failed: {', '.join(faults)}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
