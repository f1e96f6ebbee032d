"""The report over a training folder, and `jiidm data check`."""
import json
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import refused, run_main
from PIL import Image

from jiidm.data.check import FAULTS, REMARKS, check_folder, report_text
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import PALETTE
from jiidm.data.photo_checks import near_copies
from jiidm.data.pictures import read_photo
from jiidm.system.errors import InputError

SIZE = (24, 32)


def photo(name, size=SIZE):
    """A smooth picture of random colours, another one for each name."""
    colors = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(colors).resize(size[::-1], Image.Resampling.BICUBIC))


def good_pair(path, name, value=0):
    """Writes a photo and a label map of two halves, the upper one of class `value`."""
    labels = np.full(SIZE, value, np.uint8)
    labels[12:] = 5
    for part in ("imgs", "labels"):
        (path / part).mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(name)).save(path / "imgs" / f"{name}.jpg")
    Image.fromarray(labels).save(path / "labels" / f"{name}.png")
    return labels


def label_map(path, name, array):
    """Replaces the label map `name`."""
    Image.fromarray(np.asarray(array, np.uint8)).save(path / "labels" / f"{name}.png")


@pytest.fixture
def good(tmp_path):
    """A training folder of four pairs without fault."""
    for index, name in enumerate("abcd"):
        good_pair(tmp_path / "data", name, index)
    return tmp_path / "data"


def check(path, **settings):
    return check_folder(path, **{"width": 32, "height": 24, **settings})


def kinds(findings):
    """{kind: relative paths} of findings."""
    result = {}
    for found in findings:
        result.setdefault(found.kind, []).append(found.path)
    return result


def test_a_good_folder_has_no_finding(good):
    report = check(good)
    assert report.faults == () and report.remarks == ()
    assert (report.photos, report.labels, report.sizes) == (4, 4, {"32x24": 4})
    assert report.pixels == {0: 384, 1: 384, 2: 384, 3: 384, 5: 4 * 384}
    assert report.maps == {0: 1, 1: 1, 2: 1, 3: 1, 5: 4}
    assert "| 5 tree | 50.000 | 4 |" in report_text(report)


def test_every_fault_is_in_one_report(good):
    for name in "efghijk":
        good_pair(good, name)
    (good / "labels" / "a.png").unlink()
    (good / "imgs" / "b.jpg").unlink()
    data = (good / "imgs" / "c.jpg").read_bytes()
    (good / "imgs" / "c.jpg").write_bytes(data[: len(data) // 2])
    (good / "labels" / "d.png").write_bytes(b"no picture")
    label_map(good, "e", np.zeros((24, 16)))
    wrong = np.zeros(SIZE)
    wrong[0, :3], wrong[1, :2], wrong[2] = 29, 200, 255
    label_map(good, "f", wrong)
    label_map(good, "g", np.zeros((*SIZE, 3)))
    Image.new("RGB", (32, 24)).save(good / "imgs" / "h.png")
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(good / "labels" / "i.png")
    Image.new("L", (32, 24)).save(good / "labels" / "j.png", "JPEG")
    report = check(good)
    assert kinds(report.faults) == {
        "partner": ["imgs/a.jpg", "labels/b.png"], "twice": ["imgs/h.png"],
        "unreadable": ["imgs/c.jpg", "labels/d.png"],
        "colour": ["labels/g.png", "labels/i.png", "labels/j.png"],
        "size": ["labels/e.png"], "value": ["labels/f.png"],
    }
    text = report_text(report)
    assert "labels/f.png: label 29 (3 pixels), 200 (2 pixels), first at x=0, y=0; expected 0..28 or 255" in text
    assert "labels/e.png: 16x24, but its photo is 32x24" in text
    assert "## Fault: missing partners (2)" in text and "| 29 outside the classes | " in text
    assert "| 255 no class | " in text and report.maps[255] == 1


def test_remarks_are_no_faults(good):
    nearly = np.full(SIZE, 7)
    nearly[0, :7] = 1
    label_map(good, "a", nearly)
    nearly[0, :8] = 1  # 8 of 768 pixels are more than one in a hundred
    label_map(good, "b", nearly)
    (good / "imgs" / "notes.txt").write_text("by me")
    report = check(good, width=33)
    assert report.faults == ()
    assert kinds(report.remarks)["nearly empty"] == ["labels/a.png"]
    assert kinds(report.remarks)["ignored"] == ["imgs/notes.txt"]
    assert len(kinds(report.remarks)["small"]) == 8
    assert "99.09 % 7 hill" in report_text(report)


def test_the_number_of_classes_is_asked_for(good):
    report = check(good, num_classes=3)
    assert [found.path for found in report.faults] == [f"labels/{name}.png" for name in "abcd"]
    assert "labels/d.png: label 3 (384 pixels), 5 (384 pixels), first at x=0, y=0; expected 0..2" in report_text(report)


def test_an_upright_photo_has_the_size_that_viewers_show(good):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 32)).save(good / "imgs" / "a.jpg", exif=exif)
    assert check(good).faults == ()


