"""DPM-Solver++: closed forms, its order, the choice of timesteps, and how a user picks it."""
import json

import numpy as np
import pytest
from helpers import made_up, numbers, refused, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from jiidm import Generator
from jiidm.checkpoint import Checkpoint, arrays_of, load_checkpoint
from jiidm.config import (
    Config,
    DiffusionConfig,
    InferenceConfig,
    RoundConfig,
    check_config,
    from_dict,
    to_dict,
    with_recipe,
)
from jiidm.diffusion.samplers import ddim, dpmpp
from jiidm.diffusion.schedule import Schedule
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.inference.plan import make_plan
from jiidm.inference.refinement import sample_round
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.runtime import jt

SCHEDULE = Schedule(DiffusionConfig())
NO_LAST_SIGNAL = Schedule(DiffusionConfig(prediction="v", zero_terminal_snr=True))
LAMBDA = np.log(SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)) / 2
MEAN, DEVIATION = 0.5, 0.8  # of the Gaussian data


def latents(*shape, seed=0):
    return jt.array(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def last(steps):
    *_, (_, z) = steps
    return z


def solve(denoise, schedule, z, start, steps):
    """DPM-Solver++ from a timestep in some steps."""
    return dpmpp(denoise, schedule, z, schedule.descent(start, steps))


def uneven(z, t):
    """An epsilon that follows neither z nor t linearly."""
    return (z * (1 + 0.001 * t)).tanh() + 0.3 * z


def gaussian(z, t):
    """The exact epsilon for data of the distribution N(MEAN, DEVIATION^2): -deviation of the noise * score."""
    alpha = SCHEDULE.alphas_cumprod[t]
    scale = np.sqrt(1 - alpha) / (alpha * DEVIATION**2 + 1 - alpha)
    return float(scale) * (z - float(np.sqrt(alpha) * MEAN))


def gaussian_end(z, t):
    """Where the probability-flow ODE leads from z at t: it keeps each place in units of the standard deviation."""
    alpha = SCHEDULE.alphas_cumprod[t]
    place = (numbers(z) - np.sqrt(alpha) * MEAN) / np.sqrt(alpha * DEVIATION**2 + 1 - alpha)
    return MEAN + DEVIATION * place


def v_of_gaussian(schedule):
    """The exact v for the same data: signal * epsilon - deviation * z0, both the means given z."""
    def v(z, t):
        alpha = schedule.alphas_cumprod[t]
        place = (z - float(np.sqrt(alpha) * MEAN)) / float(alpha * DEVIATION**2 + 1 - alpha)
        epsilon, z0 = float(np.sqrt(1 - alpha)) * place, MEAN + float(np.sqrt(alpha) * DEVIATION**2) * place
        return float(np.sqrt(alpha)) * epsilon - float(np.sqrt(1 - alpha)) * z0

    return v


def rms(difference):
    return float(np.sqrt(np.mean(np.square(difference))))


# ---- the choice of timesteps

@given(st.integers(0, 999), st.data())
def test_descent_is_distinct_and_starts_at_the_start(start, data):
    steps = data.draw(st.integers(1, start + 1))
    indices = SCHEDULE.descent(start, steps)
    assert len(indices) == steps and indices[0] == start and indices[-1] >= 0
    assert (np.diff(indices) < 0).all()


@pytest.mark.parametrize("start", [600, 640, 400, 999])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_descent_is_even_in_lambda(start, steps):
    """To half an index, which near the picture is much of a step."""
    indices = SCHEDULE.descent(start, steps)
    even = np.linspace(LAMBDA[start], LAMBDA[0], steps + 1)[:-1]
    below, above = LAMBDA[np.minimum(indices + 1, 999)], LAMBDA[np.maximum(indices - 1, 0)]
    assert (below <= even + 1e-9).all() and (even <= above + 1e-9).all()
    far = indices > 50
    assert np.abs(LAMBDA[indices] - even)[far].max() < 0.01


@pytest.mark.parametrize("steps", [0, -1, 402])
def test_no_more_steps_than_timesteps(steps):
    refused(lambda: SCHEDULE.descent(400, steps), f"steps {steps}", "1 to 401")
    recipe = InferenceConfig((RoundConfig(3.0, "ddim50", 20),), sampler="dpmpp", steps=steps)
    refused(lambda: make_plan(recipe, SCHEDULE), f"steps {steps}", "1 to 401" if steps > 0 else "at least 1")


def test_all_timesteps_may_be_taken():
    assert SCHEDULE.descent(30, 31).tolist() == list(range(30, -1, -1))


@pytest.mark.parametrize("start, steps", [(999, 1), (999, 20), (990, 5), (999, 1000), (40, 3)])
def test_descent_from_no_signal(start, steps):
    """Places where less is left than at the end of the paper's schedule are one to the solver: no steps are lost
    there."""
    indices = NO_LAST_SIGNAL.descent(start, steps)
    assert len(indices) == steps and indices[0] == start and indices[-1] >= 0 and (np.diff(indices) < 0).all()
    if steps == 20:
        assert (NO_LAST_SIGNAL.alphas_cumprod[indices[1:]] > 4e-5).all()


# ---- the solver

@settings(max_examples=15)
@given(start=st.integers(1, 999), data=st.data())
def test_perfect_epsilon_recovers_z0(start, data):
    """From every start, in any number of steps; no inf or NaN at the clean end."""
    steps = data.draw(st.integers(1, min(start + 1, 25)))
    z0, noise = latents(1, 3, 4, 6), latents(1, 3, 4, 6, seed=1)

    def denoise(z, t):
        alpha = SCHEDULE.alphas_cumprod[t]
        return (z - float(np.sqrt(alpha)) * z0) / float(np.sqrt(1 - alpha))

    z = last(solve(denoise, SCHEDULE, SCHEDULE.add_noise(z0, noise, start), start, steps))
    assert relative_error(z, z0) < 1e-6 / np.sqrt(SCHEDULE.alphas_cumprod[start])  # what float32 keeps of z0 there


@pytest.mark.parametrize("start", [600, 400])
def test_order(start):
    """The error against the exact solution falls with the square of the steps; DDIM's falls in proportion to them."""
    z = SCHEDULE.add_noise(MEAN + DEVIATION * latents(1, 3, 16, 16), latents(1, 3, 16, 16, seed=1), start)
    exact = gaussian_end(z, start)
    second, first = {}, {}
    for steps in (10, 20, 40, 80):
        second[steps] = rms(numbers(last(solve(gaussian, SCHEDULE, z, start, steps))) - exact)
        first[steps] = rms(numbers(last(ddim(gaussian, SCHEDULE, z, SCHEDULE.descent(start, steps)))) - exact)
    assert np.log2(second[20] / second[80]) / 2 > 1.7
    assert 0.85 < np.log2(first[20] / first[80]) / 2 < 1.15
    assert all(second[steps] < first[steps] / 5 for steps in second)
    # the recipe's own DDIM, which evaluates one index below the noise that is there
    timesteps = SCHEDULE.respaced("ddim50")[: start // 20][::-1]
    assert second[20] < rms(numbers(last(ddim(gaussian, SCHEDULE, z, timesteps))) - exact) / 5


@pytest.mark.parametrize("steps", [20, 40])
def test_data_from_noise_alone(steps):
    """Where the chain has no signal at its last step, noise leads to the data's own distribution: v of Gaussian data
    takes N(0, 1) to N(MEAN, DEVIATION^2), place by place."""
    noise = latents(1, 3, 16, 16)
    z = NO_LAST_SIGNAL.add_noise(latents(1, 3, 16, 16, seed=1), noise, 999)
    exact = MEAN + DEVIATION * numbers(noise)
    solved = numbers(last(solve(v_of_gaussian(NO_LAST_SIGNAL), NO_LAST_SIGNAL, z, 999, steps)))
    assert rms(solved - exact) < 5 / steps**2
    followed = numbers(last(ddim(v_of_gaussian(NO_LAST_SIGNAL), NO_LAST_SIGNAL, z, range(999, -1, -1))))
    assert rms(followed - exact) < 0.01


def test_v_and_epsilon_of_one_network_lead_to_the_same_latent():
    z, of_v = latents(1, 3, 4, 6), Schedule(DiffusionConfig(prediction="v"))
    expected = last(solve(gaussian, SCHEDULE, z, 600, 7))
    assert relative_error(last(solve(v_of_gaussian(of_v), of_v, z, 600, 7)), expected) < 1e-5


def test_first_order_steps_are_those_of_ddim():
    """The first step and the last are; with two there is no other."""
    z = latents(2, 3, 4, 6)
    timesteps = SCHEDULE.descent(600, 2)
    solver, plain = (list(s) for s in (dpmpp(uneven, SCHEDULE, z, timesteps), ddim(uneven, SCHEDULE, z, timesteps)))
    assert [left for left, _ in solver] == [left for left, _ in plain] == [1, 0]
    for (_, actual), (_, expected) in zip(solver, plain, strict=True):
        assert relative_error(actual, expected) < 1e-5
    one, alpha = last(solve(uneven, SCHEDULE, z, 600, 1)), SCHEDULE.alphas_cumprod[600]
    predicted = (numbers(z) - np.sqrt(1 - alpha) * numbers(uneven(z, 600))) / np.sqrt(alpha)
    assert relative_error(one, predicted) < 1e-5


def test_second_order_step_by_hand():
    """Algorithm 2 of the paper, written out for the second of three steps."""
    z, (t0, t1, t2) = latents(1, 3, 4, 6), SCHEDULE.descent(600, 3)
    asked = []

    def denoise(z, t):
        asked.append((t, numbers(z)))
        return uneven(z, t)

    result = last(solve(denoise, SCHEDULE, z, 600, 3))
    assert [t for t, _ in asked] == [t0, t1, t2]
    signal, deviation = np.sqrt(SCHEDULE.alphas_cumprod), np.sqrt(1 - SCHEDULE.alphas_cumprod)
    z0 = [(z - deviation[t] * numbers(uneven(jt.array(z.astype("float32")), t))) / signal[t] for t, z in asked]
    h = LAMBDA[t2] - LAMBDA[t1]
    r = (LAMBDA[t1] - LAMBDA[t0]) / h
    mixed = (1 + 1 / (2 * r)) * z0[1] - 1 / (2 * r) * z0[0]
    expected = deviation[t2] / deviation[t1] * asked[1][1] - signal[t2] * (np.exp(-h) - 1) * mixed
    assert relative_error(asked[2][1], expected) < 1e-5
    assert relative_error(result, z0[2]) < 1e-5


@pytest.mark.parametrize("shape", [(3, 4, 6), (3, 5, 7), (1, 3, 5)])
def test_each_image_is_its_own(shape):
    """At any size: a sampler computes with +, - and * alone, which g++ rounds alike in and after vectorised loops. A
    tanh here would not do: glibc's vectorised one differs from its scalar one in the last bit."""
    def denoise(z, t):
        return jt.clamp(z * (1 + 0.001 * t), -1, 1) + 0.3 * z

    z = latents(3, *shape)
    together = numbers(last(solve(denoise, SCHEDULE, z, 640, 6)))
    for i in range(3):
        assert np.array_equal(numbers(last(solve(denoise, SCHEDULE, z[i : i + 1], 640, 6)))[0], together[i])


def test_yields_each_step_can_be_stopped_and_leaves_gradients_on():
    asked = []
    steps = solve(lambda z, t: asked.append(t) or z * 0, SCHEDULE, latents(1, 3, 4, 6), 600, 5)
    assert [next(steps)[0], next(steps)[0]] == [4, 3]
    assert not jt.flags.no_grad
    steps.close()
    assert asked == SCHEDULE.descent(600, 5)[:2].tolist()


class Recording:
    """In place of `Conditions`: a prediction of 0, and what was asked for."""

    def __init__(self):
        self.asked = []

    def prepare(self, timesteps):
        self.prepared = list(timesteps)

    def predict(self, z, t, conditional, null):
        self.asked.append((t, numbers(z)))
        return [z * 0] * (conditional + null)


def test_both_samplers_begin_with_the_rounds_own_noise():
    """The chain's start index stands for a timestep; both samplers begin with the same latents."""
    latent, noise, asked = latents(1, 3, 4, 6), np.float32(numbers(latents(1, 3, 4, 6, seed=1))), {}
    for sampler, count in (("ddim", 20), ("dpmpp", 4)):
        recipe = InferenceConfig((RoundConfig(3.7, "ddim50", 20),), sampler=sampler, steps=4)
        (planned,), conditions = make_plan(recipe, SCHEDULE).rounds, Recording()
        left = [n for n, _ in sample_round(conditions, SCHEDULE, planned, latent, noise)]
        assert left == list(range(count))[::-1]
        assert list(planned.timesteps) == [t for t, _ in conditions.asked] == conditions.prepared
        assert planned.guidance.scale == 3.7 and planned.start == 400
        asked[sampler] = conditions.asked
    assert [t for t, _ in asked["ddim"]] == list(range(380, -1, -20))
    assert [t for t, _ in asked["dpmpp"]] == SCHEDULE.descent(400, 4).tolist()
    assert np.array_equal(asked["ddim"][0][1], asked["dpmpp"][0][1])


# ---- how it is picked

def steps_of(recipe, config=None):
    """How many steps the first round of the recipe takes; the paper's has 300 of DDIM."""
    chosen = with_recipe(config or Config(), recipe).inference
    return len(make_plan(chosen, SCHEDULE, rounds=1).rounds[0].timesteps)


def test_chosen_steps():
    few = with_recipe(Config(), {"sampler": "dpmpp", "steps": 12})
    assert steps_of(None) == 300
    assert steps_of({"sampler": "dpmpp"}) == 20
    assert steps_of({"sampler": "dpmpp", "steps": 7}) == 7
    assert steps_of(None, few) == 12
    assert steps_of({"steps": 9}, few) == 9
    assert steps_of({"sampler": "ddim"}, few) == 300


@pytest.mark.parametrize("recipe, words", [
    ({"sampler": "euler"}, ["'euler'", "ddim, dpmpp"]),
    ({"sampler": ["dpmpp"]}, ["['dpmpp']", "sampler"]),
    ({"sampler": "ddim", "steps": 21}, ["steps 21", "dpmpp"]),
    ({"steps": 21}, ["steps 21", "dpmpp"]),
    ({"sampler": "dpmpp", "steps": 0}, ["steps 0", "at least 1"]),
    ({"sampler": "dpmpp", "steps": True}, ["steps", "True", "int"]),
    ({"sampler": "dpmpp", "steps": 2.5}, ["steps", "2.5", "int"]),
])
def test_what_cannot_be_chosen(recipe, words):
    refused(lambda: steps_of(recipe), *words)


def test_configuration():
    check_config(Config())
    refused(lambda: check_config(Config(inference=InferenceConfig(sampler="euler"))), "inference.sampler", "dpmpp")
    refused(lambda: check_config(Config(inference=InferenceConfig(steps=0))), "inference.steps 0")
    old = json.loads(json.dumps(to_dict(Config())))
    del old["inference"]["sampler"], old["inference"]["steps"]
    assert from_dict(Config, old, "a checkpoint from before there was a choice") == Config()


def test_default_weights_keep_the_papers_sampler():
    config = load_checkpoint(DEFAULT_WEIGHTS / "unet-mean.safetensors").config
    assert config.inference.sampler == "ddim" and steps_of(None, config) == config.inference.rounds[0].start


@pytest.fixture(scope="module")
def generator(tiny_config):
    rounds = (RoundConfig(2.0, "ddim20", 3), RoundConfig(2.0, "ddim20", 2))
    config = from_dict(Config, {**to_dict(tiny_config), "inference": to_dict(InferenceConfig(rounds))}, "here")
    networks = {"autoencoder": Autoencoder(config.autoencoder), "unet": UNet(config.unet)}
    made = {kind: Checkpoint(kind, kind, config, 1, arrays_of(made_up(n, 5))) for kind, n in networks.items()}
    return Generator(made["autoencoder"], [made["unet"]])


def test_generator_reports_the_solvers_steps(generator):
    mask = np.arange(32 * 48).reshape(32, 48) // 400
    style = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    pictures = {}
    for sampler, recipe, counts in ((None, None, (3, 2)), ("ddim", {"sampler": "ddim"}, (3, 2)),
                                    ("dpmpp", {"sampler": "dpmpp", "steps": 4}, (4, 4))):
        seen = []
        pictures[sampler] = np.asarray(generator.infer(mask, style, rounds=2, recipe=recipe, on_step=seen.append))
        assert [(s.round, s.done, s.steps) for s in seen] == [
            (r, i, n) for r, n in enumerate(counts) for i in range(1, n + 1)]
        assert [s.pictures is not None for s in seen] == [i == n for n in counts for i in range(1, n + 1)]
    assert np.array_equal(pictures[None], pictures["ddim"])
    assert (pictures["dpmpp"] != pictures["ddim"]).any()


def test_generator_refuses_before_it_reads_anything(generator):
    for choice, words in (({"steps": 5}, ["steps 5", "dpmpp"]), ({"sampler": "heun"}, ["'heun'"]),
                          ({"sampler": "dpmpp", "steps": 152}, ["steps 152", "1 to 151"])):
        refused(lambda c=choice: generator.infer(np.zeros((32, 48), int), "no-such-photo.jpg", rounds=1, recipe=c),
                *words)
