"""Schedule, respacing, sampler, guidance and loss: closed forms, properties, and the release's numbers."""
import numpy as np
import pytest
from helpers import numbers, reference, refused, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from jiidm.config import DiffusionConfig
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import GuidedDenoiser
from jiidm.diffusion.loss import hybrid_loss
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.runtime import jt

SCHEDULE = Schedule(DiffusionConfig())


def latents(*shape, seed=0):
    return jt.array(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


# ---- schedule and respacing

def test_schedule_is_the_papers():
    """Linear from 1e-4 to 0.02; the posterior as in Ho et al. 2020, eq. 7."""
    beta, alpha = SCHEDULE.betas, SCHEDULE.alphas_cumprod
    assert beta[0] == 1e-4 and beta[-1] == 0.02 and np.allclose(np.diff(beta), (0.02 - 1e-4) / 999)
    assert np.allclose(alpha, np.exp(np.cumsum(np.log1p(-beta))))
    t = np.array([1, 500, 999])
    assert np.allclose(np.exp(SCHEDULE.posterior_log_variance[t]), beta[t] * (1 - alpha[t - 1]) / (1 - alpha[t]))
    assert np.isfinite(SCHEDULE.posterior_log_variance).all()
    # without noise z_t = sqrt(abar_t) z_0, and the posterior's mean is z_{t-1} = sqrt(abar_{t-1}) z_0
    assert np.allclose(SCHEDULE.posterior_z0[t] + SCHEDULE.posterior_zt[t] * np.sqrt(alpha[t]), np.sqrt(alpha[t - 1]))


@pytest.mark.parametrize("values", [
    {"timesteps": 0}, {"timesteps": 1}, {"beta_start": 0.0}, {"beta_end": 1.0}, {"beta_start": 0.1},
])
def test_impossible_schedule(values):
    refused(lambda: Schedule(DiffusionConfig(**values)), "diffusion", *values.values())


@given(total=st.integers(2, 400), count=st.integers(1, 400))
def test_respacing(total, count):
    """A chain of `count` steps from 0 at one stride, or an InputError where there is no such stride."""
    schedule = Schedule(DiffusionConfig(timesteps=total))
    if not any(-(-total // stride) == count for stride in range(1, total + 1)):
        refused(lambda: schedule.respaced(f"ddim{count}"), f"ddim{count}", total)
        return
    chain = schedule.respaced(f"ddim{count}")
    assert len(chain) == count and chain.timesteps[0] == 0 and chain.timesteps[-1] < total
    assert len(set(np.diff(chain.timesteps))) <= 1
    assert np.array_equal(chain.alphas_cumprod, schedule.alphas_cumprod[chain.timesteps])
    before = [chain.previous_alpha_cumprod(i) for i in range(count)]
    assert before == [1.0, *chain.alphas_cumprod[:-1]]


@pytest.mark.parametrize("respacing", ["", "50", "ddim", "ddim0", "ddim-5", "ddim5.0", "DDIM50", " ddim50", "ddim50\n"])
def test_malformed_respacing(respacing):
    refused(lambda: SCHEDULE.respaced(respacing), repr(respacing), "ddimN")


def test_chain_parity():
    expected = reference("ddim")
    chain = SCHEDULE.respaced(str(expected["respacing"]))
    assert np.array_equal(chain.timesteps, expected["timesteps"])
    assert np.allclose(chain.alphas_cumprod, expected["alphas_cumprod"], rtol=1e-12)


def test_start_of_each_round():
    """The paper's table: respacing and start index -> timestep of 1000."""
    for respacing, start, timestep in (("ddim500", 300, 600), ("ddim500", 320, 640), ("ddim50", 20, 400)):
        assert SCHEDULE.respaced(respacing).timesteps[start] == timestep


# ---- noise

def test_add_noise_parity():
    expected = reference("ddim")
    z = SCHEDULE.respaced("ddim50").add_noise(expected["z0"], expected["noise"], int(expected["start"]))
    assert relative_error(z, expected["z_t"]) < 1e-6


@pytest.mark.parametrize("index", [-1, 0, 50, 999])
def test_no_start_beyond_the_chain(index):
    refused(lambda: SCHEDULE.respaced("ddim50").add_noise(0.0, 0.0, index), index, "1 to 49")


@given(st.integers(1, 99))
def test_noise_keeps_unit_variance(index):
    """sqrt(abar)^2 + sqrt(1 - abar)^2 = 1, and more noise with each index."""
    chain = SCHEDULE.respaced("ddim100")
    signal, noise = chain.add_noise(1.0, 0.0, index), chain.add_noise(0.0, 1.0, index)
    assert signal**2 + noise**2 == pytest.approx(1)
    assert index == 1 or noise > chain.add_noise(0.0, 1.0, index - 1)


# ---- sampler

@settings(max_examples=15)
@given(count=st.sampled_from([10, 20, 50]), data=st.data())
def test_perfect_epsilon_recovers_z0(count, data):
    chain = SCHEDULE.respaced(f"ddim{count}")
    start = data.draw(st.integers(1, count - 1))
    z0, noise = latents(1, 3, 4, 6), latents(1, 3, 4, 6, seed=1)

    def denoise(z, t):
        alpha = SCHEDULE.alphas_cumprod[t]
        return (z - float(np.sqrt(alpha)) * z0) / float(np.sqrt(1 - alpha))

    *_, (_, z) = ddim(denoise, chain, chain.add_noise(z0, noise, start), start)
    assert relative_error(z, z0) < 1e-5


@settings(max_examples=15)
@given(count=st.sampled_from([10, 20, 50]), data=st.data())
def test_zero_epsilon_only_scales(count, data):
    """Each step multiplies by sqrt(abar_{k-1} / abar_k), which telescopes."""
    chain = SCHEDULE.respaced(f"ddim{count}")
    start = data.draw(st.integers(1, count))
    z = latents(1, 3, 4, 6)
    expected = numbers(z) / np.sqrt(chain.alphas_cumprod[start - 1])
    *_, (_, z) = ddim(lambda z, t: z * 0, chain, z, start)
    assert relative_error(z, expected) < 1e-5


def test_sampler_yields_each_step_and_can_be_stopped():
    chain, asked = SCHEDULE.respaced("ddim50"), []

    def denoise(z, t):
        asked.append(t)
        return z * 0

    assert [index for index, _ in ddim(denoise, chain, latents(1, 3, 4, 6), 7)] == [6, 5, 4, 3, 2, 1, 0]
    assert asked == [120, 100, 80, 60, 40, 20, 0]
    asked.clear()
    steps = ddim(denoise, chain, latents(1, 3, 4, 6), 7)
    next(steps), next(steps)
    steps.close()
    assert asked == [120, 100]


# ---- guidance

class CountingNetwork:
    """A network in parts like the UNet's whose epsilon is 2 z + t + the mask's mean, and which counts the calls."""

    def __init__(self):
        self.calls = {"condition": 0, "embed": 0, "encode": 0, "decode": 0}

    def embed(self, t):
        self.calls["embed"] += 1
        return [(t.float32().reshape(-1, 1), t.float32().reshape(-1, 1))]

    def condition(self, mask, height, width, budget):
        self.calls["condition"] += 1
        mean = mask.mean((1, 2, 3), keepdims=True)
        return [((mean, mean), (mean, mean))]

    def encode(self, z, channels):
        self.calls["encode"] += 1
        return [2 * z], channels

    def decode(self, encoded, conditions, height, width):
        self.calls["decode"] += 1
        (features,), ((t, _),) = encoded
        epsilon = features + t.reshape(1, 1, 1, 1) + conditions[0][0][0]
        return jt.concat([epsilon, epsilon * 100], 1)  # the second half is the variance's, of no concern here


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("prepared", [[], [40, 20]])
@pytest.mark.parametrize("scale", [0, 1, 1.5, 3.5])
def test_guidance(scale, prepared, joint):
    network, z = CountingNetwork(), latents(2, 3, 4, 6)
    mask = one_hot_batch(np.array([np.zeros((4, 6)), np.full((4, 6), 255)]), 29)  # the second sample: no class
    denoise = GuidedDenoiser(network, mask, 4, 6, joint=joint)
    if prepared:
        denoise.prepare(prepared)
    epsilon = [denoise(z, t, scale) for t in (40, 20)][-1]
    null = 2 * numbers(z) + 20
    conditional = null + np.array([1 / 29, 0])[:, None, None, None]
    expected = null + scale * (conditional - null) if scale > 1 else conditional
    assert relative_error(epsilon, expected) < 1e-6
    # once for the masks and once for none; once for all timesteps; per step the encoder once, the decoder once a branch
    branches = 2 if scale > 1 and not joint else 1
    assert network.calls == {"condition": 2, "embed": 1 if prepared else 2, "encode": 2, "decode": 2 * branches}
    other = GuidedDenoiser(network, mask, 4, 6, null=denoise.null)
    assert network.calls["condition"] == 3
    assert relative_error(other(z, 20, scale), expected) < 1e-6


def test_guided_chain_parity(reference_unet):
    """20 steps at guidance 3.5, as the release does them."""
    expected = reference("ddim")
    start, scale = int(expected["start"]), float(expected["guidance"])
    chain = SCHEDULE.respaced("ddim50")
    z = chain.add_noise(jt.array(expected["z0"]), jt.array(expected["noise"]), start)
    denoiser = GuidedDenoiser(reference_unet, one_hot_batch(expected["label"], 29), *z.shape[2:])
    samples = [z.numpy() for _, z in ddim(lambda z, t: denoiser(z, t, scale), chain, z, start)]
    assert len(samples) == 20
    assert relative_error(samples[0], expected["sample_first"]) < 1e-4
    assert relative_error(samples[-1], expected["sample_last"]) < 5e-4


# ---- loss

def test_loss_parity(reference_unet):
    expected = reference("loss")
    z0, noise, t = jt.array(expected["z0"]), jt.array(expected["noise"]), expected["t"]
    zt = SCHEDULE.noised(z0, noise, t)
    with jt.no_grad():
        output = reference_unet(zt, jt.array(t), one_hot_batch(expected["label"], 29))
        mse, bound = hybrid_loss(SCHEDULE, output, z0, noise, t)
    assert np.allclose(mse.numpy(), expected["mse"], rtol=1e-4)
    assert np.allclose(bound.numpy(), expected["vb"], rtol=1e-3)  # a difference of terms some times as large
    assert np.allclose((mse + bound).numpy(), expected["loss"], rtol=1e-4)


def test_bound_teaches_the_variance_alone():
    """The mean in the bound is detached: epsilon learns from the squared error, v from the bound."""
    output, z0, noise = latents(2, 6, 4, 6), latents(2, 3, 4, 6, seed=1), latents(2, 3, 4, 6, seed=2)
    mse, bound = hybrid_loss(SCHEDULE, output, z0, noise, np.array([0, 613]))
    of_mse, of_bound = (jt.grad(term.sum(), output).numpy() for term in (mse, bound))
    assert np.allclose(of_mse[:, :3], 2 * (numbers(output)[:, :3] - numbers(noise)) / (3 * 4 * 6), atol=1e-6)
    assert not of_mse[:, 3:].any() and not of_bound[:, :3].any()
    assert of_bound[:, 3:].any((1, 2, 3)).all()


def test_bound_vanishes_for_the_true_posterior():
    """A perfect epsilon and v = -1, the posterior's own variance: no divergence."""
    noise, z0 = latents(2, 3, 4, 6), latents(2, 3, 4, 6, seed=1)
    output = jt.concat([noise, jt.full(noise.shape, -1.0)], 1)
    mse, bound = hybrid_loss(SCHEDULE, output, z0, noise, np.array([1, 613]))
    assert np.abs(mse.numpy()).max() == 0
    assert np.abs(bound.numpy()).max() < 1e-3
