"""The comparisons of benchmarks/gpu.py: kernels and their plain twins, networks on GPU and CPU, chains of steps."""
import numpy as np

from benchmarks.gpu_cases import SMALL, attention_cases, group_norm_cases, normal, random_mask, variables
from benchmarks.gpu_timing import Row, computed, largest_error, numbers
from benchmarks.measuring import with_random_weights
from jiidm.config import AutoencoderConfig, DiffusionConfig
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.loss import hybrid_loss
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.kernels import group_norm_cuda, nearest_code_cuda, plain_operators
from jiidm.kernels.attention import attention
from jiidm.kernels.convolution import inference_convolution, rounded_convolution
from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.nearest_code import nearest_code, nearest_code_plain
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import prepare, round_operands
from jiidm.models.unet import Conditions, UNet
from jiidm.system.runtime import jt, nn, use_device

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def group_norm_parity(bench):
    """The norm against its twin, ragged shapes too."""
    yield from against_twins(group_norm_cases(bench, [(2, 256, 96, 128), (1, 2048, 6, 8), (3, 96, 7, 9),
                                                      (1, 512, 96, 128)]))


def attention_parity(bench):
    """Attention against its twin, ragged shapes too."""
    yield from against_twins(attention_cases(bench, [(8, 64, 768), (3, 40, 77), (2, 128, 200), (2, 64, 3072)]))


def against_twins(cases):
    """A row a case: what the kernel and its twin give."""
    cases = list(cases)
    results = [(kernel(), twin()) for _, _, kernel, twin, _ in cases]
    computed(*(result for pair in results for result in pair))
    for (what, dtype, *_), (result, expected) in zip(cases, results, strict=True):
        yield Row(what, dtype, largest_error(numbers(result), numbers(expected)), TOLERANCE[dtype])


def large_mean(bench):
    """Group norm of mean 1e4 and deviation 0.1 against float64; as E[x^2] - E[x]^2 the variance would be noise."""
    x, a, b = variables("float32", normal(1, 64, 64, 64) * 0.1 + 1e4, normal(1, 64), normal(1, 64))
    exact = x.numpy().astype(np.float64).reshape(32, -1)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    exact = exact.reshape(x.shape) * a.numpy()[:, :, None, None] + b.numpy()[:, :, None, None]
    y = group_norm_cuda.group_norm_cuda(x, 32, 1e-5, None, (a, b), silu=False)
    yield Row("group norm, mean 1e4, deviation 0.1", "float32", largest_error([y.numpy()], [exact]), 1e-4)


def nearest_code_parity(bench):
    """Distances to the chosen codes against the twin's; all codes are there three times, the first is to be chosen."""
    z, codebook = variables("float32", normal(5000, 3), np.tile(normal(900, 3), (3, 1)))
    index, twin = nearest_code_cuda.nearest_code_cuda(z, codebook).numpy(), nearest_code_plain(z, codebook).numpy()
    error = float("nan")
    if ((index >= 0) & (index < 900)).all():
        actual, expected = (((z.numpy() - codebook.numpy()[i]) ** 2).sum(1) for i in (index, twin))
        error = largest_error([actual], [expected])
    yield Row("nearest code, 5000 of 2700", "float32", error, 1e-6, note=f"{(index != twin).sum()} other choices")


def compared(name, function, arrays, tolerance, dtype="float32"):
    """The same function of the same arrays on the GPU and on the CPU; `dtype` is that of its operands."""
    results = []
    for device in ("cuda", "cpu"):
        use_device(device)
        results.append(numbers(function(*(jt.array(a) for a in arrays))))
    use_device("cuda")
    return Row(f"{name}, GPU and CPU", dtype, largest_error(*results), tolerance)


def with_gradients(function):
    """The function's result and its gradients by all arguments, for a fixed weighting of the result."""
    def run(*inputs):
        result = function(*inputs)
        weight = jt.array(np.random.default_rng(1).standard_normal(result.shape, np.float32))
        return [result, *jt.grad((result * weight).sum(), list(inputs))]

    return run


