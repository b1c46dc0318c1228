"""Reading one changed copy of the files of a format, and judging what comes of it.

A reader may give a consistent value or refuse by a ValueError, or an OSError, that names the file
or its folder. Anything else is a fault: another exception, more memory or time than the file is
worth, a file written elsewhere, code that ran.
"""

import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fuzz.formats import FORMATS
from fuzz.mutations import mutate

__all__ = ["Fault", "make_templates", "run_case"]

SECONDS = 10.0  # of CPU time, far above what any reader takes of a few kilobytes
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
# What a program does to others, and to files other than by opening them: where the path stands.
_CHANGING = {
    "os.chmod": 0, "os.link": 1, "os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.rmdir": 0,
    "os.symlink": 1, "os.truncate": 0, "shutil.move": 1, "shutil.rmtree": 0,
}  # fmt: skip
_EXECUTING = ("os.exec", "os.posix_spawn", "os.system", "subprocess.Popen", "socket.connect")
_FILE_TRICKS = ("gone", "folder", "link to itself", "link outside", "link to zeros", "pipe")


class Fault(NamedTuple):
    """What a reader did that it must not."""

    format: str
    seed: int
    kind: str
    message: str


class _Watch:
    """Writes outside a folder, and programs that were started, while it is on."""

    def __init__(self) -> None:
        self.allowed: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.allowed is None:
            return
        if event in _EXECUTING:
            self.seen.append(f"{event} {arguments[:2]!r:.200}")
        elif event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                self._require_inside(event, path)
        elif event in _CHANGING and len(arguments) > _CHANGING[event]:
            self._require_inside(event, arguments[_CHANGING[event]])

    def _require_inside(self, event: str, path: object) -> None:
        if isinstance(path, int) or path is None:
            return
        if path == ".lock":  # named within a folder that is held, which the event does not tell
            return
        # Without following the last part, which is what is made.
        whole = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if event == "open":
            whole = os.path.realpath(path)
        if not os.fsdecode(whole).startswith((self.allowed, "/dev/null", "/proc/")):
            self.seen.append(f"{event} {os.fsdecode(path)}")


_watch: _Watch | None = None


@contextmanager
def _watching(folder: Path) -> Iterator[list[str]]:
    global _watch
    if _watch is None:  # a hook cannot be taken off again
        _watch = _Watch()
    _watch.seen.clear()
    _watch.allowed = str(folder.resolve())
    try:
        yield _watch.seen
    finally:
        _watch.allowed = None


def make_templates(folder: Path, names: list[str]) -> dict[str, Path]:
    """Whole files of the formats, in folders of their own, each read once."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            found[name] = folder / "whole" / name.replace(" ", "_")
            found[name].mkdir(parents=True)
            FORMATS[name].make(found[name])
            copy = folder / "read" / name.replace(" ", "_")
            shutil.copytree(found[name], copy)
            FORMATS[name].read(copy)  # also so that all is imported
    return found


def run_case(name: str, seed: int, template: Path, folder: Path) -> tuple[str, Fault | None]:
    """Whether a case was read or refused, and its fault.

    Args:
        name: The format.
        seed: What is changed, and how.
        template: The whole files.
        folder: A new one for the changed ones.
    """
    inside = folder / "in"
    shutil.copytree(template, inside)
    changed = _change(random.Random(f"{name} {seed}"), name, inside, folder)
    size = sum(path.stat().st_size for path in inside.rglob("*") if path.is_file())
    outcome, kind, message = "read", "", ""
    before, started = _peak_from_here(), time.process_time()
    with _watching(folder) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            FORMATS[name].read(inside)
        except BaseException as error:
            outcome = "refused"
            kind, message = _judged(error, changed, inside)
        seen = list(seen)
    seconds, grown = time.process_time() - started, _peak() - before
    allowed = 4 * max(size, _whole_size(template)) * FORMATS[name].expands + FORMATS[name].memory
    if seconds > SECONDS * (1 + FORMATS[name].cost / 10):
        kind, message = "time", f"{seconds:.1f} s"
    elif grown > allowed:
        kind, message = "memory", f"{grown >> 20} MiB for {size} bytes"
    elif seen or (folder / "escaped").exists() or Path("escaped").exists():
        kind, message = "escape", "; ".join(seen) or "escaped"
    fault = Fault(name, seed, kind, f"{changed.name}: {message}") if kind else None
    return outcome, fault


def _whole_size(template: Path) -> int:
    return sum(path.stat().st_size for path in template.rglob("*") if path.is_file())


def _change(draw: random.Random, name: str, inside: Path, folder: Path) -> Path:
    """Change one file; which one."""
    files = sorted(path for path in inside.rglob("*") if path.is_file())
    path = draw.choice(files)
    if draw.random() < 0.04:
        _trick(draw.choice(_FILE_TRICKS), path, folder)
        return path
    content = path.read_bytes()
    zipped = content[:4] == b"PK\x03\x04"
    if path.suffix == ".gz" and draw.random() < 0.5:
        import gzip

        content = gzip.compress(mutate(draw, gzip.decompress(content), repack=False))
    else:
        content = mutate(draw, content, repack=zipped, yaml=name == "yaml")
    path.write_bytes(content)
    return path


def _trick(kind: str, path: Path, folder: Path) -> None:
    """Something else in the place of a file."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "link outside":
        (folder / "outside").write_bytes(b"a secret")
        path.symlink_to(folder / "outside")
    elif kind == "link to zeros":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)


def _judged(error: BaseException, changed: Path, inside: Path) -> tuple[str, str]:
    """The fault in how a reader refused, and what it said."""
    said = f"{type(error).__name__}: {error}"[:400]
    # A run may end by what its own files make it compute.
    if not isinstance(error, (ValueError, OSError, FloatingPointError)):
        return "exception", said
    if isinstance(error, UnicodeError):
        return "exception", said
    if str(inside) not in str(error) and changed.name not in str(error):
        return "unnamed", said
    if len(str(error)) > 20_000:
        return "long message", said
    return "", ""


def _peak_from_here() -> int:
    """Bytes in use, from which the peak is counted anew; where it cannot be, the peak so far."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _field("VmHWM")
    return _field("VmRSS")


def _peak() -> int:
    return _field("VmHWM")


def _field(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return 0
