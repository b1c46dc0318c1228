"""Build the C++ half with sanitizers, and run the op tests.

    python tools/sanitize.py [--threads] [--folder DIR] [--cpu NAME …] [pytest arguments]

The sanitizers are AddressSanitizer and UndefinedBehaviorSanitizer; with ``--threads``, which wants
several of them, ThreadSanitizer: do two threads touch a number that one of them writes?

A copy of the sources is built in a folder of its own, by setup.py with other flags, so that the
usual library stays as it is. The folder is kept; the next time only what changed is compiled. The
first fault ends the process with its stack.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from check_aarch64 import copy_sources

ROOT = Path(__file__).resolve().parent.parent
# -O1 keeps stacks readable. The warnings are those that would be noise to whoever builds by another
# compiler: g++ has none.
FLAGS = "-fno-omit-frame-pointer -g1 -O1 -UNDEBUG -Wconversion -Wshadow"
# Of torch's classes there is no type information to check vptr by.
ADDRESSES = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined"
THREADS = "-fsanitize=thread"
LIBRARIES = {ADDRESSES: ("libasan.so", "libubsan.so"), THREADS: ("libtsan.so",)}
OPTIONS = {
    # Python and torch keep what they allocate; the soak judges leaks. An allocation that fails is
    # for the caller to handle, as it is without a sanitizer.
    # Fresh memory is full of NaN, so that a number that was not written shows in a result.
    "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"
    ":max_malloc_fill_size=1073741824:malloc_fill_byte=255",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Of races in code that is not ours, built without the sanitizer, it knows but half.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1",
    "OMP_WAIT_POLICY": "passive",
}


def runtimes(compiler: str, sanitizers: str) -> str:
    """The sanitizers' libraries, which must be loaded before Python's own.

    libstdc++ comes with them: AddressSanitizer looks for the function that throws as it starts.
    """
    found = []
    for name in (*LIBRARIES[sanitizers], "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(f"sanitize.py needs g++ with its sanitizers, {name} is not there")
        found.append(str(Path(path).resolve()))
    return " ".join(found)


def build(tree: Path, sanitizers: str) -> None:
    """Compile the copied tree; raises SystemExit with the compiler's status."""
    flags = dict.fromkeys(("CFLAGS", "CXXFLAGS", "LDFLAGS"), f"{FLAGS} {sanitizers}")
    status = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=os.environ | flags | {"MIM4DD_CUDA": "0"},
    ).returncode
    if status:
        raise SystemExit(status)


def run_tests(tree: Path, sanitizers: str, arguments: list[str], cpu: str | None) -> int:
    """Exit status of pytest, under the sanitizers, by one instruction set."""
    libraries = runtimes(os.environ.get("CXX", "g++"), sanitizers)
    preload = {"LD_PRELOAD": libraries, "PYTHONPATH": str(tree)}
    chosen = {} if cpu is None else {"MIM4DD_CPU": cpu}
    # What a sanitizer says before it ends the process would be lost with what pytest captures.
    options = ["-p", "no:cacheprovider", "--capture=sys"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    return subprocess.run(command, cwd=tree, env=os.environ | OPTIONS | preload | chosen).returncode


def main() -> None:
    """Copy, build, test by each instruction set that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", action="store_true", help="ThreadSanitizer")
    parser.add_argument("--folder", type=Path, help="default: build/sanitize or build/threads")
    parser.add_argument("--cpu", nargs="*", default=[None], help="default: the widest of this CPU")
    options, pytest = parser.parse_known_args()
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise SystemExit("sanitize.py needs g++: apt-get install g++")
    sanitizers = THREADS if options.threads else ADDRESSES
    name = "threads" if options.threads else "sanitize"
    tree = (options.folder or ROOT / "build" / name).resolve()
    tree.mkdir(parents=True, exist_ok=True)
    copy_sources(tree)
    build(tree, sanitizers)
    tests = pytest or ["@tests/ops.txt"]
    statuses = [run_tests(tree, sanitizers, tests, cpu) for cpu in options.cpu]
    raise SystemExit(max(statuses))


if __name__ == "__main__":
    main()