def inferred(function):
    """The function without gradients, as inference calls it: with the kernels."""
    def run(*inputs):
        with jt.no_grad():
            return function(*inputs)

    return run


def network_parity(bench):
    """What the networks call, forward and backward, and small networks with random weights."""
    arrays = normal(2, 64, 24, 32), normal(64, 64, 3, 3), normal(64)
    yield compared("convolution and gradients", with_gradients(
        lambda x, w, b: nn.conv2d(x, w, b, padding=1)), arrays, 1e-4)
    yield compared("convolution and gradients", with_gradients(
        lambda x, w, b: rounded_convolution(x, w, b, 1, 1)), arrays, TOLERANCE["bfloat16"], "bfloat16")
    yield compared("group norm and gradients", with_gradients(
        lambda x, a, b: group_norm(x, 32, 1e-5, (a, b), silu=True)), [normal(2, 64, 24, 32) for _ in range(3)], 1e-4)
    yield compared("attention and gradients", with_gradients(attention), [normal(8, 32, 200) for _ in range(3)], 1e-4)
    yield compared("nearest code", nearest_code, [normal(5000, 3), normal(1000, 3)], 1e-6)
    network, mask = with_random_weights(UNet(SMALL)), random_mask(2, 24, 32).numpy()
    yield compared("UNet", inferred(network), [normal(2, 3, 24, 32), np.array([10, 700], np.int32), mask], 1e-3)
    network = with_random_weights(Autoencoder(AutoencoderConfig(ch=64)))
    yield compared("encoder", inferred(network.encode), [normal(1, 3, 96, 128)], 1e-3)
    yield compared("decoder", inferred(lambda z: network.decode(z, quantize=False)), [normal(1, 3, 24, 32)], 1e-3)


def chain_parity(bench):
    """20 guided steps with the kernels and in Jittor's own operators."""
    network, mask, z = with_random_weights(UNet(SMALL)), random_mask(1, 24, 32), jt.array(normal(1, 3, 24, 32))
    schedule = Schedule(DiffusionConfig())
    timesteps = schedule.respaced("ddim50")[:20][::-1]

    def last():
        denoise = guided_denoiser(Conditions(network, mask, 24, 32).predict, schedule, Guidance(3.5))
        return [latent for _, latent in ddim(denoise, schedule, z, timesteps)][-1].numpy()

    result = last()
    with plain_operators():
        expected = last()
    yield Row("20 guided steps, kernels and plain", "float32", largest_error([result], [expected]), 1e-4)
    prepare(network, inference_convolution("cuda", "bf16"))
    yield Row("20 guided steps, bf16 and fp32", "bfloat16", largest_error([last()], [expected]), 1e-1)


def training(bench):
    """Three steps on one batch, with operands in fp32 and in bf16: the loss must fall."""
    schedule, t = Schedule(DiffusionConfig()), np.array([100, 600])
    z0, noise, mask = jt.array(normal(2, 3, 24, 32)), jt.array(normal(2, 3, 24, 32)), random_mask(2, 24, 32)
    zt = schedule.add_noise(z0, noise, t)
    for dtype in ("float32", "bfloat16"):
        network = UNet(SMALL)
        if dtype == "bfloat16":
            round_operands(network)
        losses = losses_of_steps(network, zt, z0, noise, mask, schedule, t)
        yield Row("training, loss after / before", dtype, losses[-1] / losses[0] if losses[0] else float("nan"), 0.999)


def losses_of_steps(network, zt, z0, noise, mask, schedule, t):
    """The squared errors of three training steps on one batch."""
    optimizer, losses = jt.optim.AdamW(network.parameters(), 1e-3), []
    for _ in range(3):
        mse, bound = hybrid_loss(schedule, network(zt, jt.array(t.astype(np.int32)), mask), z0, noise, t)
        optimizer.step((mse + bound).mean())
        losses.append(mse.mean().item())
    return losses


PARITY = [group_norm_parity, attention_parity, large_mean, nearest_code_parity, network_parity, chain_parity, training]
