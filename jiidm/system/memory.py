"""How much memory this process may still take."""
from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # cgroup 2 and 1


def available_memory() -> int | None:
    """Returns the bytes that are free on this machine or left of a container's limit, whichever is less.

    Memory that the system can take back at once, such as cached files, counts as free. None where neither is known.
    """
    found = [left for folder in _group_folders() if (left := _left_of(folder)) is not None]
    sizes = _numbers(_SYSTEM)
    if "MemAvailable:" in sizes:
        found.append(1024 * sizes["MemAvailable:"])
    return min(found, default=None)


def _group_folders():
    """The folders of this process's memory cgroup and of those around it; a container may see its own as the root."""
    for line in _read(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        root = _GROUPS / "memory" if controllers else _GROUPS
        if controllers and "memory" not in controllers.split(","):
            continue
        inner = root / path.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _left_of(folder):
    """Bytes that the limit of a cgroup leaves; None where it has none."""
    for limit, usage in _FILES:
        numbers = [text.strip() for text in (_read(folder / limit), _read(folder / usage))]
        if all(number.isdigit() for number in numbers):
            counted = _numbers(folder / "memory.stat")
            cached = counted.get("total_inactive_file", counted.get("inactive_file", 0))
            return max(0, int(numbers[0]) - int(numbers[1]) + cached)
    return None


def _numbers(path):
    """The numbers of a file of lines "name number"."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _read(path):
    """The text of a file; "" where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
