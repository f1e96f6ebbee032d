"""The painter's server: its answers, what it refuses, and that nothing stops it."""
import asyncio
import base64
import concurrent.futures
import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT
from painter_client import STYLE, Painter, painter, picture, png, project, text
from painter_fake import CRASHES, FAILS, HANGS, HEIGHT, REFUSES, WIDTH
from PIL import Image

from jiidm.data.classes import load_table
from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE, colorize
from jiidm.data.project import Settings, parse_project

pytest.importorskip("starlette", reason="the painter's extra is not installed")
pytest.importorskip("uvicorn", reason="the painter's extra is not installed")
from jiidm.painter.server import Gallery, Server  # noqa: E402 - needs the extra

NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
SKY, GRASS = CLASSES.index("sky"), CLASSES.index("grass")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    with painter() as running:
        yield running


def landscape(top=SKY, bottom=GRASS):
    labels = np.full((HEIGHT, WIDTH), top, np.uint8)
    labels[HEIGHT // 2:] = bottom
    return labels


def plain(label):
    return np.full((HEIGHT, WIDTH), label, np.uint8)


# ------------------------------------------------------------------------------------------------------------ answers

def test_model_tells_classes_sizes_and_styles(server):
    status, headers, body = server.ask("GET", "/api/model")
    model = json.loads(body)
    assert status == 200
    assert [c["name"] for c in model["classes"]] == list(CLASSES)
    assert [c["color"] for c in model["classes"]][SKY] == "#{:02x}{:02x}{:02x}".format(*PALETTE[SKY])
    assert {c["name"] for c in model["classes"] if c["seen"]} >= {"sky", "tree", "water"}
    assert model["picture"] == {"width": WIDTH, "height": HEIGHT}
    assert {s["name"] for s in model["styles"]} >= {"storm", "autumn"}
    assert {"name": "town", "title": "Town", "style": "autumn"} in model["examples"]
    assert server.ask("GET", "/healthz")[2] == b'{"status":"ready","detail":"ready"}'


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/api/model", "/nothing", "/api/styles/none"])
def test_every_answer_has_the_safe_headers(server, path):
    headers = server.ask("GET", path)[1]
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_a_picture_comes_as_a_stream_of_events(server):
    labels = landscape()
    status, events = server.paint(labels, seed=3)
    kinds = [e["event"] for e in events]
    assert status == 200 and kinds[0] == "started" and kinds[-2:] == ["result", "end"]
    assert {"progress", "preview"} <= set(kinds)
    done = [e["done"] for e in events if e["event"] == "progress"]
    assert done == list(range(1, len(done) + 1)) and events[-3]["steps"] == len(done)
    assert (picture(events[-2]) == colorize(labels)).all()


def test_raw_bodies_and_finished_pictures_serve_scripts(server):
    labels = landscape()
    path = "/api/picture?style=storm&seed=3&size=mask"
    status, headers, data = server.ask("POST", path, png(labels), {"Content-Type": "image/png", "Accept": "image/png"})
    assert (status, headers["content-type"]) == (200, "image/png")
    assert (np.array(Image.open(io.BytesIO(data))) == colorize(labels)).all()


def test_a_style_may_be_a_photo_and_a_data_url(server):
    body = project(landscape(), "data:image/jpeg;base64," + text(STYLE))
    status, _, data = server.ask("POST", "/api/picture", json.dumps(body), JSON)
    assert status == 200 and b'"result"' in data


def test_colors_by_class_take_the_examples_map_the_given_one_or_a_predicted_one(server):
    def by_class(body):
        return [json.loads(line) for line in server.ask("POST", "/api/picture", json.dumps(body), JSON)[2].splitlines()
                ][-2]["by_class"]

    known = {CLASSES.index(name) for name in ("sky", "hill", "field", "railing", "grass", "road")}
    assert by_class(project(landscape())) is None  # as the recipe says
    assert by_class(project(landscape(), color_by_class=False)) is False
    assert set(by_class(project(landscape(), color_by_class=True))) == known
    assert by_class(project(landscape(), text(STYLE), color_by_class=True)) == "predicted"
    given = {**project(landscape(), text(STYLE), color_by_class=True), "style_map": text(png(landscape()))}
    assert by_class(given) == sorted({SKY, GRASS})


def test_a_photo_is_segmented_at_the_size_of_the_page(server):
    status, _, body = server.ask("POST", "/api/segment", STYLE, {"Content-Type": "image/jpeg"})
    labels = np.array(Image.open(io.BytesIO(base64.b64decode(json.loads(body)["map"]))))
    assert status == 200 and labels.shape == (2 * HEIGHT, 2 * WIDTH) and set(np.unique(labels)) <= {SKY, GRASS}


@pytest.mark.parametrize("kind", ["indices", "palette", "contest", "ade20k", "cityscapes", "gaugan"])
def test_label_maps_of_every_kind_become_indices(server, kind):
    labels = landscape()
    if kind == "indices":
        image = Image.fromarray(labels)
    elif kind == "palette":
        image = Image.fromarray(labels)
        image.putpalette(PALETTE.tobytes())
    else:
        colors = np.zeros((*labels.shape, 3), np.uint8)
        for name in ("sky", "grass"):
            colors[labels == CLASSES.index(name)] = next(
                c.color for c in load_table(kind).classes if c.becomes == name and c.color)
        colors[HEIGHT // 2 - 1] = (colors[0].astype(int) + colors[-1]) // 2  # a smoothed edge
        image = Image.fromarray(colors)
    status, _, body = server.ask("POST", "/api/labels", png(image), {"Content-Type": "image/png"})
    answer = json.loads(body)
    found = np.array(Image.open(io.BytesIO(base64.b64decode(answer["map"]))))
    assert status == 200 and answer["read_as"] == ("indices" if kind == "palette" else kind)
    expected = landscape().repeat(2, 0).repeat(2, 1)
    assert (found[:HEIGHT - 2] == expected[:HEIGHT - 2]).all() and (found[HEIGHT:] == expected[HEIGHT:]).all()
    assert set(np.unique(found)) == {SKY, GRASS}


def test_unpainted_pixels_have_no_class(server):
    labels = landscape()
    labels[:, :9] = NO_CLASS
    status, _, body = server.ask("POST", "/api/labels", png(labels), {"Content-Type": "image/png"})
    found = np.array(Image.open(io.BytesIO(base64.b64decode(json.loads(body)["map"]))))
    assert status == 200 and (found == labels.repeat(2, 0).repeat(2, 1)).all()
    assert (picture(server.paint(labels, "unpainted")[1][-2])[:, :9] == 0).all()


def test_examples_have_the_size_of_the_page(server):
    data = server.ask("GET", "/api/examples/town")[2]
    assert Image.open(io.BytesIO(data)).size == (2 * WIDTH, 2 * HEIGHT)


# ------------------------------------------------------------------------------------------------------------- refusals

def bomb(width, height):
    """A small PNG whose header says that it is large."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
            + chunk(b"IEND", b""))


def picture_file(kind, mode="RGB"):
    data = io.BytesIO()
    Image.new(mode, (32, 24)).save(data, kind)
    return data.getvalue()


GOOD = json.dumps(project(landscape()))
PNG, JPEG = {"Content-Type": "image/png"}, {"Content-Type": "image/jpeg"}
HOSTILE = {
    "other host": (421, "/api/picture", GOOD, {**JSON, "Host": "evil.example"}),
    "other host, this port": (421, "/api/picture", GOOD, {**JSON, "Host": "evil.example:{port}"}),
    "host with a user": (421, "/api/picture", GOOD, {**JSON, "Host": "127.0.0.1@evil.example:{port}"}),
    "no port": (421, "/api/picture", GOOD, {**JSON, "Host": "127.0.0.1:x"}),
    "other origin": (403, "/api/picture", GOOD, {**JSON, "Origin": "http://evil.example"}),
    "null origin": (403, "/api/picture", GOOD, {**JSON, "Origin": "null"}),
    "origin of another port, by name": (403, "/api/picture", GOOD, {**JSON, "Origin": "http://localhost:{port}"}),
    "origin of another port": (403, "/api/picture", GOOD, {**JSON, "Origin": "http://127.0.0.1:1"}),
    "cross-site": (403, "/api/picture", GOOD, {**JSON, "Sec-Fetch-Site": "cross-site"}),
    "a form's type": (415, "/api/picture", GOOD, {"Content-Type": "text/plain"}),
    "multipart": (415, "/api/picture", b"--x\r\n", {"Content-Type": "multipart/form-data; boundary=x"}),
    "no type": (415, "/api/picture", b"", {}),
    "photo as a map": (415, "/api/picture?style=storm", STYLE, JPEG),
    "no JSON": (400, "/api/picture", b"\xff{", JSON),
    "deep JSON": (400, "/api/picture", b"[" * 100_000, JSON),
    "a list": (400, "/api/picture", b"[]", JSON),
    "no map": (400, "/api/picture", json.dumps({"style": "storm"}), JSON),
    "no base64": (400, "/api/picture", json.dumps(project("?!")), JSON),
    "map is text": (400, "/api/picture", json.dumps(project(text(b"label map"))), JSON),
    "map is a JPEG": (400, "/api/picture", json.dumps(project(text(STYLE))), JSON),
    "map in colour": (400, "/api/picture", json.dumps(project(text(png(NOISE)))), JSON),
    "map of class 29": (400, "/api/picture", json.dumps(project(plain(29))), JSON),
    "broken map": (400, "/api/picture", json.dumps(project(text(png(landscape())[:-30]))), JSON),
    "large map": (413, "/api/picture", json.dumps(project(text(png(landscape()) + b"\0" * 2**20))), JSON),
    "map of 900 million pixels": (413, "/api/picture", json.dumps(project(text(bomb(30000, 30000)))), JSON),
    "map of 26 million pixels": (413, "/api/picture", json.dumps(project(text(bomb(6500, 4000)))), JSON),
    "map that lies": (400, "/api/picture", json.dumps(project(text(bomb(4000, 4000)))), JSON),
    "unknown style": (400, "/api/picture", json.dumps(project(landscape(), "../../etc/passwd")), JSON),
    "style is no picture": (400, "/api/picture", json.dumps(project(landscape(), text(b"x" * 99))), JSON),
    "style of 900 million pixels": (413, "/api/picture", json.dumps(project(landscape(), text(bomb(30000, 30000)))),
                                    JSON),
    "unknown setting": (400, "/api/picture", json.dumps(project(landscape(), steps=10**9)), JSON),
    "seed": (400, "/api/picture", json.dumps(project(landscape(), seed=2**32)), JSON),
    "seed is a truth": (400, "/api/picture", json.dumps(project(landscape(), seed=True)), JSON),
    "strength": (400, "/api/picture", json.dumps(project(landscape(), strength=1.5)), JSON),
    "strength is no number": (400, "/api/picture", json.dumps(project(landscape(), strength=float("nan"))), JSON),
    "color_by_class": (400, "/api/picture", json.dumps(project(landscape(), color_by_class=1)), JSON),
    "style map is a photo": (400, "/api/picture", json.dumps({**project(landscape()), "style_map": text(STYLE)}), JSON),
    "style map is a number": (400, "/api/picture", json.dumps({**project(landscape()), "style_map": 3}), JSON),
    "style map of 900 million pixels": (413, "/api/picture", json.dumps({
        **project(landscape()), "style_map": text(bomb(30000, 30000))}), JSON),
    "quality": (400, "/api/picture", json.dumps(project(landscape(), quality="best")), JSON),
    "settings": (400, "/api/picture", json.dumps({**project(landscape()), "settings": 3}), JSON),
    "query and JSON": (400, "/api/picture?seed=3", GOOD, JSON),
    "query without style": (400, "/api/picture", png(landscape()), PNG),
    "photo is a GIF": (400, "/api/segment", picture_file("GIF"), PNG),
    "photo is a TIFF": (400, "/api/segment", picture_file("TIFF"), JPEG),
    "photo of 900 million pixels": (413, "/api/segment", bomb(30000, 30000), PNG),
    "large photo": (413, "/api/segment", STYLE + b"\0" * 10 * 2**20, JPEG),
    "label map is a photo": (400, "/api/labels", png(Image.open(io.BytesIO(STYLE))), PNG),
    "large length": (413, "/api/segment", b"", {**JPEG, "Content-Length": "99999999999"}),
    "no length": (400, "/api/segment", b"", {**JPEG, "Content-Length": "-5"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_refused_and_never_computed(server, name):
    status, path, body, headers = HOSTILE[name]
    before = server.paint(landscape())[1][-2]["count"]
    headers = {key: value.format(port=server.port) for key, value in headers.items()}
    answer = server.ask("POST", path, body, headers)
    assert answer[0] == status, answer
    if name != "no length":  # refused by the HTTP parser itself
        assert len(json.loads(answer[2])["error"]) > 10
    assert server.paint(landscape())[1][-2]["count"] == before + 1


@pytest.mark.parametrize(("megabytes", "cut"), [(12, False), (80, True)])
def test_a_body_without_length_is_limited_too(server, megabytes, cut):
    connection = server.connect()
    connection.putrequest("POST", "/api/segment")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    memory = server.memory()
    try:
        for _ in range(megabytes):
            connection.send(b"100000\r\n" + b"\0" * 2**20 + b"\r\n")
        connection.send(b"0\r\n\r\n")
        status = connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        assert cut  # it closed while we were sending
        status = 413
    assert status == 413 and server.memory() < memory + 40


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr("jiidm.painter.server._BODY_SECONDS", 0.1)
    jobs = SimpleNamespace(status="ready", draw_number=lambda: 1)
    server, sent = Server(jobs, Gallery(None), "0"), []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    async def ask_often():
        scope = {"type": "http", "method": "POST", "path": "/api/picture", "query_string": b"",
                 "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]}
        for _ in range(3):  # more at a time than are read at a time, one after the other
            await asyncio.gather(*[server.app(dict(scope), receive, send) for _ in range(8)])

    asyncio.run(ask_often())
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert [message["status"] for message in starts] == [408] * 24
    assert b"did not arrive" in sent[1]["body"] and (b"connection", b"close") in starts[0]["headers"]


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/api/picture", 405), ("POST", "/api/model", 405), ("GET", "/page/../server.py", 404),
    ("GET", "/page/%2e%2e/server.py", 404), ("GET", "/page/..%2fserver.py", 404), ("GET", "/api/styles/..%2f..", 404),
    ("GET", "/page//etc/passwd", 404), ("GET", "/docs", 404),
])
def test_there_is_nothing_else(server, method, path, status):
    assert server.ask(method, path, headers={"Content-Length": "0"})[0] == status


def test_other_machines_need_the_token():
    with painter("--host", "127.0.0.1") as server:
        token = server.url.partition("token=")[2]
        assert len(token) > 20
        assert server.ask("GET", "/")[0] == 200
        assert server.ask("GET", "/api/model")[0] == 401
        assert server.ask("GET", "/api/model", headers={"Authorization": f"Bearer {token[:-1]}"})[0] == 401
        assert server.ask("POST", "/api/picture", GOOD, JSON)[0] == 401
        assert server.ask("GET", "/api/model", headers={"Authorization": f"Bearer {token}"})[0] == 200


# ----------------------------------------------------------------------------------------------------------- endurance

def test_of_one_session_the_latest_request_wins():
    with painter(seconds="1") as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = []
        for label in range(6):
            answers.append(pool.submit(server.paint, plain(label), "me"))
            time.sleep(0.15)
        ends = [answer.result()[1][-1]["event"] for answer in answers]
        assert ends == ["cancelled"] * 5 + ["end"]
        assert (picture(answers[-1].result()[1][-2])[0, 0] == PALETTE[5]).all()


def test_a_request_that_is_slower_to_read_does_not_overtake_a_newer_one():
    with painter(seconds="1") as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        connection = server.connect()
        connection.putrequest("POST", "/api/picture?session=me")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(GOOD)))
        connection.endheaders(GOOD[:100].encode())
        time.sleep(0.3)
        newer = pool.submit(server.paint, plain(GRASS), "me")
        time.sleep(0.3)
        connection.send(GOOD[100:].encode())
        assert json.loads(connection.getresponse().read()) == {"event": "cancelled"}
        assert newer.result()[1][-1]["event"] == "end"


@pytest.mark.slow
def test_fifty_clients_at_once_are_answered_or_sent_away():
    with painter(seconds="0.2") as server, concurrent.futures.ThreadPoolExecutor(50) as pool:
        style = text(png(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)))  # 5.8 MB
        body = json.dumps({**project(landscape()), "style": style})
        memory = []
        for _ in range(3):
            answers = list(pool.map(lambda _: server.ask("POST", "/api/picture", body, JSON), range(50)))
            statuses = [status for status, _, _ in answers]
            assert set(statuses) == {200, 429} and statuses.count(200) >= 5
            for status, headers, data in answers:
                assert b'"event": "end"' in data if status == 200 else headers["retry-after"] == "1"
            memory.append(server.memory())
        assert memory[-1] < memory[0] + 100  # 50 such bodies are 400 MB, their pictures 300
        assert server.paint(landscape())[1][-1]["event"] == "end"


@pytest.mark.slow
def test_a_client_that_goes_away_does_not_hold_the_next_one_up():
    with painter(seconds="20") as server:
        for _ in range(3):
            connection = server.connect()
            connection.request("POST", "/api/picture", GOOD, JSON)
            assert b"started" in connection.getresponse().readline()
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        start = time.monotonic()
        connection = server.connect()
        connection.request("POST", "/api/picture", GOOD, JSON)
        assert b"started" in connection.getresponse().readline()
        assert time.monotonic() - start < 10
        connection.close()


@pytest.mark.parametrize(("label", "words"), [(FAILS, "asked to fail"), (REFUSES, "refused"), (CRASHES, "ended")])
def test_a_job_that_fails_says_so_and_the_next_one_runs(server, label, words):
    status, events = server.paint(plain(label))
    assert status == 200 and events[-1]["event"] == "error" and words in events[-1]["error"]
    for _ in range(100):
        status, events = server.paint(landscape())
        if status != 503:
            break
        time.sleep(0.1)
    assert events[-1]["event"] == "end"


def test_a_job_has_a_time_limit():
    with painter("--time-limit", "0.5", seconds="5") as server:
        events = server.paint(landscape())[1]
        assert events[-1]["event"] == "error" and "0.5 s" in events[-1]["error"]
        assert server.paint(plain(FAILS))[1][-1]["error"].startswith("the picture could not be computed")


@pytest.mark.slow
def test_a_thousand_jobs_leave_nothing_behind():
    with painter(seconds="0") as server:
        connection = server.connect()
        for number in range(1000):
            events = server.paint(landscape(), connection=connection, quality="preview")[1]
            assert events[-2]["count"] == number + 1
            if number == 99:
                memory = server.memory()
        assert server.memory() < memory + 15


def test_nothing_is_written_to_disk(tmp_path, monkeypatch):
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with painter() as server:
        assert server.paint(landscape())[0] == 200
        assert server.ask("POST", "/api/segment", STYLE, JPEG)[0] == 200
        assert server.ask("POST", "/api/labels", png(landscape()), PNG)[0] == 200
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_within_five_seconds(number):
    server = Painter("--port", "0", seconds="1")
    connection = server.connect()
    connection.request("POST", "/api/picture", json.dumps(project(plain(HANGS))), JSON)
    assert b"started" in connection.getresponse().readline()
    children = server.children()
    assert children
    assert server.stop(number) in (130, 143, -number)
    time.sleep(0.1)
    for child in children:
        assert not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


@pytest.mark.slow
def test_a_folder_without_checkpoints_is_an_input_error(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "tools" / "paint.py", "--no-browser", "--checkpoint", tmp_path],
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 2 and f"error: {tmp_path}: found 0 autoencoders" in done.stderr
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------------------------------------------- parts

def _documented(language):
    """The code blocks of docs/painter.md with the painter's address in them."""
    page = (ROOT / "docs" / "painter.md").read_text("utf-8")
    if language == "python":
        return re.findall(r"```python\n(.*?)```", page, re.S)
    return [line.strip() for line in re.findall(r"(?:^    .*\n)+", page, re.M) for line in [line.replace("\\\n", " ")]
            if line.strip().startswith("curl")]


@pytest.mark.parametrize("language", ["python", "shell"])
def test_the_documented_calls_work(server, tmp_path, language):
    if language == "shell" and not shutil.which("curl"):
        pytest.skip("curl is not installed")
    (tmp_path / "mask.png").write_bytes(png(landscape()))
    (tmp_path / "style.jpg").write_bytes(STYLE)
    blocks = [block.replace(":8420", f":{server.port}") for block in _documented(language)]
    assert blocks
    for block in blocks:
        command = [sys.executable, "-c", block] if language == "python" else ["sh", "-c", block]
        assert subprocess.run(command, cwd=tmp_path, env={**os.environ, "no_proxy": "*"}).returncode == 0
        assert (np.array(Image.open(tmp_path / "lake.png")) == colorize(landscape())).all()
        (tmp_path / "lake.png").unlink()


def test_projects_are_read_back():
    found = parse_project(json.dumps({**project(landscape(), seed=7, strength=0.5), "title": "mine"}), ["storm"])
    assert (found.map, found.style, found.settings) == (png(landscape()), "storm", Settings(seed=7, strength=0.5))
    assert parse_project(json.dumps(project(landscape(), text(STYLE)))).style == STYLE


# ---------------------------------------------------------------------------------------------------------- real engine

@pytest.mark.slow
def test_the_real_engine_paints_segments_and_survives_a_cancel():
    with painter(real=True) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        model = json.loads(server.ask("GET", "/api/model")[2])
        assert {c["name"] for c in model["classes"] if c["seen"]} >= {"sky", "tree", "water"}
        labels = np.array(Image.open(ROOT / "examples" / "test" / "labels" / "mountain_lake.png"))
        cancelled = pool.submit(server.paint, labels, "me")
        time.sleep(0.5)
        status, events = server.paint(labels, "me", quality="preview", seed=5)
        assert cancelled.result()[1][-1]["event"] in ("cancelled", "end")
        assert status == 200 and events[-1]["event"] == "end" and any(e["event"] == "preview" for e in events)
        first = picture(events[-2])
        assert first.shape == (model["picture"]["height"], model["picture"]["width"], 3) and first.std() > 10
        again = server.paint(labels, quality="preview", seed=5)[1]
        assert (picture(again[-2]) == first).all()
        whole, by_class, again = (
            picture(server.paint(labels, style=text(STYLE), quality="preview", color_by_class=switch)[1][-2])
            for switch in (False, True, True)
        )
        assert (by_class == again).all() and np.abs(by_class.astype(int) - whole).mean() > 1
        status, _, body = server.ask("POST", "/api/segment", STYLE, JPEG)
        found = np.array(Image.open(io.BytesIO(base64.b64decode(json.loads(body)["map"]))))
        assert status == 200 and found.shape == (model["canvas"]["height"], model["canvas"]["width"])
        assert SKY in found[:found.shape[0] // 4]
