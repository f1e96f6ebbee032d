"""Schedule, respacing, sampler, guidance and loss: closed forms, properties, and the release's numbers."""
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import numbers, reference, refused, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from jiidm.config import Config, DiffusionConfig, InferenceConfig, RoundConfig, check_config
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.loss import hybrid_loss, weighted
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.plan import make_plan
from jiidm.models.unet import Conditions
from jiidm.system.runtime import jt
from jiidm.training.unet import UNetTrainer

SCHEDULE = Schedule(DiffusionConfig())
OF_V = Schedule(DiffusionConfig(prediction="v"))
NO_LAST_SIGNAL = Schedule(DiffusionConfig(prediction="v", zero_terminal_snr=True))


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
    """`count` timesteps from 0 at one stride, or an InputError where there is no such stride."""
    schedule = Schedule(DiffusionConfig(timesteps=total))
    if not any(-(-total // stride) == count for stride in range(1, total + 1)):
        refused(lambda: schedule.respaced(f"ddim{count}"), f"ddim{count}", total)
        return
    chain = schedule.respaced(f"ddim{count}")
    assert len(chain) == count and chain[0] == 0 and chain[-1] < total
    assert len(set(np.diff(chain))) <= 1
    # DDIM goes from each of them to the one before, and from timestep 0 to alphas_cumprod 1
    asked, before = [], [1.0, *schedule.alphas_cumprod[chain][:-1]]
    steps = ddim(lambda z, t: asked.append(t) or jt.array([1.0]) * 0, schedule, jt.array([1.0]), chain[::-1])
    scales = [z.item() for _, z in steps]
    assert asked == chain[::-1].tolist()
    expected = np.cumprod(np.sqrt(np.divide(before, schedule.alphas_cumprod[chain]))[::-1])
    assert np.allclose(scales, expected, rtol=1e-4)


@pytest.mark.parametrize("respacing", ["", "50", "ddim", "ddim0", "ddim-5", "ddim5.0", "DDIM50", " ddim50", "ddim50\n"])
def test_malformed_respacing(respacing):
    refused(lambda: SCHEDULE.respaced(respacing), repr(respacing), "ddimN")


def test_no_signal_at_the_last_step():
    """Algorithm 1 of Lin et al. 2023: sqrt(abar) is shifted and scaled, so that its first value stays; and all that is
    derived from it is finite."""
    schedule = NO_LAST_SIGNAL
    signal, old = np.sqrt(schedule.alphas_cumprod), np.sqrt(SCHEDULE.alphas_cumprod)
    assert signal[-1] == 0 and signal[0] == pytest.approx(old[0], rel=1e-12)
    assert np.allclose(np.diff(signal) / np.diff(old), old[0] / (old[0] - old[-1]))
    assert np.allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, rtol=1e-9, atol=1e-15)
    assert schedule.betas[-1] == 1 and (schedule.betas > 0).all()
    for values in (schedule.posterior_log_variance, schedule.posterior_z0, schedule.posterior_zt):
        assert np.isfinite(values).all()
    # nothing of z_0 is in the last z_t: the posterior is the forward process, one step before
    assert schedule.posterior_zt[-1] == 0 and schedule.posterior_z0[-1] == pytest.approx(signal[-2])
    assert np.exp(schedule.posterior_log_variance[-1]) == pytest.approx(1 - signal[-2] ** 2)


@pytest.mark.parametrize("values, words", [
    ({"prediction": "x0"}, ["diffusion.prediction 'x0'", "epsilon, v"]),
    ({"loss_weight": "snr"}, ["diffusion.loss_weight 'snr'", "uniform, min_snr"]),
    ({"zero_terminal_snr": True}, ["diffusion.prediction 'epsilon'", '"v"', "zero_terminal_snr"]),
    ({"loss_weight": "min_snr", "min_snr_gamma": 0.0}, ["min_snr_gamma 0", "more than 0"]),
])
def test_impossible_diffusion(values, words):
    refused(lambda: check_config(Config(diffusion=DiffusionConfig(**values))), *words)
    check_config(Config(diffusion=DiffusionConfig(**{**values, "prediction": "v", "loss_weight": "uniform"})))


def test_chain_parity():
    expected = reference("ddim")
    chain = SCHEDULE.respaced(str(expected["respacing"]))
    assert np.array_equal(chain, expected["timesteps"])
    assert np.allclose(SCHEDULE.alphas_cumprod[chain], expected["alphas_cumprod"], rtol=1e-12)


def test_start_of_each_round():
    """The paper's table: respacing and start index -> timestep of 1000."""
    for respacing, start, timestep in (("ddim500", 300, 600), ("ddim500", 320, 640), ("ddim50", 20, 400)):
        planned, = make_plan(InferenceConfig((RoundConfig(3.5, respacing, start),)), SCHEDULE).rounds
        assert SCHEDULE.respaced(respacing)[start] == planned.start == timestep
        assert planned.timesteps == tuple(SCHEDULE.respaced(respacing)[:start][::-1])


# ---- noise

def test_add_noise_parity():
    expected = reference("ddim")
    z = SCHEDULE.add_noise(expected["z0"], expected["noise"], SCHEDULE.respaced("ddim50")[int(expected["start"])])
    assert relative_error(z, expected["z_t"]) < 1e-6


@pytest.mark.parametrize("index", [-1, 0, 50, 999])
def test_no_start_beyond_the_chain(index):
    recipe = InferenceConfig((RoundConfig(3.5, "ddim50", index),))
    refused(lambda: make_plan(recipe, SCHEDULE), index, "1 to 49" if index >= 0 else "at least 0")


@given(st.integers(1, 99))
def test_noise_keeps_unit_variance(index):
    """sqrt(abar)^2 + sqrt(1 - abar)^2 = 1, and more noise with each index."""
    chain = SCHEDULE.respaced("ddim100")
    signal, noise = SCHEDULE.add_noise(1.0, 0.0, chain[index]), SCHEDULE.add_noise(0.0, 1.0, chain[index])
    assert signal**2 + noise**2 == pytest.approx(1)
    assert index == 1 or noise > SCHEDULE.add_noise(0.0, 1.0, chain[index - 1])


def test_add_noise_at_a_timestep_for_each_image():
    z0, noise, t = latents(3, 2, 4, 6), latents(3, 2, 4, 6, seed=1), np.array([0, 400, 999])
    together = numbers(SCHEDULE.add_noise(z0, noise, t))
    for i, alone in enumerate(t):
        assert relative_error(SCHEDULE.add_noise(z0[i], noise[i], alone), together[i]) < 1e-6


# ---- what a prediction says

@pytest.mark.parametrize("prediction, predicted", [("epsilon", -1.0), ("v", 0.6 * -1 - 0.8 * 2)])
def test_parts_by_hand(prediction, predicted):
    """z_0 = 2 and epsilon = -1, of which z_t = 0.6 z_0 + 0.8 epsilon."""
    schedule = Schedule(DiffusionConfig(prediction=prediction))
    schedule.alphas_cumprod = np.array([0.36])
    assert schedule.split(0.6 * 2 - 0.8, predicted, 0) == (pytest.approx(2), pytest.approx(-1))


def test_parts_without_any_signal():
    """z_t is the noise and v is -z_0, where z_0 = 0 / 0 by epsilon."""
    assert NO_LAST_SIGNAL.split(0.25, -3.0, 999) == (3.0, 0.25)


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

    *_, (_, z) = ddim(denoise, SCHEDULE, SCHEDULE.add_noise(z0, noise, chain[start]), chain[:start][::-1])
    assert relative_error(z, z0) < 1e-5


@settings(max_examples=15)
@given(count=st.sampled_from([10, 20, 50]), data=st.data())
def test_zero_epsilon_only_scales(count, data):
    """Each step multiplies by sqrt(abar_{k-1} / abar_k), which telescopes."""
    chain = SCHEDULE.respaced(f"ddim{count}")
    start = data.draw(st.integers(1, count))
    z = latents(1, 3, 4, 6)
    expected = numbers(z) / np.sqrt(SCHEDULE.alphas_cumprod[chain[start - 1]])
    *_, (_, z) = ddim(lambda z, t: z * 0, SCHEDULE, z, chain[:start][::-1])
    assert relative_error(z, expected) < 1e-5


@pytest.mark.parametrize("respacing, start", [("ddim50", 1), ("ddim50", 49), ("ddim1000", 12), ("ddim20", 20)])
def test_v_and_epsilon_of_one_network_lead_to_the_same_latent(respacing, start):
    z, timesteps = latents(1, 3, 4, 6), SCHEDULE.respaced(respacing)[:start][::-1]

    def epsilon(z, t):
        return (0.5 * z + 0.001 * t).tanh()

    def v(z, t):
        alpha = SCHEDULE.alphas_cumprod[t]
        return (epsilon(z, t) - float(np.sqrt(1 - alpha)) * z) / float(np.sqrt(alpha))

    *_, (_, expected) = ddim(epsilon, SCHEDULE, z, timesteps)
    *_, (_, result) = ddim(v, OF_V, z, timesteps)
    assert relative_error(result, expected) < 1e-4


def test_perfect_v_recovers_z0_from_noise_alone():
    """Through all steps of the chain whose last has no signal, and from its last index but one."""
    z0, noise = latents(1, 3, 2, 2), latents(1, 3, 2, 2, seed=1)

    def denoise(z, t):
        alpha = NO_LAST_SIGNAL.alphas_cumprod[t]
        if not alpha:
            return -z0
        return (float(np.sqrt(alpha)) * z - z0) / float(np.sqrt(1 - alpha))

    for z, start in ((noise, 1000), (NO_LAST_SIGNAL.add_noise(z0, noise, 999), 999)):
        assert np.array_equal(numbers(z), numbers(noise))
        *_, (_, z) = ddim(denoise, NO_LAST_SIGNAL, z, range(start - 1, -1, -1))
        assert relative_error(z, z0) < 1e-5


def test_sampler_yields_each_step_and_can_be_stopped():
    timesteps, asked = SCHEDULE.respaced("ddim50")[:7][::-1], []

    def denoise(z, t):
        asked.append(t)
        return z * 0

    assert [left for left, _ in ddim(denoise, SCHEDULE, latents(1, 3, 4, 6), timesteps)] == [6, 5, 4, 3, 2, 1, 0]
    assert asked == [120, 100, 80, 60, 40, 20, 0]
    asked.clear()
    steps = ddim(denoise, SCHEDULE, latents(1, 3, 4, 6), timesteps)
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
@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.5, 3.5])
def test_guidance(scale, prepared, joint):
    """null + scale * (conditional - null) at any scale: 0 is the null prediction alone, 1 the conditional one."""
    network, z = CountingNetwork(), latents(2, 3, 4, 6)
    mask = one_hot_batch(np.array([np.zeros((4, 6)), np.full((4, 6), 255)]), 29)  # the second sample: no class
    conditions = Conditions(network, mask, 4, 6, joint=joint)
    if prepared:
        conditions.prepare(prepared)
    denoise = guided_denoiser(conditions.predict, SCHEDULE, Guidance(scale))
    epsilon = [denoise(z, t) for t in (40, 20)][-1]
    null = 2 * numbers(z) + 20
    conditional = null + np.array([1 / 29, 0])[:, None, None, None]
    expected = null + scale * (conditional - null)
    assert relative_error(epsilon, expected) < 1e-6
    # once for the masks and once for none; once for all timesteps; per step the encoder once, the decoder once a branch
    branches = 2 if scale not in (0, 1) and not joint else 1
    assert network.calls == {"condition": 2, "embed": 1 if prepared else 2, "encode": 2, "decode": 2 * branches}
    other = Conditions(network, mask, 4, 6, null=conditions.null)
    assert network.calls["condition"] == 3
    assert relative_error(guided_denoiser(other.predict, SCHEDULE, Guidance(scale))(z, 20), expected) < 1e-6


