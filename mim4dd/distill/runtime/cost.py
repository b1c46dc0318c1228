"""What a run costs: seconds and peak memory, over all the processes that it took."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

__all__ = ["Meter", "peak_bytes"]

_STATUS = Path("/proc/self/status")  # sandboxes leave it out, or its peak


class Meter:
    """Seconds by the clock and of CPU time since it was made, and the peak memory so far.

    What an earlier process measured before it was stopped is added by :meth:`restore`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._before: Mapping[str, float] = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0}

    def restore(self, reading: Mapping[str, float]) -> None:
        """Continue from what :meth:`read` gave; other entries are left aside, missing ones 0."""
        self._before = {name: reading.get(name) or 0 for name in self._before}

    def read(self) -> dict[str, float]:
        """``seconds``, ``cpu_seconds`` of all threads, and ``peak_bytes``."""
        return {
            "seconds": self._before["seconds"] + time.perf_counter() - self._started,
            "cpu_seconds": self._before["cpu_seconds"] + time.process_time() - self._cpu_started,
            "peak_bytes": max(self._before["peak_bytes"], peak_bytes(self.device)),
        }


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: on a GPU what PyTorch allocated there, else on the host.

    Example:
        >>> import torch
        >>> from mim4dd.distill.runtime.cost import peak_bytes
        >>> peak_bytes(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = _STATUS.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(b"VmHWM"):
            return 1024 * int(line.split()[1])
    # Where the system does not say: this also counts what the parent held when it started us.
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
