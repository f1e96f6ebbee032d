"""The painter's page in headless Chromium: tools, undo, live pictures, files in and out, a server that goes away."""
import base64
import io
import json
import random
import shutil
import time

import numpy as np
import pytest
from helpers import ROOT
from painter_client import STYLE, Painter, painter, png
from painter_fake import FAILS, HEIGHT, TIMES, WIDTH
from PIL import Image

from jiidm.data.labels import CLASSES, PALETTE, colorize, resize_labels

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the painter's extra is not installed")
pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

W, H = WIDTH * TIMES, HEIGHT * TIMES
SKY, TREE, WATER, GRASS, ROAD, MOUNTAIN = map(CLASSES.index, ("sky", "tree", "water", "grass", "road", "mountain"))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        try:
            running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"chromium does not start: {str(error).splitlines()[0]}")
        yield running
        running.close()


@pytest.fixture(scope="module")
def server():
    with painter(seconds="0.1") as running:
        yield running


class Page:
    """The page with a blank drawing (all sky), and what the tests read from it and do to it."""

    def __init__(self, browser, server, live=False, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
        self.page = self.context.new_page()
        self.errors, self.urls = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: m.type in ("error", "warning") and self.errors.append(m.text))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.open(server.url)
        if not live:
            self.page.uncheck("#live")
            self.page.uncheck("#full")
        self.page.keyboard.press("n")
        self.page.click("#tiles button")
        self.page.evaluate("painter.live.abort(), painter.history.done = []")

    def open(self, url):
        self.page.goto(url)
        self.page.wait_for_selector("body:not(.loading)")
        self.wait("painter.history.done.length === 0")

    def wait(self, condition, seconds=10):
        """Waits until an expression is true. Playwright's own waiting needs eval, which the page's policy forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def labels(self):
        data = self.page.evaluate("btoa(String.fromCharCode(...painter.buffer.data))")
        return np.frombuffer(base64.b64decode(data), np.uint8).reshape(H, W)

    def at(self, x, y):
        """Where a pixel of the drawing is on the screen."""
        box, (left, top, scale) = self.page.locator("#canvas").bounding_box(), self.page.evaluate(
            "[painter.view.corner.x, painter.view.corner.y, painter.view.scale]")
        return box["x"] + left + (x + 0.5) * scale, box["y"] + top + (y + 0.5) * scale

    def drag(self, *points, button="left", steps=4):
        mouse = self.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down(button=button)
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=steps)
        mouse.up(button=button)

    def click(self, x, y, **options):
        self.page.mouse.click(*self.at(x, y), **options)

    def choose(self, label):
        self.page.evaluate("label => { painter.state.label = label; }", label)

    def size(self, size):
        self.page.evaluate("size => { painter.state.size = size; }", size)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def shown(self):
        """The picture that is shown, as an array."""
        data = self.page.evaluate("""async () => {
            const bytes = new Uint8Array(await painter.pictures.blob.arrayBuffer());
            return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
        }""")
        return np.array(Image.open(io.BytesIO(base64.b64decode(data))))

    def wait_for_picture(self, labels, size=None):
        """Waits until the picture of these labels is shown."""
        expected = colorize(resize_labels(labels, *(size or (WIDTH, HEIGHT))))
        for _ in range(100):
            if self.page.is_visible("#picture"):
                found = self.shown()
                if found.shape == expected.shape and (found == expected).all():
                    return
            time.sleep(0.1)
        raise AssertionError(f"not the picture of the drawing: {self.page.inner_text('#status')}")

    def open_file(self, name, kind, data, button="#open"):
        with self.page.expect_file_chooser() as chooser:
            self.page.click(button)
        chooser.value.set_files({"name": name, "mimeType": kind, "buffer": data})

    def close(self):
        self.context.close()


@pytest.fixture
def page(browser, server):
    opened = Page(browser, server)
    yield opened
    opened.close()
    assert opened.errors == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in opened.urls)


@pytest.fixture
def live(browser, server):
    opened = Page(browser, server, live=True)
    yield opened
    opened.close()
    assert opened.errors == []


# ---------------------------------------------------------------------------------------------------------------- tools

def test_brush_draws_a_stroke_with_hard_edges(page):
    page.choose(TREE)
    page.size(9)
    page.drag((20, 40), (120, 40))
    labels = page.labels()
    assert set(np.unique(labels)) == {SKY, TREE}
    assert (labels[36:45, 20:121] == TREE).all() and (labels[35] == SKY).all() and (labels[45] == SKY).all()
    assert labels[36, 16] == SKY and labels[40, 16] == TREE  # round


def test_square_brush_and_size_keys(page):
    page.choose(TREE)
    page.size(8)
    page.press("]", "]", "[")
    size = page.page.evaluate("painter.state.size")
    assert size == 9 and page.page.input_value("#size") == "9"
    page.page.click("#square")
    page.click(50, 50)
    assert (page.labels() == TREE).sum() == 81
    page.page.mouse.wheel(0, -100)
    page.wait("painter.state.size === 10")


def test_line_rectangle_and_shift(page):
    page.choose(ROAD)
    page.size(1)
    page.press("l")
    page.drag((10, 10), (60, 90), (110, 10))
    assert (page.labels()[10, 10:111] == ROAD).all() and (page.labels() == ROAD).sum() == 101
    page.press("r")
    page.drag((150, 60), (130, 100), (170, 80))
    assert (page.labels()[60:81, 150:171] == ROAD).all() and (page.labels() == ROAD).sum() == 101 + 21 * 21
    page.press("l")
    page.page.keyboard.down("Shift")
    page.drag((10, 120), (100, 125))
    page.page.keyboard.up("Shift")
    assert (page.labels()[120, 10:101] == ROAD).all()


def test_polygon_closes_by_enter_and_by_its_first_corner(page):
    page.press("p")
    page.choose(MOUNTAIN)
    for corner in ((20, 100), (60, 40), (100, 100)):
        page.click(*corner)
    page.press("Enter")
    labels = page.labels()
    assert labels[90, 60] == MOUNTAIN and labels[45, 30] == SKY and labels[100, 20] == MOUNTAIN
    area = (labels == MOUNTAIN).sum()
    assert abs(area - 80 * 60 / 2) < 150
    for corner in ((120, 100), (140, 40), (170, 100), (120, 100)):
        page.click(*corner)
    assert (page.labels() == MOUNTAIN).sum() > area + 1000
    page.click(10, 10)
    page.press("Escape", "Enter")
    assert page.page.evaluate("painter.history.done.length") == 2


def test_bucket_fills_one_area_and_replace_all_of_a_class(page):
    page.choose(ROAD)
    page.size(3)
    page.press("l")
    page.drag((96, 0), (96, H - 1))
    page.choose(WATER)
    page.press("g")
    page.click(20, 20)
    labels = page.labels()
    assert (labels[:, :90] == WATER).all() and (labels[:, 100:] == SKY).all()
    page.press("c")
    page.choose(GRASS)
    page.click(150, 20)
    page.click(96, 50)
    labels = page.labels()
    assert set(np.unique(labels)) == {WATER, GRASS}


def test_eyedropper_erase_swap_and_the_right_button(page):
    page.choose(WATER)
    page.press("r")
    page.drag((0, 0), (80, 80))
    page.choose(TREE)
    page.press("i")
    page.click(10, 10)
    assert page.page.evaluate("painter.state.label") == WATER
    assert page.page.inner_text("#labelName") == "water"
    page.press("e")
    page.size(11)
    page.click(40, 40)
    assert page.labels()[40, 40] == SKY and page.labels()[60, 60] == WATER
    page.press("x", "b")
    page.click(100, 100)
    page.click(60, 60, button="right")
    assert page.page.evaluate("[painter.state.label, painter.state.background]") == [SKY, WATER]
    page.choose(TREE)
    page.page.keyboard.down("Alt")
    page.click(10, 10)
    page.page.keyboard.up("Alt")
    assert page.page.evaluate("painter.state.label") == WATER


def test_locked_classes_stay(page):
    page.choose(MOUNTAIN)
    page.press("r")
    page.drag((50, 50), (90, 90))
    before = page.labels() == MOUNTAIN
    page.press("k")
    assert page.page.get_attribute(f'[data-label="{MOUNTAIN}"] .lock', "aria-pressed") == "true"
    page.choose(WATER)
    for tool in "brlgc":
        page.press(tool)
        page.size(40)
        page.drag((30, 70), (120, 75))
    page.page.click("#clear")
    assert ((page.labels() == MOUNTAIN) == before).all()
    page.page.hover(f'[data-label="{MOUNTAIN}"]')
    page.page.click(f'[data-label="{MOUNTAIN}"] .lock')
    page.page.click("#clear")
    assert (page.labels() == SKY).all()


def test_a_thousand_random_strokes_leave_no_label_that_was_not_chosen(page):
    rng = random.Random(0)
    chosen = (SKY, TREE, WATER, MOUNTAIN)
    page.page.evaluate("""() => { HTMLCanvasElement.prototype.setPointerCapture = () => {}; }""")
    for _ in range(20):
        strokes = [{
            "tool": rng.choice(["brush", "brush", "line", "rectangle", "bucket", "erase", "replace", "polygon"]),
            "size": rng.randint(1, 60), "round": rng.random() < 0.5, "label": rng.choice(chosen),
            "points": [(rng.uniform(-20, W + 20), rng.uniform(-20, H + 20)) for _ in range(rng.randint(2, 6))],
            "button": rng.choice([0, 0, 2]),
        } for _ in range(50)]
        page.page.evaluate("""strokes => {
            const { state, view } = painter, canvas = document.getElementById('canvas');
            for (const { tool, size, round, label, points, button } of strokes) {
                Object.assign(state, { tool, size, round, label });
                const box = canvas.getBoundingClientRect();
                const send = (type, [x, y]) => canvas.dispatchEvent(new PointerEvent(type, {
                    pointerId: 1, pointerType: 'mouse', button, bubbles: true,
                    clientX: box.left + view.corner.x + x * view.scale,
                    clientY: box.top + view.corner.y + y * view.scale,
                }));
                if (tool === 'polygon') {
                    for (const point of points) { send('pointerdown', point); send('pointerup', point); }
                    canvas.dispatchEvent(new MouseEvent('dblclick'));
                    continue;
                }
                send('pointerdown', points[0]);
                for (const point of points.slice(1)) send('pointermove', point);
                send('pointerup', points.at(-1));
            }
        }""", strokes)
    assert set(np.unique(page.labels())) <= set(chosen) and len(np.unique(page.labels())) > 1
    assert page.page.evaluate("painter.history.done.length") > 500


def test_undo_returns_to_every_earlier_state_and_redo_to_every_later_one(page):
    rng = random.Random(1)
    states = [page.labels()]
    while len(states) < 25:
        page.press(rng.choice("bblrgec"))
        page.choose(rng.choice((SKY, TREE, WATER, GRASS)))
        page.size(rng.randint(1, 50))
        page.drag((rng.randrange(W), rng.randrange(H)), (rng.randrange(W), rng.randrange(H)))
        if (page.labels() != states[-1]).any():
            states.append(page.labels())
    for state in states[-2::-1]:
        page.press("Control+z")
        assert (page.labels() == state).all()
    assert page.page.is_disabled("#undo")
    for state in states[1:]:
        page.press("Control+y")
        assert (page.labels() == state).all()
    page.press("Control+z", "Control+Shift+z")
    assert (page.labels() == states[-1]).all()
    page.press("Control+z")
    page.press("b")
    page.click(5, 5)
    assert page.page.is_disabled("#redo")


def test_zoom_and_pan_keep_the_pointer_on_its_pixel(page):
    page.choose(TREE)
    page.size(1)
    page.page.mouse.move(*page.at(150, 100))
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -300)
    page.page.keyboard.up("Control")
    page.wait("painter.view.zoom > 2")
    page.click(150, 100)
    page.page.keyboard.down(" ")
    page.drag((150, 100), (140, 95))
    page.page.keyboard.up(" ")
    page.click(152, 97)
    page.press("0")
    page.click(30, 30)
    assert sorted(zip(*np.nonzero(page.labels() == TREE), strict=True)) == [(30, 30), (97, 152), (100, 150)]


def test_a_pen_and_a_finger_draw_and_two_fingers_do_not(page):
    page.choose(TREE)
    page.page.evaluate("""() => {
        const canvas = document.getElementById('canvas'), { view } = painter;
        canvas.setPointerCapture = () => {};
        painter.send = (type, pointerId, pointerType, x, y) => {
            const box = canvas.getBoundingClientRect();
            canvas.dispatchEvent(new PointerEvent(type, { pointerId, pointerType, bubbles: true,
                clientX: box.left + view.corner.x + x * view.scale,
                clientY: box.top + view.corner.y + y * view.scale }));
        };
        for (const [kind, y] of [['pen', 30], ['touch', 80]]) {
            painter.send('pointerdown', 7, kind, 20, y);
            painter.send('pointermove', 7, kind, 60, y);
            painter.send('pointerup', 7, kind, 60, y);
        }
    }""")
    before = page.labels()
    assert before[30, 40] == TREE and before[80, 40] == TREE
    page.page.evaluate("""() => {
        painter.send('pointerdown', 1, 'touch', 100, 60);
        painter.send('pointermove', 1, 'touch', 102, 60);
        painter.send('pointerdown', 2, 'touch', 110, 60);
        for (let i = 0; i < 20; i++) painter.send('pointermove', 2, 'touch', 110 + i, 60);
        painter.send('pointerup', 1, 'touch', 100, 60);
        painter.send('pointerup', 2, 'touch', 150, 60);
    }""")
    assert (page.labels() == before).all() and page.page.evaluate("painter.view.zoom") > 1


def test_the_cursor_shows_the_brush_where_it_would_draw(page):
    """The outline is drawn on the canvas, at the brush's edge, and never in the drawing."""
    page.size(40)
    page.page.mouse.move(*page.at(96, 72))
    bright = """size => {
        const { view } = painter, s = view.scale * view.ratio, { context } = view;
        const x = (view.corner.x + 96 * view.scale) * view.ratio, y = (view.corner.y + 72 * view.scale) * view.ratio;
        const reach = Math.round(size / 2 * s) + 6, { data } = context.getImageData(x - reach, y, 2 * reach, 1);
        const row = [];
        for (let i = 0; i < data.length; i += 4) row.push(Math.min(data[i], data[i + 1], data[i + 2]));
        const white = (value) => value > 190;
        return [row.findIndex(white) - reach, row.findLastIndex(white) - reach, size / 2 * s];
    }"""
    time.sleep(0.2)
    left, right, radius = page.page.evaluate(bright, 40)
    assert abs(-left - radius) < 3 and abs(right - radius) < 3
    assert (page.labels() == SKY).all()
    page.page.mouse.move(2, 2)
    page.wait("painter.view.cursor === null")


