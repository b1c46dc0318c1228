"""Versions, tools, and one small call of each op on the GPU beside its definition."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from stages import commit, launches
from stages.arguments import parse
from stages.records import run_cases

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark")
TOOLS = ("nvcc", "ncu", "compute-sanitizer", "cuobjdump")


def versions(device: str) -> dict:
    """What results depend on; an error where there is no GPU and there should be one."""
    found: dict = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found["gpu"] = f"{torch.cuda.get_device_name()}, sm_{major}{minor}"
        found["driver"] = told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["tools"] = {tool: shutil.which(tool) for tool in TOOLS}
    return found


def told(*command: str) -> str | None:
    """What a command prints, if it is there."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return result.stdout.strip()


def sources() -> dict:
    """Which they are; the commit as well where there is a repository."""
    trees = commit.trees()
    return {"trees": trees, "commit": commit.find(trees)}


def doctor() -> dict:
    """What is built, and why something is not."""
    from mim4dd.doctor import report

    text, healthy = report()
    if not healthy:
        raise RuntimeError(text)
    return {"text": text}


def main() -> None:
    args = parse(__doc__)
    cases = [("versions", lambda: versions(args.device)), ("sources", sources), ("doctor", doctor)]
    small = launches.small(args.device)
    cases += [(name, lambda launch=launch: launches.checked(launch)) for name, launch in small]
    run_cases(args.results, args.stage, cases)


if __name__ == "__main__":
    main()