def test_the_report_agrees_with_the_reading_for_training(good):
    """What has no fault is read; each fault is an error there."""
    def read_all():
        folder = TrainingFolder(good)
        for name in folder.names:
            folder.photo(name), folder.labels(name)

    read_all()
    for fault in (lambda: good_pair(good, "a", 99), lambda: label_map(good, "b", np.zeros((24, 16))),
                  lambda: (good / "imgs" / "c.jpg").write_bytes(b""), lambda: (good / "labels" / "d.png").unlink()):
        fault()
        assert check(good).faults
        with pytest.raises(InputError):
            read_all()
        for name in "abcd":
            good_pair(good, name)


def test_results_do_not_depend_on_the_threads(good, monkeypatch):
    monkeypatch.setattr("jiidm.data.check._CHUNK", 2)
    for index in range(9):
        good_pair(good, f"n{index}", index)
    label_map(good, "n3", np.zeros((24, 16)))
    assert check(good, threads=1) == check(good, threads=5)


def test_whatever_a_file_raises_the_report_goes_on(good, monkeypatch):
    def broken(path):
        if path.stem == "b":
            raise RuntimeError
        return read_photo(path)

    monkeypatch.setattr("jiidm.data.check.read_photo", broken)
    found, = check(good).faults
    assert (found.kind, found.path, found.text) == ("unreadable", "imgs/b.jpg", "RuntimeError")


def test_folders_that_are_none(tmp_path, good):
    refused(lambda: check(tmp_path / "none"), "none: no such folder")
    refused(lambda: check(tmp_path), "imgs: no such folder")
    for file in (good / "labels").iterdir():
        file.unlink()
    refused(lambda: check(good), "labels: no .png file")


def test_the_tool_and_its_exit_codes(good, tmp_path):
    done = run_main("data", "check", good, "--json", tmp_path / "report.json")
    assert done.returncode == 0 and "4 photos, 4 label maps" in done.stdout
    (good / "imgs" / "a.jpg").unlink()
    done = run_main("data", "check", good, "--classes", 5, "--json", tmp_path / "report.json")
    assert done.returncode == 1 and "photo imgs/a.jpg is missing" in done.stdout
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["photos"] == 3 and read["pixels"]["5"] == 4 * 384
    assert {found["kind"] for found in read["faults"]} <= FAULTS.keys()
    assert {found["kind"] for found in read["remarks"]} == {"small", "tiny"} <= REMARKS.keys()
    for arguments in ((tmp_path / "none",), (good, "--classes", 0), (good, "--json", tmp_path / "none" / "r.json")):
        done = run_main("data", "check", *arguments)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr


# ------------------------------------------------------------------------------------------------------ looks of photos