def test_buttons_do_what_keys_do(page):
    page.choose(TREE)
    page.click(60, 60)
    drawn = page.labels()
    page.page.click("#undo")
    assert (page.labels() == SKY).all()
    page.page.click("#redo")
    assert (page.labels() == drawn).all()
    page.page.click("#zoomIn")
    page.page.click("#zoomIn")
    assert page.page.evaluate("painter.view.zoom") > 1.9
    page.page.click("#fit")
    assert page.page.evaluate("painter.view.zoom") == 1
    for tool in ("bucket", "polygon", "brush"):
        page.page.click(f'[data-tool="{tool}"]')
        assert page.page.evaluate("painter.state.tool") == tool
        assert page.page.get_attribute(f'[data-tool="{tool}"]', "aria-pressed") == "true"


def test_palette_shows_what_was_seen_and_finds_the_rest(page):
    names = "[...document.querySelectorAll('.material:not([hidden]) [role=radio]')].map(b => b.children[1].textContent)"
    assert set(page.page.evaluate(names)) == {"sky", "tree", "road", "grass", "water", "building", "mountain", "other"}
    page.press("/")
    page.page.keyboard.type("ter")
    assert page.page.evaluate(names) == ["water", "waterfall"]
    page.page.fill("#search", "waterfall")
    page.press("Enter")
    assert page.page.evaluate("painter.state.label") == CLASSES.index("waterfall")
    page.page.click("#more")
    assert len(page.page.evaluate(names)) == len(CLASSES)
    page.page.click("#more")
    color = f"getComputedStyle(document.querySelector('[data-label=\"{WATER}\"] .swatch')).backgroundColor"
    assert page.page.evaluate(color) == "rgb({}, {}, {})".format(*PALETTE[WATER])
    page.press("2")
    assert page.page.inner_text("#labelName") == page.page.evaluate(names)[1]