def guided_by(prediction="epsilon", joint=False, **recipe):
    """The denoiser of a recipe at scale 3, for masks of one class and of none, and its network."""
    network, schedule = CountingNetwork(), {"epsilon": SCHEDULE, "v": OF_V}[prediction]
    mask = one_hot_batch(np.array([np.zeros((4, 6)), np.full((4, 6), 255)]), 29)
    planned, = make_plan(InferenceConfig((RoundConfig(3.0, "ddim50", 20),), **recipe), schedule).rounds
    return guided_denoiser(Conditions(network, mask, 4, 6, joint=joint).predict, schedule, planned.guidance), network


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_rescaled_guidance_by_hand(prediction, joint):
    """Lin et al. 2023, equations 14 to 16, of v; the network's epsilon is 2 z + t, plus the mask's mean."""
    class Uneven(CountingNetwork):
        """The mask multiplies, so that guidance changes the deviation: (2 z + t) (1 + mask's mean)."""

        def decode(self, encoded, conditions, height, width):
            self.calls["decode"] += 1
            (features,), ((t, _),) = encoded
            predicted = (features + t.reshape(1, 1, 1, 1)) * (1 + conditions[0][0][0])
            return jt.concat([predicted, predicted], 1)

    schedule = {"epsilon": SCHEDULE, "v": OF_V}[prediction]
    mask = one_hot_batch(np.array([np.zeros((4, 6)), np.full((4, 6), 255)]), 29)
    z, t, scale, share = latents(2, 3, 4, 6), 300, 4.0, 0.7
    conditions = Conditions(Uneven(), mask, 4, 6, joint=joint)
    result = numbers(guided_denoiser(conditions.predict, schedule, Guidance(scale, rescale=share))(z, t))

    z, alpha = numbers(z), schedule.alphas_cumprod[t]
    null = 2 * z + t
    conditional = null * (1 + np.array([1 / 29, 0])[:, None, None, None])
    if prediction == "epsilon":
        null, conditional = ((p - np.sqrt(1 - alpha) * z) / np.sqrt(alpha) for p in (null, conditional))
    guided = null + scale * (conditional - null)
    ratio = conditional.std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    expected = share * ratio * guided + (1 - share) * guided
    if prediction == "epsilon":
        expected = np.sqrt(alpha) * expected + np.sqrt(1 - alpha) * z
    assert relative_error(result, expected) < 1e-5
    assert ratio[0] < 0.95 and ratio[1] == 1  # the second image has no mask: nothing to take back


