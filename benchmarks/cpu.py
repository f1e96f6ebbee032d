"""The benchmark on the CPU. Each row is a ratio of two times of one run: `make bench`, on a quiet machine."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ.setdefault("JIIDM_DEVICE", "cpu")

from benchmarks.measuring import (
    ROOT,
    has_torch,
    machine,
    machine_name,
    normal,
    peak_gb,
    program,
    resident_gb,
    row,
    seconds,
    torch_program,
    with_random_weights,
    write_report,
)
from benchmarks.training_speed import NETWORKS, compare_steps
from jiidm.baselines.config import BaselineRun
from jiidm.baselines.cost import parameter_count
from jiidm.baselines.inference import BaselineGenerator
from jiidm.baselines.networks import Baseline, save_baseline
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import AutoencoderConfig, Config, UNetConfig, builtin_config, load_config
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.kernels.attention import attention, attention_plain
from jiidm.kernels.convolution import PackedConvolution, blocked
from jiidm.kernels.group_norm import group_norm, group_norm_plain
from jiidm.kernels.nearest_code import nearest_code, nearest_code_plain
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import prepare, use_blocks
from jiidm.models.unet import Conditions, ReferenceConditions, UNet
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

HEIGHT, WIDTH, SCALE, TIMESTEP = 96, 128, 3.5, 500
SCHEDULE = Schedule(Config().diffusion)
STEP_FLOP = 799e9  # of a guided step at full size, see docs/performance.md


def draw_inputs(images=1, height=HEIGHT, width=WIDTH):
    """Noised latents and one-hot label maps of N images; the maps have areas of one class, as real ones."""
    labels = np.random.default_rng(1).integers(0, 29, (images, 6, 8)).repeat(height // 6, 1).repeat(width // 8, 2)
    return normal(images, 3, height, width), one_hot_batch(labels, 29)


def predict_guided(conditions, z):
    """The guided prediction for latents at TIMESTEP."""
    return guided_denoiser(conditions.predict, SCHEDULE, Guidance(SCALE))(z, TIMESTEP)


def build_full_size():
    """The full-size UNet with random weights, ready for inference."""
    network = with_random_weights(UNet(UNetConfig()))
    prepare(network, PackedConvolution)
    return network


# ------------------------------------------------------------------------------------------------------------ sections

def step(folder):
    """A guided step at full size, compared with the release's algorithm and PyTorch; differences over a chain."""
    network = build_full_size()
    z, mask = draw_inputs()
    start = time.perf_counter()
    fast = Conditions(network, mask, HEIGHT, WIDTH)
    fast.prepare([TIMESTEP])
    predict_guided(fast, z).sync()
    first = time.perf_counter() - start
    ours = seconds(lambda: predict_guided(fast, z))
    memory = resident_gb()
    chain = SCHEDULE.respaced("ddim50")
    noised = SCHEDULE.add_noise(z, normal(*z.shape, seed=2), chain[20])

    def sample(conditions):
        conditions.prepare(chain[:20])
        denoise = guided_denoiser(conditions.predict, SCHEDULE, Guidance(SCALE))
        return [v for _, v in ddim(denoise, SCHEDULE, noised, chain[:20][::-1])][-1].numpy()

    result = sample(fast)
    epsilon = predict_guided(fast, z).numpy()
    prepare(network, None)
    release = ReferenceConditions(network, mask)
    predict_guided(release, z).sync()  # compiles
    start = time.perf_counter()
    expected = sample(release)
    plain = (time.perf_counter() - start) / 20  # the steps of `sample`
    error = float(np.abs(result - expected).max() / np.abs(expected).max())
    yield row("guided step", ours, "s", "release's algorithm, Jittor's own operators", plain,
              note=f"{STEP_FLOP / ours / 1e9:.0f} GFLOP/s counted in the direct convolution's FLOP")
    yield row("first step of a process (weights packed, maps made)", first, "s")
    yield row("20-step chain, largest difference", error, "of the largest value", note="fast path from the plain one")
    yield row("memory", memory, "GB", note="weights, packed weights, maps of one image, one step")
    weights, given = folder / "unet.safetensors", folder / "inputs.npz"
    save_checkpoint(weights, "unet", arrays_of(network), Config(), 0, "float32")
    np.savez(given, z=z.numpy(), t=np.array([TIMESTEP], np.int32), mask=mask.numpy())
    yield from compare_with_torch(weights, given, folder / "out.npz", ours, epsilon)


