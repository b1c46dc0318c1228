"""What `mim4dd doctor` reports: what is built, for what, and why something is not."""

import importlib
import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import mim4dd
from mim4dd._library import LOAD_ERRORS, REBUILD

__all__ = ["report"]


def report() -> tuple[str, bool]:
    """The report, and whether everything that this machine can use works."""
    lines = [
        f"mim4dd {mim4dd.__version__} in {Path(mim4dd.__file__).parent}",
        f"python {platform.python_version()} on {platform.machine()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
    ]
    healthy = True
    for device, error in LOAD_ERRORS.items():
        if error is None:
            lines.append(f"{device} extension: loaded{_architectures(device)}")
        else:
            healthy = False
            lines.append(f"{device} extension: NOT loaded: {error}; {REBUILD}")
    if torch.version.cuda is None:
        lines.append("CUDA extension: not built, this torch is a CPU build")
    lines += [*_gpu(), _triton()]
    for package in ("matplotlib", "safetensors", "scikit-learn", "tqdm", "typer"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package}: missing, `pip install 'mim4dd[distill]'` brings it")
    return "\n".join(lines), healthy


def _architectures(device: str) -> str:
    """What the extension was built for, and what of it runs."""
    if device == "CPU":
        module = importlib.import_module("mim4dd._C")
        return f", runs on {module.instruction_set} of {module.instruction_sets.replace(' ', ', ')}"
    module = importlib.import_module("mim4dd._C_cuda")
    built = [f"sm_{int(number) // 10}" for number in module.architectures.split(",")]
    return f", built for {', '.join(built)}"


def _gpu() -> list[str]:
    if not torch.cuda.is_available():
        return ["GPU: none that PyTorch sees"]
    lines = []
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(f"GPU {index}: {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    return lines


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton: missing; GPUs need it for the contrastive kernels"
    return f"triton {version('triton')}"
