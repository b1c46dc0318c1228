"""Map kernels/ to mim4dd.kernels and build the extension; the rest is in pyproject.toml.

mim4dd._C holds the CPU kernels and is always built. mim4dd._C_cuda holds the CUDA kernels and is
built where both nvcc and a CUDA build of torch are. MIM4DD_CUDA=0 leaves it out, MIM4DD_CUDA=1
makes its absence an error. CUDA_HOME, TORCH_CUDA_ARCH_LIST, CXX and MAX_JOBS are read by torch.
"""

import os
import re
import shutil
import subprocess
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


def sources(suffix: str) -> list[str]:
    """The files of one half."""
    return sorted(str(path) for path in Path("csrc").glob(f"*.{suffix}"))


def extensions() -> list[Extension]:
    """One binary for torch >= 2.11 (stable ABI) and Python >= 3.10 (limited API) per half."""
    require_compiler()
    abi = ("TORCH_TARGET_VERSION", "0x020b000000000000")
    cxx = ["-O3", "-std=c++17", "-fvisibility=hidden"]
    # So that compilers vectorise conditionals and the reductions that are named to them.
    simd = ["-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno"]
    halves = [
        cpp_extension.CppExtension(
            "mim4dd._C",
            sources("cpp"),
            define_macros=[abi],
            extra_compile_args={"cxx": [*cxx, *simd]},
            py_limited_api=True,
        )
    ]
    if with_cuda():
        if not torch.cuda.is_available():  # else torch builds for the GPU that it finds
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0+PTX")
        halves.append(
            cpp_extension.CUDAExtension(
                "mim4dd._C_cuda",
                sources("cu"),
                define_macros=[abi, ("USE_CUDA", None)],
                extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++17", "-lineinfo"]},
                py_limited_api=True,
            )
        )
    return halves


setup(
    packages=[*find_packages(include=["mim4dd", "mim4dd.*"]), "mim4dd.kernels"],
    package_dir={"mim4dd.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
