"""tools/package_submission.py: a whole zip of good pictures, or a list of what is wrong."""
import io
import json
import os
import zipfile

import numpy as np
import pytest
from helpers import refused, run_main, run_tool
from PIL import Image

from jiidm.contest.submission import check_submission, write_submission

SIZE = 32, 24


def picture(path, size=SIZE, mode="RGB", **options):
    """Writes a picture of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)


@pytest.fixture
def folders(tmp_path):
    """A test folder of three masks and the folder of their pictures."""
    given, results = tmp_path / "test", tmp_path / "results"
    given.mkdir()
    results.mkdir()
    references = {f"{name}.png": "photo.jpg" for name in ("c", "a", "b.2")}
    (given / "label_to_img.json").write_text(json.dumps(references))
    for name in ("a", "b.2", "c"):
        picture(results / f"{name}.jpg")
    return given, results


def package(given, results, output, *more, modules=None):
    if modules is None:
        return run_main("package", "--input_path", given, "--results", results, "--output", output, *more)
    return run_tool("package_submission", "--input_path", given, "--results", results, "--output", output, *more,
                    modules=modules)


SMALL = "--width", SIZE[0], "--height", SIZE[1]


def test_package(folders, tmp_path):
    """Three pictures at the root of the zip, bytes as they are, and Jittor not even imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "jittor.py").write_text("raise SystemExit('jittor was imported')\n")
    output = tmp_path / "new" / "result.zip"
    done = package(*folders, output, *SMALL, modules=tmp_path / "modules")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{output}: 3 pictures of 32x24\n"
    with zipfile.ZipFile(output) as archive:
        assert archive.namelist() == ["a.jpg", "b.2.jpg", "c.jpg"]
        assert archive.testzip() is None
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert archive.read(entry) == (folders[1] / entry.filename).read_bytes()
    assert os.listdir(output.parent) == ["result.zip"]


def test_every_fault_is_listed_and_nothing_written(folders, tmp_path):
    given, results = folders
    (results / "a.jpg").unlink()
    (results / "c.jpg").write_bytes((results / "c.jpg").read_bytes()[:-400])
    output = tmp_path / "result.zip"
    output.write_bytes(b"an earlier one")
    done = package(given, results, output)
    assert done.returncode == 2 and done.stdout == ""
    for words in ("a.jpg: missing", "b.2.jpg: 32x24, expected 512x384", "c.jpg: broken picture", "3 of 3"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert output.read_bytes() == b"an earlier one"


def test_extra_picture_is_a_warning(folders, tmp_path):
    picture(folders[1] / "overview.jpg")
    (folders[1] / "log.txt").touch()
    done = package(*folders, tmp_path / "result.zip", *SMALL)
    assert done.returncode == 0
    assert "overview.jpg" in done.stderr and "log.txt" not in done.stderr
    with zipfile.ZipFile(tmp_path / "result.zip") as archive:
        assert len(archive.namelist()) == 3


def png_bytes():
    buffer = io.BytesIO()
    picture(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("spoil, words", [
    (lambda path: path.unlink(), "missing"),
    (lambda path: path.write_bytes(b""), "not a picture"),
    (lambda path: path.write_bytes(b"no picture"), "not a picture"),
    (lambda path: path.write_bytes(path.read_bytes()[:200]), "picture"),
    (lambda path: path.write_bytes(png_bytes()), "a PNG"),
    (lambda path: picture(path, mode="L"), "mode L"),
    (lambda path: picture(path, mode="CMYK"), "mode CMYK"),
    (lambda path: picture(path, size=(24, 32)), "24x32, expected 32x24"),
    (lambda path: (path.unlink(), path.mkdir()), "a folder"),
])
def test_each_fault(folders, spoil, words):
    spoil(folders[1] / "c.jpg")
    check = check_submission(*folders, *SIZE)
    assert len(check.faults) == 1
    assert check.faults[0].startswith(f"{folders[1] / 'c.jpg'}: ") and words in check.faults[0]


def test_picture_under_another_suffix_is_missing_and_extra(folders):
    (folders[1] / "c.jpg").rename(folders[1] / "c.png")
    check = check_submission(*folders, *SIZE)
    assert check.faults == [f"{folders[1] / 'c.jpg'}: missing"] and check.extra == ["c.png"]


def test_missing_folders(folders, tmp_path):
    given, results = folders
    refused(lambda: check_submission(given, tmp_path / "none", *SIZE), tmp_path / "none", "no such folder")
    refused(lambda: check_submission(tmp_path, results, *SIZE), "label_to_img.json")
    done = package(tmp_path, results, tmp_path / "result.zip")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not (tmp_path / "result.zip").exists()


def test_equal_pictures_make_an_equal_zip(folders, tmp_path):
    pictures = check_submission(*folders, *SIZE).pictures
    write_submission(tmp_path / "one.zip", pictures)
    for path in pictures:
        os.utime(path, (0, 0))
        path.chmod(0o600)
    write_submission(tmp_path / "two.zip", pictures)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_where_no_zip_can_be_written(folders, tmp_path):
    pictures = check_submission(*folders, *SIZE).pictures
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "file").touch()
    for output in (tmp_path / "folder.zip", tmp_path / "result.tar", tmp_path / "file" / "result.zip"):
        refused(lambda output=output: write_submission(output, pictures), output.parent)
    pictures[1].unlink()
    refused(lambda: write_submission(tmp_path / "result.zip", pictures), "result.zip")
    assert not list(tmp_path.glob("*result.zip"))
    assert not list(tmp_path.glob(".*"))
