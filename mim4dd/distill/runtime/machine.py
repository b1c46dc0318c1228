"""What a result was measured on, and by which sources."""

import platform
import subprocess
from pathlib import Path

import torch

import mim4dd
from mim4dd._threads import process_threads

__all__ = ["describe_machine"]

_CPU_INFO = Path("/proc/cpuinfo")


def describe_machine(device: str = "cpu") -> dict[str, str | int | None]:
    """The processor or GPU, the threads of this process, and the versions, to be kept with results.

    ``commit`` is that of the checkout which holds the package, with "+" where sources differ from
    it; None where they come from no checkout.

    Example:
        >>> from mim4dd.distill.runtime.machine import describe_machine
        >>> sorted(describe_machine())
        ['commit', 'machine', 'mim4dd', 'threads', 'torch']
    """
    gpu = torch.device(device).type == "cuda"
    return {
        "machine": torch.cuda.get_device_name(device) if gpu else _processor(),
        "threads": process_threads(),
        "torch": torch.__version__,
        "mim4dd": mim4dd.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    package = Path(mim4dd.__file__).parent
    # Not that of another project's checkout, within whose environment the package lies.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    head = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return None if head is None else head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
