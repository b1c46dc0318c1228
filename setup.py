"""Map kernels/ to mim4dd.kernels and build the extension; the rest is in pyproject.toml.

mim4dd._C holds the CPU kernels and is always built. mim4dd._C_cuda holds the CUDA kernels and is
built where both nvcc and a CUDA build of torch are. MIM4DD_CUDA=0 leaves it out, MIM4DD_CUDA=1
makes its absence an error. CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX and MAX_JOBS are read by torch.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup


def locate_cuda() -> None:
    """Point CUDA_HOME at the toolkit that nvcc belongs to.

    torch takes the parent of the folder nvcc is found in, which is wrong where that is a wrapper
    script or a link.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None or "CUDA_HOME" in os.environ:
        return
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    if top := re.search(r"TOP=(\S+)", dry_run.stderr):
        os.environ["CUDA_HOME"] = str(Path(top.group(1)).resolve())


locate_cuda()

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    raise SystemExit(
        f"mim4dd builds against the torch that it will run with, but {error.name} is not there. "
        "Install torch>=2.11, setuptools and ninja, then: pip install --no-build-isolation -e ."
    ) from error


def require_compiler() -> None:
    """Stop with the cure where there is no C++ compiler."""
    if platform.system() == "Windows":
        raise SystemExit(
            "mim4dd needs g++ or clang, whose vectors it uses; on Windows build it in WSL."
        )
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise SystemExit(
            f"mim4dd needs a C++17 compiler, and {compiler!r} is not on the PATH. "
            "Install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
            "macOS: xcode-select --install) or point CXX at it."
        )


def with_cuda() -> bool:
    """Whether to build the CUDA half."""
    wanted = os.environ.get("MIM4DD_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"MIM4DD_CUDA must be 0 or 1, got {wanted!r}")
    possible = torch.version.cuda is not None and cpp_extension.CUDA_HOME is not None
    if wanted == "1" and not possible:
        raise SystemExit(
            "MIM4DD_CUDA=1 needs nvcc and a CUDA build of torch, "
            f"got CUDA_HOME={cpp_extension.CUDA_HOME} and torch {torch.__version__}"
        )
    return possible and wanted != "0"


# One binary for torch >= 2.11 (stable ABI) and Python >= 3.10 (limited API).
ABI = ("TORCH_TARGET_VERSION", "0x020b000000000000")
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-DNDEBUG"]
# So that compilers vectorise conditionals and the reductions that are named to them.
SIMD_FLAGS = ["-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno"]
# Clang warns of loops that it leaves scalar: those over half precision, whose conversions branch.
# g++ does not know the warning, and says nothing of a `no-` that it does not know.
WARNING_FLAGS = ["-Wall", "-Wextra", "-Wno-pass-failed"]
# What csrc/isa/*.cpp are compiled with beside; csrc/isa.cpp asks whether a CPU has it.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2", "-mlzcnt"]
AVX512 = [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl"))]
INSTRUCTION_SETS = {"avx512": AVX512, "avx2": AVX2, "baseline": []}

# What the compiler needs of memory for the largest file.
BYTES_PER_JOB = 1_500_000_000


def num_jobs() -> int:
    """How many files to compile at a time: one per core, as far as the memory goes."""
    if "MAX_JOBS" in os.environ:
        return int(os.environ["MAX_JOBS"])
    allowed = getattr(os, "sched_getaffinity", None)  # macOS has none
    jobs = len(allowed(0)) if allowed else os.cpu_count() or 1
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists() and (line := re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text())):
        jobs = min(jobs, int(line.group(1)) * 1024 // BYTES_PER_JOB)
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        jobs = min(jobs, int(text) // BYTES_PER_JOB)
    return max(1, jobs)


def cpu_sources() -> dict[Path, list[str]]:
    """The files of the CPU half but the module, the slowest first, each with flags of its own."""
    csrc = Path("csrc")
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {name: flags for name, flags in INSTRUCTION_SETS.items() if x86 or name == "baseline"}
    files = {csrc / "isa" / f"{name}.cpp": flags for name, flags in sets.items()}
    return files | {path: [] for path in sorted(csrc.glob("*.cpp")) if path.stem != "module"}


def ninja_file(objects: dict[Path, Path], files: dict[Path, list[str]]) -> str:
    """The rules by which ninja compiles what has changed."""

    def escaped(path: Path) -> str:
        return re.sub(r"([$ :])", r"$\1", str(path.resolve()))

    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    flags = [
        *CXX_FLAGS,
        *SIMD_FLAGS,
        *WARNING_FLAGS,
        f"-D{ABI[0]}={ABI[1]}",
        "-DPy_LIMITED_API=0x030a0000",
        *(word for path in includes for word in ("-isystem", path)),
        *shlex.split(os.environ.get("CPPFLAGS", "")),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]
    command = f"{os.environ.get('CXX', 'c++')} {shlex.join(flags)}".replace("$", "$$")
    rules = [
        "rule compile",
        f"  command = {command} $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $in",
    ]
    for path, extra in files.items():
        rules.append(f"build {escaped(objects[path])}: compile {escaped(path)}")
        rules.append(f"  extra = {shlex.join(extra)}")
    return "\n".join(rules) + "\n"


def compile_cpu(folder: Path) -> list[str]:
    """Compile the CPU half into a folder, what has changed of it; return the object files."""
    # An environment that is not activated has it beside its Python, and not on the PATH.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ninja = shutil.which("ninja", path=places)
    if ninja is None:
        raise SystemExit("mim4dd builds by ninja, which is not there: pip install ninja")
    files = cpu_sources()
    objects = {path: folder / f"{path.parent.name}-{path.stem}.o" for path in files}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(ninja_file(objects, files))
    subprocess.run([ninja, "-C", str(folder), f"-j{num_jobs()}"], check=True)
    return [str(path) for path in objects.values()]


class BuildExtension(cpp_extension.BuildExtension):
    """Compile the CPU half by rules of our own: its files differ in their flags."""

    def finalize_options(self) -> None:
        """Keep object files in one place."""
        super().finalize_options()
        # An editable install has a new temporary folder each time, and would compile all anew.
        self.build_temp = "build/objects"

    def build_extension(self, ext: Extension) -> None:
        """Hand over what is compiled already."""
        if ext.name == "mim4dd._C":
            ext.extra_objects = compile_cpu(Path(self.build_temp).resolve() / "cpu")
            ext.depends = [*ext.extra_objects, *ext.depends]
        super().build_extension(ext)


def extensions() -> list[Extension]:
    """The CPU half, and the CUDA half where it can be built."""
    require_compiler()
    halves = [
        cpp_extension.CppExtension(
            "mim4dd._C",
            ["csrc/module.cpp"],
            extra_compile_args={"cxx": CXX_FLAGS},
            py_limited_api=True,
        )
    ]
    if with_cuda():
        if not torch.cuda.is_available():  # else torch builds for the GPU that it finds
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0;12.0+PTX")
        halves.append(
            cpp_extension.CUDAExtension(
                "mim4dd._C_cuda",
                sorted(str(path) for path in Path("csrc").glob("*.cu")),
                define_macros=[ABI, ("USE_CUDA", None)],
                extra_compile_args={
                    "cxx": CXX_FLAGS,
                    "nvcc": ["-O3", "-std=c++17", "-lineinfo"],
                },
                py_limited_api=True,
            )
        )
    return halves


setup(
    packages=[*find_packages(include=["mim4dd", "mim4dd.*"]), "mim4dd.kernels"],
    package_dir={"mim4dd.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
