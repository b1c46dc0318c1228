"""How much memory there is to be had."""

from pathlib import Path

import torch

__all__ = ["available_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device; None where the system does not say.

    On a CPU what the kernel counts as available, or what a container has left, if that is less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:  # not there, or hidden
        return None
    sizes = dict(line.split(":", 1) for line in lines if ":" in line)
    if "MemAvailable" not in sizes:
        return None
    available = 1024 * int(sizes["MemAvailable"].split()[0])
    left = _left_in_container()
    return available if left is None else min(available, left)


def _left_in_container() -> int | None:
    """What the control group may still take; None where there is none, or it has no limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text("ascii"))
        used = int((_CGROUP / "memory.current").read_text("ascii"))
        lines = (_CGROUP / "memory.stat").read_text("ascii").splitlines()
        stat = dict(line.split() for line in lines)
    except (OSError, ValueError):
        return None
    return max(0, limit - used + int(stat.get("inactive_file", 0)))  # cached files make room