def compare_with_torch(weights, given, out, ours, epsilon):
    """The same step in PyTorch, in processes of its own: first its result, then its time."""
    call = torch_program("torch_unet", "--weights", weights, "--inputs", given, "--scale", SCALE, "--steps", 3)
    if not has_torch():
        yield row("PyTorch", float("nan"), "s", note="not measured: pip install torch, or set TORCH_PYTHON")
        return
    subprocess.run([*call, "--variants", "eager", "--output", out], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    with np.load(out) as file:
        difference = float(np.abs(file["eager_guided"] - epsilon).max() / np.abs(epsilon).max())
    if difference > 1e-4:
        raise InputError(f"PyTorch's epsilon differs by {difference:.1e} of the largest value; expected at most 1e-4")
    yield row("guided step, largest difference from PyTorch", difference, "of the largest value")
    done = subprocess.run(call, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    report = json.loads(done.stdout.splitlines()[-1])
    for name, variant in report["variants"].items():
        peak = variant["peak_resident_bytes"] / 1e9
        yield row("guided step", ours, "s", f"PyTorch {report['torch']} {name}, two whole forwards",
                  variant["median_seconds"], note=f"PyTorch's peak memory {peak:.1f} GB")


_COPY = r"""
    @alias(size, in0) @alias(done, out0)
    static std::vector<float> from, to;    // kept, so that no page is touched for the first time within the time
    const int64_t n = size_p[0];
    from.resize(n); to.resize(n);
    #pragma omp parallel
    {
        const int64_t t = omp_get_thread_num(), all = omp_get_num_threads();
        memcpy(&to[n * t / all], &from[n * t / all], (n * (t + 1) / all - n * t / all) * sizeof(float));
    }
    done_p[0] = to[0];
"""


def copy_bandwidth(size):
    """Bytes a second that copying moves when it reads and writes `size` bytes in all."""
    floats = jt.array(np.array([size // 8]))
    header = "#include <omp.h>\n#include <cstring>\n#include <vector>"
    return size / seconds(lambda: jt.code((1,), "float32", [floats], cpu_header=header, cpu_src=_COPY), 15)


def kernels(_):
    """Each kernel against its plain twin and the machine's limit."""
    with jt.no_grad():
        a = normal(2048, 2048)
        rate = 2 * 2048**3 / seconds(lambda: nn.matmul(a, a))
        yield row("matrix product, 2048 x 2048", rate / 1e9, "GFLOP/s", note="the machine's limit in what follows")
        yield row("copy of 25 MB", copy_bandwidth(25_000_000) / 1e9, "GB/s", note="likewise")
        for channels, height, width in ((256, 96, 128), (512, 96, 128), (512, 24, 32)):
            x, gamma, beta = (normal(1, channels, height, width, seed=s) for s in range(3))
            pair = normal(1, channels), normal(1, channels, seed=1)
            given = [blocked(v) for v in (x, gamma, beta)]
            jt.sync(given)
            for maps, factor in ((False, 2), (True, 4)):
                ours = seconds(lambda g=given, p=pair, m=maps: group_norm(
                    g[0], 32, 1e-5, (g[1], g[2]) if m else None, p, True), 15)
                plain = seconds(lambda v=(x, gamma, beta), p=pair, m=maps: group_norm_plain(
                    v[0], 32, 1e-5, (v[1], v[2]) if m else None, p, True))
                moved = factor * 4 * x.numel()
                name = f"group norm, {'SPADE, ' if maps else ''}scale, shift, SiLU {channels} x {height} x {width}"
                share = moved / ours / copy_bandwidth(moved)
                yield row(name, 1e3 * ours, "ms", "plain twin", 1e3 * plain,
                          note=f"{moved / ours / 1e9:.0f} GB/s, {100 * share:.0f} % of a copy of as many bytes")
        for heads, depth, length in ((8, 64, 768), (12, 64, 192), (1, 512, 768), (2, 128, 1728)):
            q, k, v = (normal(heads, depth, length, seed=s) for s in range(3))
            ours, plain = seconds(lambda a=(q, k, v): attention(*a)), seconds(lambda a=(q, k, v): attention_plain(*a))
            flop = 4 * heads * depth * length**2
            yield row(f"attention {heads} heads x {depth} x {length}", 1e3 * ours, "ms", "plain twin", 1e3 * plain,
                      note=f"{flop / ours / 1e9:.0f} GFLOP/s, {100 * flop / ours / rate:.0f} % of the matrix product")
        z, codes = normal(HEIGHT * WIDTH, 3), normal(8192, 3, seed=1)
        ours, plain = seconds(lambda: nearest_code(z, codes)), seconds(lambda: nearest_code_plain(z, codes))
        yield row("nearest of 8192 codes, 12288 positions", 1e3 * ours, "ms", "plain twin", 1e3 * plain)
        for channels, out, height, width, size in (
            (256, 256, 96, 128, 3), (512, 256, 96, 128, 3), (512, 512, 24, 32, 3), (768, 768, 12, 16, 3),
            (1024, 1024, 6, 8, 3), (512, 256, 96, 128, 1),
        ):
            x, weight, bias = normal(1, channels, height, width), normal(out, channels, size, size), normal(out)
            packed, given = PackedConvolution(weight, bias, 1, (size // 2, size // 2)), blocked(x)
            given.sync()
            ours = seconds(lambda p=packed, g=given: p(g))
            plain = seconds(lambda a=(x, weight, bias), s=size: nn.conv2d(*a, 1, s // 2))
            flop = 2 * channels * out * size**2 * height * width
            yield row(f"convolution {size}x{size}, {channels} to {out}, {height} x {width}", 1e3 * ours, "ms",
                      "Jittor's", 1e3 * plain, note=f"{flop / ours / 1e9:.0f} GFLOP/s of the direct method's FLOP, "
                                                    f"{flop / ours / rate:.2f} of the matrix product's rate")


_PICTURE = """
import json, sys, time
import numpy as np
from benchmarks.measuring import peak_gb
from jiidm import Generator
generator = Generator.from_checkpoint(sys.argv[1], "cpu", low_memory=sys.argv[2] == "low")
labels = np.random.default_rng(1).integers(0, 29, (6, 8)).astype(np.uint8).repeat(64, 0).repeat(64, 1)
times, report = [], {}
def on_step(step):
    times.append(time.perf_counter())
    report.setdefault("step", peak_gb())
generator.infer(labels, labels[..., None].repeat(3, 2) * 8, on_step=on_step,
                rounds=[{"guidance": 3.5, "respacing": "ddim50", "start": 6}])
print("FOUND", json.dumps({**report, "picture": peak_gb(), "seconds": float(np.median(np.diff(times[:-1])))}))
"""


def memory(folder):
    """The most memory that loading, a guided step and a whole 512 x 384 picture at full size take, and at what cost."""
    config, found = Config(), {}
    for kind, network in (("autoencoder", Autoencoder(config.autoencoder)), ("unet", UNet(config.unet))):
        save_checkpoint(folder / f"{kind}.safetensors", kind, arrays_of(with_random_weights(network)), config, 0)
    for how in ("low", "packed"):
        done = subprocess.run([sys.executable, "-c", _PICTURE, folder, how], cwd=ROOT, stdout=subprocess.PIPE,
                              text=True, check=True)
        found[how] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[6:])
    low, packed = found["low"], found["packed"]
    for what, name in (("step", "loading and a guided step"), ("picture", "a whole 512 x 384 picture")):
        yield row(f"peak memory of {name}, low memory", low[what], "GB", "packed weights", packed[what])
    yield row("guided step, low memory", low["seconds"], "s", "packed weights", packed["seconds"])


def training(folder):
    """A training step of the default UNet, and of the default autoencoder with its discriminator."""
    config = load_config(builtin_config("default"))
    for what in NETWORKS:
        yield from compare_steps(what, config, folder)


def autoencoder(_):
    """Encoding and decoding one 512 x 384 picture at full size."""
    network = with_random_weights(Autoencoder(AutoencoderConfig()))
    picture, latent = normal(1, 3, 384, 512), normal(1, 3, 96, 128)
    use_blocks(network, 1)  # channels that fill no block: Jittor's own convolutions
    with jt.no_grad():
        plain = [seconds(lambda: network.encode(picture), 3, 1), seconds(lambda: network.decode(latent), 3, 1)]
        prepare(network, PackedConvolution)
        ours = [seconds(lambda: network.encode(picture)), seconds(lambda: network.decode(latent))]
    for name, one, other in zip(("encoding", "decoding"), ours, plain, strict=True):
        # its naive attention over 12288 positions alone would take half a minute
        yield row(f"{name} one 512 x 384 picture", one, "s", "Jittor's own convolutions, the kernels else", other)


def growth(_):
    """A guided step of several images and of other sizes; memory."""
    network = build_full_size()
    base = None
    for images in (1, 2, 4, 8):
        z, mask = draw_inputs(images)
        conditions = Conditions(network, mask, HEIGHT, WIDTH, 2048 * 2**20)
        one = seconds(lambda c=conditions, z=z: predict_guided(c, z), 3, 1) / images
        base = base or one
        yield row(f"guided step, {images} images of 96 x 128", one, "s an image", "one image", base,
                  note=f"memory {resident_gb():.1f} GB")
    for height, width in ((48, 64), (192, 256)):
        z, mask = draw_inputs(1, height, width)
        conditions = Conditions(network, mask, height, width, 2048 * 2**20)
        one = seconds(lambda c=conditions, z=z: predict_guided(c, z), 3, 1)
        share = height * width / (HEIGHT * WIDTH)
        yield row(f"guided step, one image of {height} x {width}", one, "s", f"{share:.2f} times that of 96 x 128",
                  share * base, note=f"peak memory so far {peak_gb():.1f} GB")


def pictures(folder):
    """Whole pictures with the default weights, and start-up."""
    script = folder / "pictures.py"
    script.write_text(
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "from pathlib import Path\n"
        "from jiidm import Generator\n"
        "generator = Generator.from_checkpoint('default')\n"
        "masks = sorted(Path('examples/test/labels').glob('*.png'))[:4]\n"
        "styles = sorted(Path('examples/train/imgs').glob('*.jpg'))[:4]\n"
        "generator.infer(masks[:1], styles[:1], rounds=[{'guidance': 3.0, 'respacing': 'ddim50', 'start': 1}])\n"
        "print('first', time.perf_counter() - start)\n"
        "for name, options in (('ddim', {}), ('dpmpp', {'sampler': 'dpmpp', 'steps': 12})):\n"
        "    times = []\n"
        "    for _ in range(0 if 'cold' in sys.argv else 6):\n"
        "        start = time.perf_counter()\n"
        "        generator.infer(masks, styles, recipe=options)\n"
        "        times.append(time.perf_counter() - start)\n"
        "    if times:\n"
        "        print(name, sorted(times[1:])[2])\n")

    def run(*arguments, **variables):
        done = subprocess.run([sys.executable, script, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                              check=True, env={**os.environ, "PYTHONPATH": str(ROOT), **variables})
        return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines()
                                                       if line.split()[0] in ("first", "ddim", "dpmpp"))}

    run("cold")
    warm = run()
    yield row("start to first picture (default weights), warm", warm["first"], "s")
    cold = run("cold", HOME=str(folder / "home"))
    yield row("the same, nothing compiled yet", cold["first"], "s")
    for name, what in (("ddim", "full recipe"), ("dpmpp", "full recipe, DPM-Solver++, 12 steps a round")):
        yield row(f"default weights, {what}", 4 * 3600 / warm[name], "images an hour",
                  note=f"256 x 192 pixels, batch 4, {warm[name] / 4:.2f} s an image")


def baselines(folder):
    """A picture of GauGAN and of CLADE."""
    labels = np.random.default_rng(0).integers(0, 29, (6, 8)).astype(np.uint8).repeat(32, 0).repeat(32, 1)
    photo = labels[..., None].repeat(3, 2) * 8
    for model in ("gaugan", "clade"):
        config = load_config(builtin_config(model), BaselineRun)
        network = Baseline(config)
        save_baseline(folder / f"{model}.safetensors", arrays_of(network), config, 0)
        generator = BaselineGenerator.from_checkpoint(folder / f"{model}.safetensors", "cpu")

        def picture(generator=generator):
            generator.infer(labels, photo)

        yield row(f"{model}, a picture of 256 x 192", seconds(picture), "s",
                  note=f"configs/{model}.yaml, {parameter_count(network) / 1e6:.1f} M parameters")


SECTIONS = {f.__name__: f for f in (step, kernels, memory, training, autoencoder, growth, pictures, baselines)}


def full_recipe(rows):
    """Images an hour of the paper's recipe at full size, from the step and the autoencoder measured."""
    time_of = {r["what"]: r["value"] for r in reversed(rows)}
    if not {"guided step", "encoding one 512 x 384 picture"} <= time_of.keys():
        return
    coding = time_of["encoding one 512 x 384 picture"] + time_of["decoding one 512 x 384 picture"]
    for steps, name in ((640, "the paper's 640 steps"), (60, "DPM-Solver++, 60 steps")):
        one = steps * time_of["guided step"] + 3 * coding
        yield row(f"full size, {name}", 3600 / one, "images an hour", note=f"{one:.0f} s an image, from the rows above")


def main():
    """Runs the sections one after the other, each in a process of its own, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS),
                        help="measure these sections anew; the report keeps what it has of the others")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # the process of one section
    args = parser.parse_args()
    if args.section:
        for one in SECTIONS[args.section](args.output):
            print("ROW", json.dumps(one), flush=True)
        return 0
    earlier = args.output / f"cpu-{machine_name()}.json"
    report = json.loads(earlier.read_text()) if earlier.exists() else {"about": None, "rows": []}
    known = report["rows"] if report["about"] == machine() else []  # of another machine or version: not to be mixed
    sections = {name: [r for r in known if r["section"] == name] for name in SECTIONS}
    for name in args.only:
        rows = sections[name] = []
        print(f"# {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(program("cpu", "--section", name, "--output", folder), cwd=ROOT,
                                       stdout=subprocess.PIPE, text=True)
            for line in process.stdout:
                if line.startswith("ROW "):
                    rows.append({"section": name, **json.loads(line[4:])})
                    print({k: v for k, v in rows[-1].items() if v not in (None, "")}, flush=True)
            if process.wait():
                raise InputError(f"section {name}: ended with code {process.returncode}; the lines above say why")
        rows = [r for name in SECTIONS for r in sections[name]]
        rows += ({"section": "recipe", **r} for r in full_recipe(rows))
        # now, in case the rest is cut off
        text = write_report(args.output, "cpu", "Benchmark on the CPU", rows, machine())
    print(text)
    return 0


if __name__ == "__main__":
    run_tool(main)