# ------------------------------------------------------------------------------------------------------------- pictures

def test_the_server_sees_exactly_the_buffer(page):
    rng = random.Random(2)
    for _ in range(12):
        page.choose(rng.choice((TREE, WATER, GRASS, MOUNTAIN)))
        page.size(rng.randint(1, 40))
        page.drag(*[(rng.randrange(W), rng.randrange(H)) for _ in range(3)])
    with page.page.expect_request("**/api/picture*") as request:
        page.press("Enter")
    sent = json.loads(request.value.post_data)
    image = Image.open(io.BytesIO(base64.b64decode(sent["map"])))
    assert image.mode == "L" and (np.array(image) == page.labels()).all()
    page.wait_for_picture(page.labels(), (W, H))


def test_live_preview_shows_the_last_state_and_nothing_older_after_it(browser):
    with painter(seconds="0.6") as slow:
        page = Page(browser, slow, live=True)
        page.page.evaluate("""() => {
            const { live } = painter, shown = live.show.result;
            painter.results = [];
            live.show.result = (result, quality, project) => {
                painter.results.push([quality, project.map]);
                shown(result, quality, project);
            };
        }""")
        start, versions = time.monotonic(), []
        for number in range(20):
            page.choose((TREE, WATER, GRASS, MOUNTAIN)[number % 4])
            page.drag((10 + 8 * number, 10), (10 + 8 * number, 130))
            versions.append(page.labels())
            time.sleep(max(0, start + 0.25 * (number + 1) - time.monotonic()))
        page.wait_for_picture(versions[-1])
        page.wait_for_picture(versions[-1], (W, H))  # the full one follows
        results = page.page.evaluate("painter.results")
        assert results[-1][0] == "full" and [quality for quality, _ in results].count("full") == 1

        def order(text):
            labels = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
            tried = [i for i, version in enumerate(versions) if (version == labels).all()]
            return tried[0] if tried else -1  # -1: of a stroke that was being drawn

        known = [order(text) for _, text in results]
        assert known[-1] == 19 and [i for i in known if i >= 0] == sorted(i for i in known if i >= 0)
        page.close()
        assert page.errors == []