def test_rescaled_guidance_of_a_flat_prediction():
    for share in (0.5, 1.0):
        denoise, _ = guided_by("v", guidance_rescale=share)
        result = numbers(denoise(jt.zeros((2, 3, 4, 6)), 0))
        assert np.allclose(result[0], 3 / 29, rtol=0.01) and not result[1].any()


@pytest.mark.parametrize("values, words", [
    ({"guidance_rescale": 1.5}, ["inference.guidance_rescale 1.5", "0 to 1"]),
    ({"final_color_share": -1.0}, ["inference.final_color_share -1", "0 to 1"]),
    ({"canvas": (64,)}, ["inference.canvas [64]", "a width and a height"]),
])
def test_impossible_recipe(values, words):
    refused(lambda: check_config(Config(inference=InferenceConfig(**values))), *words)


def test_guided_chain_parity(reference_unet):
    """20 steps at guidance 3.5, as the release does them."""
    expected = reference("ddim")
    start, scale = int(expected["start"]), float(expected["guidance"])
    chain = SCHEDULE.respaced("ddim50")
    z = SCHEDULE.add_noise(jt.array(expected["z0"]), jt.array(expected["noise"]), chain[start])
    conditions = Conditions(reference_unet, one_hot_batch(expected["label"], 29), *z.shape[2:])
    denoise = guided_denoiser(conditions.predict, SCHEDULE, Guidance(scale))
    samples = [z.numpy() for _, z in ddim(denoise, SCHEDULE, z, chain[:start][::-1])]
    assert len(samples) == 20
    assert relative_error(samples[0], expected["sample_first"]) < 1e-4
    assert relative_error(samples[-1], expected["sample_last"]) < 5e-4


