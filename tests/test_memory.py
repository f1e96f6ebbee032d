"""The memory that is left: of the machine, and of a container's limit."""
import pytest

from jiidm.system import memory
from jiidm.system.memory import available_memory

MACHINE = "MemTotal: 9000 kB\nMemAvailable: 6000 kB\n"
STAT = "anon 5\ninactive_file 1000\ntotal_inactive_file 2000\n"


@pytest.mark.parametrize("files, left", [
    ({"meminfo": MACHINE}, 6_144_000),
    ({}, None),
    ({"meminfo": MACHINE, "self": "0::/\n", "fs/memory.max": "max\n", "fs/memory.current": "7\n"}, 6_144_000),
    ({"meminfo": MACHINE, "self": "0::/\n", "fs/memory.max": "500000\n", "fs/memory.current": "100000\n"}, 400_000),
    # a limit around the process's own group, and cached files
    ({"self": "0::/box/job\n", "fs/box/memory.max": "9000\n", "fs/box/memory.current": "4000\n",
      "fs/box/memory.stat": "inactive_file 1500\n", "fs/box/job/memory.max": "max\n",
      "fs/box/job/memory.current": "3000\n"}, 6500),
    ({"self": "3:cpu:/x\n2:memory:/job\n", "fs/memory/job/memory.limit_in_bytes": "9000\n",
      "fs/memory/job/memory.usage_in_bytes": "8000\n", "fs/memory/job/memory.stat": STAT}, 3000),
    ({"self": "0::/\n", "fs/memory.max": "100\n", "fs/memory.current": "300\n"}, 0),
])
def test_available_memory(monkeypatch, tmp_path, files, left):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "self")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "fs")
    assert available_memory() == left