def test_progress_and_the_picture_on_its_way_are_visible(browser):
    with painter(seconds="3") as slow:
        page = Page(browser, slow)
        page.page.reload()
        page.page.wait_for_selector("body:not(.loading)")
        page.page.uncheck("#live")
        page.page.evaluate("painter.live.abort(), painter.pictures.shown = false")
        page.press("Enter")
        page.page.wait_for_selector("#progress:not([hidden])")
        seen = []
        while not seen or seen[-1] is not None:
            seen.append(page.page.evaluate("""() => {
                const bar = document.getElementById('progress');
                return bar.hidden ? null : [bar.value, document.getElementById('status').textContent,
                                            document.getElementById('picture').naturalWidth];
            }"""))
            time.sleep(0.1)
        values = [each[0] for each in seen[:-1]]
        assert values == sorted(values) and len(set(values)) > 4
        assert any(text.startswith("Picture: step 3 of 12") for _, text, _ in seen[:-1])
        assert WIDTH // 4 in [width for _, _, width in seen[:-1]]  # latents' colours, one pixel a latent
        page.close()


def test_progress_seed_strength_and_style_go_with_the_request(live):
    live.page.fill("#seed", "77")
    live.press("Tab")
    live.page.evaluate("document.getElementById('strength').value = 40")
    live.page.dispatch_event("#strength", "input")
    with live.page.expect_request(lambda request: '"storm"' in (request.post_data or "")) as request:
        live.page.click('[data-style="storm"]')
    sent = json.loads(request.value.post_data)
    assert sent["style"] == "storm"
    assert sent["settings"] == {"seed": 77, "quality": "preview", "strength": 0.4, "size": "model",
                                "color_by_class": True}
    live.page.wait_for_selector("#history button")
    assert "Picture in" in live.page.inner_text("#status")
    seed = live.page.input_value("#seed")
    live.press("d")
    assert live.page.input_value("#seed") != seed