# ---- loss

def test_loss_parity(reference_unet):
    expected = reference("loss")
    z0, noise, t = jt.array(expected["z0"]), jt.array(expected["noise"]), expected["t"]
    zt = SCHEDULE.add_noise(z0, noise, t)
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


def test_loss_of_v():
    """The target by its definition, and the bound of the epsilon that it implies."""
    z0, noise, t = latents(2, 3, 4, 6), latents(2, 3, 4, 6, seed=1), np.array([0, 613])
    output = latents(2, 6, 4, 6, seed=2)
    mse, bound = hybrid_loss(OF_V, output, z0, noise, t)
    alpha = SCHEDULE.alphas_cumprod[t].reshape(2, 1, 1, 1)
    signal, deviation = np.sqrt(alpha), np.sqrt(1 - alpha)
    v = numbers(output)[:, :3]
    target = signal * numbers(noise) - deviation * numbers(z0)
    assert np.allclose(mse.numpy(), ((target - v) ** 2).mean((1, 2, 3)), rtol=1e-5)
    zt = signal * numbers(z0) + deviation * numbers(noise)
    implied = jt.array(np.concatenate([deviation * zt + signal * v, numbers(output)[:, 3:]], 1).astype("float32"))
    assert np.allclose(bound.numpy(), hybrid_loss(SCHEDULE, implied, z0, noise, t)[1].numpy(), rtol=1e-3)
    of_bound = jt.grad(bound.sum(), output).numpy()
    assert not of_bound[:, :3].any() and of_bound[:, 3:].any((1, 2, 3)).all()


