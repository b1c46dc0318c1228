"""Print the wheel in dist/ that was made from these sources and runs here, if there is one.

    python tools/find_wheel.py

Standard library alone: it runs before anything is installed. Why a wheel does not fit goes to
standard error.
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from wheel_sources import NOTE, ROOT, source_digest, source_version


def misfit(wheel: Path) -> str | None:
    """Why a wheel cannot stand for a build of these sources on this machine; None where it can."""
    if not any(map(_runs_here, wheel.stem.split("-")[-1].split("."))):
        return f"is for another machine than {sysconfig.get_platform()}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "needs a Python with the GIL"
    try:
        with ZipFile(wheel) as archive:
            names = archive.namelist()
            notes = [archive.read(name).decode() for name in names if name.endswith(f"/{NOTE}")]
    except BadZipFile:
        return "is not a whole wheel"
    if notes != [source_digest()]:
        return "was made from other sources"
    if _builds_for_cuda() and not any(name.startswith("mim4dd/_C_cuda.") for name in names):
        return "has no CUDA half, and this machine has a GPU and nvcc"
    return None


def _runs_here(tag: str) -> bool:
    machine = platform.machine()
    if tag == f"linux_{machine}":
        return True
    needed = re.fullmatch(rf"manylinux_(\d+)_(\d+)_{machine}", tag)
    library, version = platform.libc_ver()
    if needed is None or library != "glibc":
        return False
    return tuple(map(int, needed.groups())) <= tuple(map(int, version.split(".")[:2]))


def _builds_for_cuda() -> bool:
    wanted = os.environ.get("MIM4DD_CUDA")
    return wanted == "1" or (
        wanted != "0" and Path("/dev/nvidiactl").exists() and shutil.which("nvcc") is not None
    )


def fitting_wheels() -> list[Path]:
    """The wheels of dist/ that fit; why others do not goes to standard error."""
    fitting = []
    for wheel in sorted((ROOT / "dist").glob(f"mim4dd-{source_version()}-cp310-abi3-*.whl")):
        if reason := misfit(wheel):
            print(f"dist/{wheel.name} {reason}", file=sys.stderr)
        else:
            fitting.append(wheel)
    return fitting


def main() -> None:
    for wheel in fitting_wheels()[:1]:
        print(wheel.relative_to(ROOT))


if __name__ == "__main__":
    main()
