"""What a wheel is made from, as one digest: a wheel fits the checkout that has the same."""

import hashlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "sources.sha256"  # the file in a wheel's .dist-info that holds the digest

_FOLDERS = ("csrc", "kernels", "mim4dd")
_MADE = {".so", ".pyc"}


def sources(root: Path = ROOT) -> list[Path]:
    """Every file that the contents of a wheel depend on."""
    found = [root / "pyproject.toml", root / "setup.py"]
    for folder in _FOLDERS:
        found += sorted(path for path in (root / folder).rglob("*") if path.is_file())
    return [path for path in found if path.suffix not in _MADE]


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of the sources, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sources(root):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def source_version(root: Path = ROOT) -> str:
    """The version that the sources state, read without importing them."""
    text = (root / "mim4dd" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ValueError('mim4dd/__init__.py must hold a line __version__ = "…", got none')
    return found.group(1)