def test_style_by_material_is_a_switch_that_goes_with_the_request_and_the_project(page):
    assert page.page.is_checked("#byClass")
    for wanted in (False, True):
        page.page.set_checked("#byClass", wanted)
        with page.page.expect_request("**/api/picture*") as request:
            page.press("Enter")
        assert json.loads(request.value.post_data)["settings"]["color_by_class"] is wanted
        page.wait_for_picture(page.labels(), (W, H))
    page.page.uncheck("#byClass")
    with page.page.expect_download() as download:
        page.press("Control+Shift+s")
    data = download.value.path().read_bytes()
    page.page.check("#byClass")
    page.open_file("landscape.json", "application/json", data)
    page.wait("!document.getElementById('byClass').checked")


def test_variations_history_and_comparison(page):
    page.choose(WATER)
    page.size(50)
    page.click(60, 60)
    page.press("v")
    page.page.wait_for_selector("#variations button:nth-child(4)")
    assert page.page.locator("#history button").count() == 0
    page.page.click("#variations button:nth-child(3)")
    assert page.page.input_value("#seed") == "2" and page.page.locator("#history button").count() == 1
    first = page.labels()
    page.choose(TREE)
    page.click(150, 60)
    page.press("Enter")
    page.page.wait_for_selector("#history button:nth-child(2)")
    for what in ("map", "style", "before"):
        page.page.select_option("#compare", what)
        page.page.wait_for_selector("#other:not([hidden])")
    page.page.fill("#slider", "25")
    assert page.page.evaluate("getComputedStyle(document.getElementById('other')).clipPath") == "inset(0px 75% 0px 0px)"
    second = page.labels()
    page.page.click("#history button:nth-child(2)")
    page.wait(f"painter.buffer.data[{60 * W + 150}] === {SKY}")
    assert (page.labels() == first).all()
    page.press("Control+z")
    assert (page.labels() == second).all()
    page.page.select_option("#compare", "")
    assert page.page.is_hidden("#other")