def test_loss_where_no_signal_is_left():
    """Finite with its gradient for any output, and 0 for v = -z_0 with the posterior's own variance."""
    z0, noise, t = latents(2, 3, 4, 6), latents(2, 3, 4, 6, seed=1), np.array([999, 998])
    output = latents(2, 6, 4, 6, seed=2)
    terms = hybrid_loss(NO_LAST_SIGNAL, output, z0, noise, t)
    for term in (*terms, jt.grad(sum(term.sum() for term in terms), output)):
        assert np.isfinite(term.numpy()).all()
    perfect = jt.concat([-z0[:1], jt.full((1, 3, 4, 6), -1.0)], 1)
    mse, bound = hybrid_loss(NO_LAST_SIGNAL, perfect, z0[:1], noise[:1], t[:1])
    assert mse.item() == 0 and abs(bound.item()) < 1e-6


def test_min_snr_weights_by_hand():
    """Hang et al. 2023 with gamma 5: an SNR of 1/3 is below it, of 19 above; v's weight at no signal is 0."""
    schedules = {p: Schedule(DiffusionConfig(prediction=p, loss_weight="min_snr")) for p in ("epsilon", "v")}
    for prediction, expected in (("epsilon", [1, 5 / 19]), ("v", [(1 / 3) / (4 / 3), 5 / 20])):
        schedule = schedules[prediction]
        snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
        for value, weight in zip((1 / 3, 19), expected, strict=True):
            assert np.interp(-value, -snr, schedule.loss_weights) == pytest.approx(weight, rel=1e-3)
        full = np.minimum(snr, 5) / (snr if prediction == "epsilon" else snr + 1)
        assert np.allclose(schedule.loss_weights, full, rtol=1e-9)
    last = Schedule(DiffusionConfig(prediction="v", zero_terminal_snr=True, loss_weight="min_snr"))
    assert last.loss_weights[-1] == 0 and np.isfinite(last.loss_weights).all()
    few = Schedule(DiffusionConfig(loss_weight="min_snr", min_snr_gamma=2.5))
    assert few.loss_weights[0] == pytest.approx(schedules["epsilon"].loss_weights[0] / 2)


def test_weights_meet_their_timesteps():
    schedule, t, mse = Schedule(DiffusionConfig(loss_weight="min_snr")), np.array([900, 3, 40]), jt.array([2.0, 3, 4])
    assert np.allclose(weighted(schedule, mse, t).numpy(), schedule.loss_weights[t] * [2, 3, 4], rtol=1e-6)
    assert weighted(SCHEDULE, mse, t) is mse


def test_training_weighs_the_squared_error_and_shows_the_quarters_as_they_are():
    """One loss at one timestep: the weight is that of the term the UNet learns from, and of nothing else."""
    trainer = object.__new__(UNetTrainer)
    trainer.config = Config(diffusion=DiffusionConfig(loss_weight="min_snr"))
    trainer.schedule = Schedule(trainer.config.diffusion)
    trainer.denoise = lambda zt, t, mask: jt.concat([zt, zt * 0], 1)
    trainer.samples = SimpleNamespace(latents_of=jt.array)
    arrays = np.random.default_rng(0).standard_normal((2, 2, 3, 4, 6)).astype("float32")
    part = arrays[0], np.zeros((2, 4, 6)), np.array([30, 30]), arrays[1], np.ones(2, "float32")
    mse, bound, *quarters = (loss.item() for loss in trainer.losses(0, part).logged)
    assert trainer.schedule.loss_weights[30] < 0.5
    assert mse == pytest.approx(trainer.schedule.loss_weights[30] * np.mean(quarters), rel=1e-5)
    trainer.schedule = SCHEDULE
    plain = trainer.losses(0, part).logged
    assert [loss.item() for loss in plain] == [pytest.approx(v) for v in (np.mean(quarters), bound, *quarters)]
