"""The page's own engine, module by module under node: its numbers are those of Python."""
import base64
import io
import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from helpers import ROOT, relative_error
from PIL import Image

from jiidm.config import DiffusionConfig, InferenceConfig, RoundConfig, to_dict
from jiidm.data.classes import CONTEST, load_table
from jiidm.data.labels import CLASSES, PALETTE, colorize
from jiidm.data.pictures import fit_photo
from jiidm.data.vocabulary import LabelReader, Vocabulary
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.samplers import SAMPLERS
from jiidm.diffusion.schedule import Schedule
from jiidm.inference import refinement
from jiidm.inference.color_transfer import fixed_rotations, transfer_color
from jiidm.inference.plan import make_plan
from jiidm.inference.refinement import draw_noise
from jiidm.painter.static import color_tables
from jiidm.painter.uploads import decode_any_map
from jiidm.system.runtime import jt

NODE = shutil.which("node")
if NODE is None:
    pytest.skip("node is not installed", allow_module_level=True)

PAGE = ROOT / "jiidm" / "painter" / "page"
HEAD = """
import { readFileSync } from 'node:fs';
const given = JSON.parse(readFileSync(0), (key, value) => {
  if (value?.bytes === undefined) return value;
  const bytes = Uint8Array.from(Buffer.from(value.bytes, 'base64'));
  return value.kind === 'uint8' ? bytes : new Float32Array(bytes.buffer);
});
const packed = (key, value) => (!ArrayBuffer.isView(value) ? value
  : { bytes: Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64'),
      kind: value.constructor.name.replace('Array', '').replace('Clamped', '').toLowerCase() });
const answer = (value) => process.stdout.write(JSON.stringify(value, packed));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Runs a script of JavaScript with `given` (arrays become typed arrays); returns what it passes to `answer`."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(PAGE, folder / "page")
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script, **given):
        (folder / "script.js").write_text(HEAD + script)
        done = subprocess.run([NODE, folder / "script.js"], input=json.dumps(given, default=_packed), text=True,
                              capture_output=True, cwd=folder, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout, object_hook=_unpacked)

    return run


def _packed(value):
    if isinstance(value, np.ndarray):
        return {"bytes": base64.b64encode(np.ascontiguousarray(value)).decode(), "kind": value.dtype.name}
    raise TypeError(type(value))


def _unpacked(values):
    if values.keys() == {"bytes", "kind"}:
        return np.frombuffer(base64.b64decode(values["bytes"]), values["kind"])
    return values


def image(array):
    """An array as the page holds a picture."""
    return {"width": array.shape[1], "height": array.shape[0], "pixels": array.ravel()}


def photo(name, width=96, height=72):
    """An example photo at a size, H x W x 3 uint8."""
    picture = Image.open(ROOT / "examples" / "train" / "imgs" / f"{name}.jpg")
    return np.asarray(picture.convert("RGB").resize((width, height)))


def farthest(found, expected):
    """The largest difference of two pictures, in grey levels."""
    return np.abs(found.reshape(expected.shape).astype(int) - expected).max()


def test_noise_is_numpys_bit_for_bit(node):
    for seed, name, number, count in ((0, "", 0, 100_000), (2**32 - 1, "lake", 2, 1001)):
        found = node("""
            import { drawNoise } from './page/local/random.js';
            answer(await drawNoise(given.seed, given.name, given.number, given.count));
        """, seed=seed, name=name, number=number, count=count)
        expected = draw_noise(seed, name, number, (count,))
        assert found.dtype == np.float32 and (found == expected).all()


def test_seeds_whose_highest_words_are_zero(node):
    keys = [bytes(i) + bytes(range(1, 33 - i)) for i in (4, 8, 20, 31)] + [bytes(32)]
    found = node("""
        import { normals } from './page/local/random.js';
        answer(given.keys.map((key) => normals(key, 50)));
    """, keys=[np.frombuffer(key, np.uint8) for key in keys])
    for key, numbers in zip(keys, found, strict=True):
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
        assert (numbers == rng.standard_normal(50, np.float32)).all()


def test_colours_go_to_lab_and_back_as_in_opencv(node):
    rgb = np.random.default_rng(0).integers(0, 256, (100, 500, 3), np.uint8)
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)
    found = node("""
        import { labToRgb, rgbToLab } from './page/local/lab.js';
        answer([rgbToLab(given.rgb), labToRgb(given.lab)]);
    """, rgb=rgb, lab=lab)
    assert farthest(found[0], lab) <= 1 and farthest(found[1], cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)) <= 2


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("method", ["reinhard", "histogram", "transport"])
def test_colour_transfer(node, method, share):
    flat = np.full((40, 56, 3), (90, 140, 20), np.uint8)
    pairs = [(photo("storm"), photo("autumn")), (photo("dune_grass", 80, 64), photo("evening_glow")),
             (flat, photo("storm")), (photo("storm"), flat), (photo("storm"), photo("storm"))]
    found = node("""
        import { transferColor } from './page/local/color.js';
        const { pairs, method, share, rotations } = given;
        answer(pairs.map(([source, reference]) => transferColor(source, reference, method, share, rotations)));
    """, pairs=[[image(a), image(b)] for a, b in pairs], method=method, share=share,
        rotations=[rotation.tolist() for rotation in fixed_rotations()])
    for (source, reference), pixels in zip(pairs, found, strict=True):
        expected = transfer_color(source, reference, method, share)
        differences = np.abs(pixels.reshape(expected.shape).astype(int) - expected)
        assert differences.max() <= 6 and (differences > 1).mean() < 0.01  # one of a LAB value is 5 of a blue


@pytest.mark.parametrize(("width", "height"), [(64, 48), (33, 20), (96, 72), (200, 150), (50, 100), (7, 300)])
def test_photos_are_fitted_as_by_opencv(node, width, height):
    source = photo("storm", 97, 71)
    found = node("""
        import { fitPhoto } from './page/local/resize.js';
        const fitted = fitPhoto(given.photo, given.width, given.height);
        answer([fitted.width, fitted.height, fitted.pixels]);
    """, photo=image(source), width=width, height=height)
    assert found[:2] == [width, height] and farthest(found[2], fit_photo(source, width, height)) <= 1


@pytest.mark.parametrize(("width", "height"), [(288, 216), (64, 48), (96, 90), (100, 72)])
def test_finished_pictures_are_resized_as_by_pillow(node, width, height):
    source = photo("autumn")
    found = node("""
        import { lanczos } from './page/local/resize.js';
        answer(lanczos(given.picture, given.width, given.height).pixels);
    """, picture=image(source), width=width, height=height)
    assert farthest(found, np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.LANCZOS))) <= 1


SCHEDULES = [DiffusionConfig(), DiffusionConfig(prediction="v", zero_terminal_snr=True)]


def manifest_of(schedule):
    """`schedule` of an exported manifest."""
    return {"prediction": schedule.prediction, "alphas_cumprod": schedule.alphas_cumprod.tolist()}


@pytest.mark.parametrize("config", SCHEDULES)
def test_plans_are_those_of_the_painter(node, config):
    schedule = Schedule(config)
    recipe = InferenceConfig(rounds=(RoundConfig(3.5, "ddim50", 30), RoundConfig(9.0, "ddim500", 320)), sampler="ddim",
                             final_color_transfer="transport", final_color_share=0.4, guidance_rescale=0.5)
    found = node("""
        import { Schedule } from './page/local/diffusion.js';
        import { makePlan, strengthOf } from './page/local/plan.js';
        const schedule = new Schedule(given.schedule);
        answer([makePlan(given.recipe, schedule, { quality: 'full', strength: null }), strengthOf(given.recipe),
            [1, 2, 6, 20, 300].map((steps) => [3, 19, 500, 999].map((start) => (
                steps <= start + 1 ? schedule.descent(start, steps) : null))),
            [0, 0.41, 0.45, 0.99, 1].map((strength) => (
                makePlan(given.recipe, schedule, { quality: 'preview', strength })))]);
    """, schedule=manifest_of(schedule), recipe=to_dict(recipe))
    full, strength, descents, previews = found
    plan = make_plan(recipe, schedule)
    for ours, theirs in zip(full["rounds"], plan.rounds, strict=True):
        assert ours["start"] == theirs.start and tuple(ours["timesteps"]) == theirs.timesteps
        assert ours["guidance"] == {"scale": theirs.guidance.scale, "rescale": 0.5}
        assert ours["transfer"] == theirs.color_transfer and ours["sampler"] == "ddim"
    assert (full["lastTransfer"], full["lastShare"], strength) == ("transport", 0.4, 0.6)
    for steps, row in zip((1, 2, 6, 20, 300), descents, strict=True):
        for start, timesteps in zip((3, 19, 500, 999), row, strict=True):
            assert timesteps is None or timesteps == schedule.descent(start, steps).tolist()
    for index, preview in zip((1, 20, 22, 49, 49), previews, strict=True):  # of the chain: numpy rounds 20.5 to 20
        start = int(schedule.respaced("ddim50")[index])
        assert preview["rounds"][0]["start"] == start and preview["lastTransfer"] == "reinhard"
        assert preview["rounds"][0]["timesteps"] == schedule.descent(start, 6).tolist()


@pytest.mark.parametrize("config", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_samplers_with_guidance_give_the_same_latents(node, config, sampler):
    schedule = Schedule(config)
    guidance = {"scale": 3.0, "rescale": 0.6}
    timesteps = [999, 800, 450, 200, 60, 0]
    z = np.random.default_rng(5).standard_normal((1, 4, 3, 5), np.float32)
    found = node("""
        import { guidedDenoiser, SAMPLERS, Schedule } from './page/local/diffusion.js';
        const schedule = new Schedule(given.schedule), steps = [];
        const predict = (z, t, conditional, none) => [[conditional, 0.9], [none, 0.7]].filter(([wanted]) => wanted)
            .map(([, factor]) => z.map((value, i) => factor * value + 0.01 * (i % 7)));
        const denoise = guidedDenoiser(predict, schedule, given.guidance);
        for await (const z of SAMPLERS[given.sampler](denoise, schedule, given.z, given.timesteps)) steps.push(z);
        answer([schedule.addNoise(given.z, given.z, 500), steps]);
    """, schedule=manifest_of(schedule), guidance=guidance, sampler=sampler, z=z, timesteps=timesteps)

    def predict(z, t, conditional, null):
        ramp = jt.array((0.01 * (np.arange(z.numel()) % 7)).reshape(z.shape).astype(np.float32))
        return [factor * z + ramp for wanted, factor in ((conditional, 0.9), (null, 0.7)) if wanted]

    denoise = guided_denoiser(predict, schedule, Guidance(3.0, 0.6))
    expected = [latents.numpy() for _, latents in SAMPLERS[sampler](denoise, schedule, jt.array(z), timesteps)]
    assert relative_error(found[0], schedule.add_noise(z, z, 500).ravel()) < 1e-6
    for ours, theirs in zip(found[1], expected, strict=True):
        assert relative_error(ours, theirs.ravel()) < 1e-5


MAPS = {
    "grey": lambda labels: Image.fromarray(labels),
    "palette": lambda labels: palette_image(labels),
    "palette of a table": lambda labels: Image.fromarray(colorize(labels)).quantize(len(CLASSES)),
    "colours": lambda labels: Image.fromarray(colorize(labels)),
    "transparent": lambda labels: Image.fromarray(colorize(labels)).convert("RGBA"),
    "two bits": lambda labels: Image.fromarray(labels % 4).convert("P", palette=Image.Palette.ADAPTIVE, colors=4),
    "a smoothed table": lambda labels: smoothed(labels),
}


def palette_image(labels):
    found = Image.fromarray(labels)
    found.putpalette(PALETTE.tobytes())
    return found


def smoothed(labels):
    """Colours of ADE20K with other colours along the borders of the classes."""
    grass, sky = (each.color for name in ("grass", "sky") for each in load_table("ade20k").classes if each.name == name)
    picture = np.where((labels > 3)[..., None], grass, sky).astype(np.uint8)
    return Image.fromarray(cv2.blur(picture, (3, 3)))


@pytest.mark.parametrize("kind", MAPS)
def test_label_maps_of_any_kind_read_as_by_the_server(node, kind):
    labels = np.kron(np.random.default_rng(1).integers(0, 8, (6, 9), np.uint8), np.ones((12, 11), np.uint8))
    data = io.BytesIO()
    MAPS[kind](labels).save(data, "PNG")
    found = node("""
        import { readAnyMap } from './page/local/maps.js';
        answer(await readAnyMap(given.data, 64, 48, 29, given.tables));
    """, data=np.frombuffer(data.getvalue(), np.uint8), tables=color_tables())
    expected, _ = decode_any_map(data.getvalue(), 64, 48, LabelReader(Vocabulary(CONTEST), snap=True))
    assert (found.reshape(48, 64) != expected).mean() <= (0.02 if "smoothed" in kind else 0)


@pytest.mark.parametrize(("picture", "words"), [
    (photo("storm"), "nearest known table"), (np.full((8, 8), 40, np.uint8), "class 40"),
    (np.full((8, 8), 40, np.uint16), "16 bits"),
])
def test_what_is_no_label_map_is_told(node, picture, words):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    told = node("""
        import { readAnyMap } from './page/local/maps.js';
        answer(await readAnyMap(given.data, 64, 48, 29, given.tables).catch((error) => error.message));
    """, data=np.frombuffer(data.getvalue(), np.uint8), tables=color_tables())
    assert words in told


def test_pictures_are_written_as_png(node):
    picture = photo("autumn", 33, 20)
    data = node("""
        import { encodeRgb } from './page/png.js';
        answer(await encodeRgb(33, 20, given.pixels));
    """, pixels=picture)
    assert (np.asarray(Image.open(io.BytesIO(data.tobytes()))) == picture).all()


def test_previews_of_latents_are_pythons(node):
    style = photo("storm", 64, 48)
    latents, noised = np.random.default_rng(2).standard_normal((2, 1, 4, 12, 16), np.float32)
    latents[0, :3] += cv2.resize(style, (16, 12), interpolation=cv2.INTER_AREA).transpose(2, 0, 1) / 60
    found = node("""
        import { LatentColors } from './page/local/refine.js';
        const colors = new LatentColors({ channels: 4, width: 16, height: 12, data: given.latents }, given.style);
        answer(given.signals.map((signal) => colors.draw(given.noised, signal).pixels));
    """, latents=latents, noised=noised, style=image(style), signals=[0.01, 0.6, 0.99])
    expected = refinement.LatentColors(jt.array(latents), style[None])
    for signal, pixels in zip([0.01, 0.6, 0.99], found, strict=True):
        assert farthest(pixels, expected.draw(jt.array(noised), signal)[0]) <= 1