def test_a_picture_that_fails_is_told_and_the_next_one_comes(page):
    page.page.evaluate(f"painter.buffer.data[0] = {FAILS}")
    page.press("Enter")
    page.page.wait_for_selector("#status.bad")
    assert "asked to fail" in page.page.inner_text("#status")
    page.page.evaluate(f"painter.buffer.data[0] = {SKY}")
    page.press("Enter")
    page.wait_for_picture(page.labels(), (W, H))


# ---------------------------------------------------------------------------------------------------------------- files

def test_photo_to_map_to_edit_to_picture(live):
    photo = np.zeros((300, 500, 3), np.uint8)
    photo[:150] = (90, 120, 220)
    photo[150:] = (60, 180, 40)
    live.open_file("mine.jpg", "image/png", png(photo))  # a PNG of many colours is a photo too
    live.page.click("#photoBoth")
    live.page.wait_for_selector("#underOption:not([hidden])")
    live.errors = [error for error in live.errors if "400 (Bad Request)" not in error]  # it was no label map
    labels = live.labels()
    assert (labels[:H // 2 - 2] == SKY).all() and (labels[H // 2 + 2:] == GRASS).all()
    assert live.page.inner_text("#styleName") == "mine.jpg"
    live.choose(TREE)
    with live.page.expect_request("**/api/picture*") as request:
        live.drag((20, 90), (150, 100))
    style = Image.open(io.BytesIO(base64.b64decode(json.loads(request.value.post_data)["style"])))
    assert style.format == "JPEG" and abs(style.width / style.height - W / H) < 0.01
    live.wait_for_picture(live.labels(), (W, H))
    live.page.click("#dropPhoto")
    assert live.page.is_hidden("#underOption")


@pytest.mark.parametrize("kind", ["indices", "palette", "colours"])
def test_label_maps_open_exactly(page, kind):
    labels = np.random.default_rng(3).choice([SKY, TREE, ROAD], (H, W)).astype(np.uint8)
    image = Image.fromarray(colorize(labels) if kind == "colours" else labels)
    if kind == "palette":
        image.putpalette(PALETTE.tobytes())
    page.open_file("map.png", "image/png", png(image))
    page.wait("document.getElementById('status').textContent.includes('opened')")
    assert (page.labels() == labels).all()
    page.press("Control+z")
    assert (page.labels() == SKY).all()


def test_a_project_goes_out_and_comes_back(browser, server, page):
    page.choose(MOUNTAIN)
    page.size(30)
    page.drag((20, 90), (150, 60))
    page.page.fill("#seed", "123")
    page.press("Tab")
    page.page.evaluate("document.getElementById('strength').value = 35")
    page.page.dispatch_event("#strength", "input")
    page.open_file("own.jpg", "image/jpeg", STYLE)
    page.page.click("#photoStyle")
    page.wait("document.getElementById('styleName').textContent === 'own.jpg'")
    with page.page.expect_download() as download:
        page.press("Control+Shift+s")
    data = download.value.path().read_bytes()
    other = Page(browser, server)
    other.open_file("landscape.json", "application/json", data)
    other.wait("painter.settings.seed === 123")
    other.wait("document.getElementById('styleName').textContent === 'own.jpg'")
    assert (other.labels() == page.labels()).all() and other.page.evaluate("painter.settings.strength") == 0.35
    with other.page.expect_download() as download:
        other.press("Control+Shift+s")
    assert json.loads(download.value.path().read_bytes()) == json.loads(data)
    other.close()
    assert server.ask("POST", "/api/picture", data, {"Content-Type": "application/json"})[0] == 200


def test_downloads_are_what_is_shown(page):
    page.choose(WATER)
    page.click(60, 60)
    page.press("Enter")
    page.wait_for_picture(page.labels(), (W, H))
    for button, expected in (("#savePicture", page.shown()), ("#saveMap", page.labels()),
                             ("#saveColors", colorize(page.labels()))):
        page.page.click("#save")
        with page.page.expect_download() as download:
            page.page.click(button)
        found = Image.open(download.value.path())
        assert (np.array(found)[..., :3] == expected if found.mode == "RGBA" else np.array(found) == expected).all()


@pytest.mark.parametrize(("name", "kind", "data", "words"), [
    ("notes.txt", "text/plain", b"hello", "expected a photo"),
    ("broken.jpg", "image/jpeg", b"hello", "cannot be read"),
    ("broken.json", "application/json", b"{", "not JSON"),
    ("other.json", "application/json", b"{}", "no map and style"),
    ("wrong.json", "application/json", b'{"map": "", "style": "storm", "settings": {"strength": "x"}}', "strength"),
])
def test_files_that_cannot_be_used_are_told_and_change_nothing(page, name, kind, data, words):
    before = page.labels()
    page.open_file(name, kind, data)
    page.page.wait_for_selector("#status.bad")
    assert words in page.page.inner_text("#status")
    assert (page.labels() == before).all()


def test_dropped_and_pasted_files_open(page):
    labels = np.full((H, W), WATER, np.uint8)
    script = """([data, how]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), files = new DataTransfer();
        files.items.add(new File([bytes], 'map.png', { type: 'image/png' }));
        const event = how === 'drop' ? new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: files, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    for how in ("drop", "paste"):
        page.page.evaluate(script, [base64.b64encode(png(labels)).decode(), how])
        page.wait(f"painter.buffer.data[0] === {WATER}")
        page.press("Control+z")


def test_dropped_photos_and_pasted_projects_open(page):
    script = """([data, name, type, how]) => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), files = new DataTransfer();
        files.items.add(new File([bytes], name, { type }));
        const event = how === 'drop' ? new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: files, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    for number, how in enumerate(("drop", "paste")):
        page.page.evaluate(script, [base64.b64encode(STYLE).decode(), f"own{number}.jpg", "image/jpeg", how])
        page.page.click("#photoStyle")
        page.wait(f"document.getElementById('styleName').textContent === 'own{number}.jpg'")
        saved = json.dumps({"map": base64.b64encode(png(np.full((H, W), WATER, np.uint8))).decode(), "style": "storm",
                            "settings": {"seed": 40 + number}})
        data = base64.b64encode(saved.encode()).decode()
        page.page.evaluate(script, [data, "landscape.json", "application/json", how])
        page.wait(f"painter.settings.seed === {40 + number}")
        assert (page.labels() == WATER).all() and page.page.inner_text("#styleName") == "Storm"
        page.press("Control+z")


def test_an_example_is_a_start(page):
    page.press("n")
    page.page.click("#tiles button:has-text('Town')")
    page.wait("document.getElementById('styleName').textContent === 'Autumn'")
    page.wait("painter.history.done.length === 1")
    example = Image.open(ROOT / "examples" / "test" / "labels" / "town.png")
    assert (page.labels() == resize_labels(np.array(example), W, H)).all()


def test_a_reload_keeps_the_drawing(page):
    page.choose(MOUNTAIN)
    page.click(60, 60)
    page.wait("sessionStorage.getItem('jiidm-draft')")
    time.sleep(0.6)
    before = page.labels()
    page.page.reload()
    page.page.wait_for_selector("body:not(.loading)")
    assert (page.labels() == before).all()


# ----------------------------------------------------------------------------------------------------------------- rest

def test_a_server_that_goes_away_is_told_and_its_return_goes_on(browser):
    first = Painter("--port", "0", seconds="0.1")
    page = Page(browser, first, live=True)
    first.stop()
    page.choose(TREE)
    page.drag((20, 40), (120, 40))
    page.page.wait_for_selector("#banner:not([hidden])")
    assert "drawing is safe" in page.page.inner_text("#banner")
    page.drag((20, 80), (120, 80))
    before = page.labels()
    second = Painter("--port", str(first.port), seconds="0.1")
    try:
        page.page.wait_for_selector("#banner", state="hidden", timeout=10_000)
        assert (page.labels() == before).all()
        page.wait_for_picture(before)
    finally:
        page.close()
        second.stop()


def test_the_token_of_the_address_is_enough(browser):
    with painter("--host", "127.0.0.1") as server:
        page = Page(browser, server)
        assert "token" not in page.page.url
        page.press("Enter")
        page.wait_for_picture(page.labels(), (W, H))
        page.page.reload()
        page.page.wait_for_selector("body:not(.loading)")
        page.close()
        assert page.errors == []


def test_every_control_has_a_name_for_screen_readers(page):
    page.press("v")
    page.page.wait_for_selector("#variations button:nth-child(4)")
    page.page.click("#variations button")
    nameless = page.page.evaluate("""() => [...document.querySelectorAll(
            'button, input, select, [tabindex], img, dialog, progress')]
        .filter(e => !e.hidden && e.type !== 'file' && !e.closest('#veil'))
        .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title
            || e.textContent.trim() || e.labels?.length || (e.tagName === 'IMG' && e.hasAttribute('alt'))))
        .map(e => e.outerHTML)""")
    assert nameless == []
    assert page.page.get_attribute("#status", "role") == "status"
    for group in ("#materials", "#styles"):
        checked = page.page.locator(f'{group} [role="radio"][aria-checked="true"]')
        assert page.page.get_attribute(group, "role") == "radiogroup" and checked.count() == 1
    page.page.focus('#styles [role="radio"]')
    page.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"


@pytest.mark.parametrize("width", [360, 820, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_windows_of_every_width_hold_the_page(browser, server, width, scheme):
    page = Page(browser, server, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.locator("#canvas").scroll_into_view_if_needed()
    page.choose(TREE)
    page.click(60, 60)
    assert page.labels()[60, 60] == TREE
    page.page.click("#theme")
    assert page.page.evaluate("document.documentElement.dataset.theme") != scheme
    page.close()
    assert page.errors == []


def test_keys_are_shown(page):
    page.press("?")
    page.page.wait_for_selector("#keys[open]")
    assert "Eyedropper" in page.page.inner_text("#keyList")
    page.press("Escape")
    page.page.wait_for_selector("#keys", state="hidden")


# ---------------------------------------------------------------------------------------------------------- real engine

def test_the_first_minute_of_a_newcomer(browser):
    with painter(real=True) as server:
        page = Page.__new__(Page)
        page.context = browser.new_context()
        page.page = page.context.new_page()
        page.page.goto(server.url)
        page.page.wait_for_selector("#picture:not([hidden])", timeout=60_000)  # the example, without a click
        width, height = page.page.evaluate("[painter.buffer.width, painter.buffer.height]")
        page.choose(TREE)
        page.drag((width // 4, height // 2), (width // 2, height // 2))
        page.page.wait_for_selector("#history button", timeout=60_000)
        picture = page.shown()
        assert picture.shape == (height, width, 3) and picture.std() > 10
        photo = (ROOT / "examples" / "train" / "imgs" / "dune_grass.jpg").read_bytes()
        page.open_file("dune.jpg", "image/jpeg", photo)
        page.page.click("#photoBoth")
        page.page.wait_for_selector("#underOption:not([hidden])", timeout=60_000)
        page.wait("document.getElementById('status').textContent.startsWith('Picture in')", 60)
        page.close()
