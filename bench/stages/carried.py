"""Kernels that were compiled elsewhere, for the Triton of a machine whose minutes are few.

bench/compile_launches.py --pack makes the archive. It holds what Triton keeps in its cache, and
what its Triton looks kernels up by; that of the other machine has to do the same.
"""

import io
import json
import tarfile
from pathlib import Path

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.cache import triton_key

from stages.commit import ROOT

ARCHIVE = ROOT / "dist" / "triton-cache.tar.xz"
KEYS = "keys.json"
GROUP = "__grp__"  # names the files of a kernel, by their paths
NEEDED = (".json", ".cubin")  # the others are steps between the two


def keys(capability: int) -> dict[str, str]:
    """What Triton looks a kernel up by, beside the kernel."""
    backend = make_backend(GPUTarget("cuda", capability, 32))
    return {"Triton": triton_key(), "assembler": backend.hash()}


def pack(folder: Path, archive: Path, capability: int) -> int:
    """Put a cache's kernels for a GPU into a file, without the paths; how many."""
    groups = [path for path in sorted(folder.glob(f"*/{GROUP}*.json")) if _is_for(path, capability)]
    archive.parent.mkdir(parents=True, exist_ok=True)
    new = archive.with_suffix(".new")
    with tarfile.open(new, "w:xz") as tar:
        _add(tar, KEYS, json.dumps(keys(capability)).encode())
        for group in groups:
            files = [file for file in _files(group) if file.suffix in NEEDED]
            for file in files:
                _add(tar, f"{group.parent.name}/{file.name}", file.read_bytes())
            # Behind its files, so that half of an archive holds whole kernels.
            _add(tar, f"{group.parent.name}/{group.name}", _listing(files))
    new.replace(archive)
    return len(groups)


def unpack(archive: Path, capability: int) -> int:
    """Put the kernels into the cache of the Triton that is here; how many.

    Raises ValueError if this Triton would not find them.
    """
    folder, count = Path(knobs.cache.dir), 0
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            content = file.read() if file else b""
            if member.name == KEYS:
                _compare(json.loads(content), keys(capability))
                continue
            name = Path(member.name)
            path = folder / name.parent.name / name.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.name.startswith(GROUP):
                content = _listing([path.with_name(name) for name in _names(content)])
                count += 1
            path.write_bytes(content)
    return count


def _is_for(group: Path, capability: int) -> bool:
    metadata = json.loads(group.with_name(group.name.removeprefix(GROUP)).read_text("utf-8"))
    return metadata["target"]["arch"] == capability


def _files(group: Path) -> list[Path]:
    return [group.with_name(name) for name in _names(group.read_bytes())]


def _names(listing: bytes) -> list[str]:
    return list(json.loads(listing)["child_paths"])


def _listing(files: list[Path]) -> bytes:
    return json.dumps({"child_paths": {file.name: str(file) for file in files}}).encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _compare(packed: dict[str, str], here: dict[str, str]) -> None:
    if other := [name for name in here if packed.get(name) != here[name]]:
        raise ValueError(f"its kernels are of another {' and '.join(other)}")