def put(path, name, picture):
    """Replaces the photo `name` by another of any size, with its label map."""
    Image.fromarray(picture).save(path / "imgs" / f"{name}.jpg", quality=60)
    label_map(path, name, np.arange(picture.shape[0] * picture.shape[1]).reshape(picture.shape[:2]) % 2)


def test_near_copies_are_found_whatever_their_size_and_light(good):
    big = photo("big", (90, 120))
    put(good, "a", big)
    put(good, "b", np.asarray(Image.fromarray(big).resize((70, 50))))
    put(good, "d", np.clip(big * 0.8 + 20, 0, 255).astype(np.uint8))
    copies = [found for found in check(good).remarks if found.kind == "copy"]
    assert [(found.path, found.text) for found in copies] == [("imgs/a.jpg", "much like b.jpg, d.jpg")]


def test_a_group_of_many_copies_is_one_short_line(good):
    for name in "efghijklm":
        put(good, name, photo("same"))
    text = report_text(check(good))
    assert "## Remark: near copies (1)" in text
    assert "- imgs/e.jpg: much like f.jpg, g.jpg, h.jpg, i.jpg, j.jpg and 3 more" in text


def test_thousands_of_photos_are_compared_in_seconds():
    bits = np.where(np.random.default_rng(0).random((10_000, 143)) < 0.5, -1, 1).astype(np.int8)
    bits[9_000] = bits[17]
    bits[9_000, :20] *= -1  # 20 of 143 bits
    bits[9_001] = bits[18]
    bits[9_001, :30] *= -1
    begin = time.process_time()
    groups = list(near_copies([Path(f"{i:05}") for i in range(len(bits))], list(bits)))
    assert groups == [[Path("00017"), Path("09000")]]
    assert time.process_time() - begin < 30


def test_frames_grey_pictures_and_odd_sizes_are_remarked(good):
    framed = photo("framed", (60, 80)).copy()
    framed[:8], framed[-12:] = 0, 0
    put(good, "a", framed)
    put(good, "b", np.repeat(photo("grey", (60, 80)).mean(2, keepdims=True).astype(np.uint8), 3, 2))
    put(good, "c", photo("wide", (30, 200)))
    put(good, "d", np.full((60, 80, 3), (30, 90, 160), np.uint8))
    good_pair(good, "e")
    report = check(good, width=66, height=40)
    found = {(found.kind, found.path): found.text for found in report.remarks if not found.path.startswith("labels")}
    assert found.pop(("frame", "imgs/a.jpg")) == "a plain frame of 7 and 12 pixels above and below"
    assert found.pop(("grey", "imgs/b.jpg")) == "without colour"
    assert found.pop(("aspect", "imgs/c.jpg")) == "200x30, of which a crop to 66:40 keeps 25 %"
    assert found.pop(("frame", "imgs/d.jpg")) == "one colour all over"
    assert found.pop(("tiny", "imgs/e.jpg")) == "32x24, less than half of 66x40"
    assert set(found) == {("small", "imgs/c.jpg")}


def test_a_contact_sheet_shows_photos_with_their_maps(good, tmp_path):
    (good / "labels" / "b.png").unlink()
    (good / "imgs" / "c.jpg").write_bytes(b"no photo")
    done = run_main("data", "check", good, "--sheet", tmp_path / "sheet.png", "--width", 32, "--height", 24)
    assert done.returncode == 1, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (6 + 142, 6 + 2 * 326, 3)  # two pairs, 160x120 each picture
    assert (sheet[20, 6 + 240] == PALETTE[0]).all() and (sheet[100, 6 + 240] == PALETTE[5]).all()
    assert (sheet[20, 6 + 326 + 240] == PALETTE[3]).all()
    refused = run_main("data", "check", good, "--sheet", tmp_path / "sheet.gif")
    assert refused.returncode == 2 and "sheet.gif: expected the name of a picture" in refused.stderr
