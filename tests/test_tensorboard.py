"""TensorBoard's event files: what is in them, and what happens without the extra."""
import sys

import numpy as np
import pytest
from helpers import refused

from jiidm.training.log import EventWriter


def events(path):
    """The events of the one file in a folder, parsed record by record: length, check sum, data, check sum."""
    from tensorboardX.proto.event_pb2 import Event

    file, = path.iterdir()
    data, found = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def test_numbers_and_sheets_are_in_the_file(tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard")
    writer = EventWriter(tmp_path / "new" / "events", "unet")
    writer.scalars(10, {"mse": 0.25, "learning_rate": np.float32(0.5)})
    writer.scalars(20, {"mse": 0.125})
    writer.sample_grid(20, np.full((6, 9, 3), 200, np.uint8))
    writer.close()
    found = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "new" / "events") for v in e.summary.value]
    assert found[:3] == [(10, "unet/mse", 0.25), (10, "unet/learning_rate", 0.5), (20, "unet/mse", 0.125)]
    image = [v.image for e in events(tmp_path / "new" / "events") for v in e.summary.value if v.tag == "unet/samples"]
    assert [(i.height, i.width, i.colorspace) for i in image] == [(6, 9, 3)]


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.chdir(tmp_path)
    writer = EventWriter(None, "unet")
    writer.scalars(10, {"mse": 0.25})
    writer.sample_grid(10, np.zeros((6, 9, 3), np.uint8))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused(lambda: EventWriter(tmp_path, "unet"), "pip install tensorboardX")
