"""Build for aarch64 and run the op tests there by emulation, on an x86-64 Debian.

    apt-get install g++-aarch64-linux-gnu qemu-user-static mmdebstrap
    python tools/check_aarch64.py [--folder DIR] [pytest arguments]

setup.py runs under the emulated Python, with that Python's headers and an aarch64 torch, and calls
the cross compiler at full speed: there is no second list of sources or flags. The folder (1.5 GB)
is kept; the next time only what changed is compiled.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from empty_cuda import fill_in

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    "aarch64-linux-gnu-g++": "apt-get install g++-aarch64-linux-gnu",
    "qemu-aarch64-static": "apt-get install qemu-user-static",
    "mmdebstrap": "apt-get install mmdebstrap",
    "ninja": "pip install ninja",
}
# Python of the release that the cross compiler is of, so that both know the same glibc.
PACKAGES = "python3-dev,libgomp1,libstdc++6"
# With what torch and the tests import: pip would choose dependencies for this machine.
WHEELS = (
    *("torch==2.13.0", "numpy", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2"),
    *("markupsafe", "filelock", "fsspec", "setuptools>=77", "packaging"),
    *("pytest", "pluggy", "iniconfig", "pygments"),
)
TESTS = ("@tests/ops.txt", "tests/unrolls/test_convolution.py")
# With NEON and without SVE, as most servers and laptops.
CPU = "neoverse-n1"
CPUINFO = """\
processor\t: {index}
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def require_tools() -> None:
    """Stop with the cure where a tool is missing."""
    cures = [f"{tool} ({cure})" for tool, cure in TOOLS.items() if shutil.which(tool) is None]
    if cures:
        raise SystemExit(f"check_aarch64.py needs {', '.join(cures)}")


def release() -> str:
    """The code name of this machine's Debian release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    names = dict(line.split("=", 1) for line in lines if "=" in line)
    if names.get("ID") != "debian":
        raise SystemExit(f"check_aarch64.py needs Debian, got ID={names.get('ID')}")
    return names["VERSION_CODENAME"]


def make_system(folder: Path) -> None:
    """An aarch64 Python with its libraries, and what torch reads about the CPU."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    options = ["--arch=arm64", "--variant=extract", f"--include={PACKAGES}"]
    subprocess.run(["mmdebstrap", *options, release(), str(part)], check=True)
    # torch crashes at import where these tell of an x86 CPU or of none.
    (part / "proc").mkdir(exist_ok=True)
    (part / "proc/cpuinfo").write_text(
        "".join(CPUINFO.format(index=index) for index in range(os.cpu_count() or 1))
    )
    part.rename(folder)


def install_wheels(folder: Path, system: Path) -> None:
    """Torch and what the tests import, for aarch64."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    version = python(system).name.removeprefix("python")
    platforms = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(part)),
            *("--no-deps", "--only-binary=:all:", "--python-version", version),
            *(f"--platform={name}" for name in platforms),
            *WHEELS,
        ],
        check=True,
    )
    fill_in(part / "torch/lib", [system / "lib", system / "usr/lib"])
    part.rename(folder)


def copy_sources(tree: Path) -> None:
    """The working tree as git sees it, with its times, so that only what changed is compiled."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    names = {name for name in listed if name and (ROOT / name).is_file()}
    for path in [*tree.glob("*/**/*.py"), *tree.glob("csrc/**/*")]:
        if path.is_file() and str(path.relative_to(tree)) not in names:
            path.unlink()
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    kernels = tree / "mim4dd/kernels"  # as an installation maps it
    if not kernels.is_symlink():
        kernels.symlink_to("../kernels")


def python(system: Path) -> Path:
    """The emulated interpreter."""
    (found,) = system.glob("usr/bin/python3.[0-9]*[0-9]")
    return found


def emulate(folder: Path, arguments: list[str], environment: dict[str, str]) -> int:
    """Exit status of the emulated Python in the copied tree."""
    system, site = folder / "system", folder / "site"
    command = ["qemu-aarch64-static", "-cpu", CPU, "-L", str(system), str(python(system))]
    paths = {"PYTHONPATH": f"{site}:{folder / 'tree'}"}
    return subprocess.run(
        [*command, *arguments], cwd=folder / "tree", env=os.environ | paths | environment
    ).returncode


def build(folder: Path) -> None:
    """Compile the C++ half; raises SystemExit with the compiler's status."""
    include = folder / "system/usr/include"
    # Behind the cross compiler's own: of these, only Python's are wanted.
    flags = f"-idirafter {include / python(folder / 'system').name} -idirafter {include}"
    environment = {
        "MIM4DD_CUDA": "0",
        "CXX": "aarch64-linux-gnu-g++",
        "CFLAGS": flags,
        "CXXFLAGS": flags,
    }
    if status := emulate(folder, ["setup.py", "build_ext", "--inplace"], environment):
        raise SystemExit(status)


def main() -> None:
    """Make what is not there yet, build, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build/aarch64")
    options, pytest = parser.parse_known_args()
    require_tools()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "system").exists():
        make_system(folder / "system")
    if not (folder / "site").exists():
        install_wheels(folder / "site", folder / "system")
    copy_sources(folder / "tree")
    build(folder)
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", *(pytest or TESTS)]
    raise SystemExit(emulate(folder, arguments, {}))


if __name__ == "__main__":
    main()
