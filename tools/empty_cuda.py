"""Empty CUDA libraries, so that a CUDA build of torch runs where there is no GPU.

The index serves torch for aarch64 with CUDA only, whose libraries are 2.5 GB more. Every function
of them returns 0, and cudaGetDeviceCount that there is no device.
"""

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
CUDA = re.compile(r"_*(cu|nv|nccl|CU)")
DRIVER = "libcuda.so.1"  # torch loads it only where there is a device
# By library, by version, the names of its functions.
Functions = dict[str, dict[str, set[str]]]


def fill_in(torch_libraries: Path, system: list[Path]) -> None:
    """Put the libraries that torch needs, and neither it nor the ``system`` has, beside its own."""
    libraries = sorted(torch_libraries.glob("*.so*"))
    there = {path.name for folder in (torch_libraries, *system) for path in folder.rglob("*.so*")}
    needed = {name for path in libraries for name in _needed(path)}
    for name, by_version in _functions(libraries, needed - there - {DRIVER}).items():
        _link(torch_libraries / name, by_version)


def _functions(libraries: list[Path], missing: set[str]) -> Functions:
    found: Functions = {name: defaultdict(set) for name in missing}
    # The first one that torch loads.
    runtime = next((name for name in missing if name.startswith("libcudart.so")), None)
    library_of = {version: name for path in libraries for version, name in _versions(path)}
    provided = {symbol.split("@")[0] for path in libraries for symbol in _symbols(path, "defined")}
    for path in libraries:
        for symbol in _symbols(path, "undefined"):
            function, _, version = symbol.partition("@")
            if version:
                library = library_of[version.lstrip("@")]
                if library in missing:
                    found[library][version.lstrip("@")].add(function)
            elif runtime and function not in provided and CUDA.match(function):
                # Of which library it is, nothing tells; the loader looks in all of them.
                found[runtime][""].add(function)
    return found


def _link(library: Path, by_version: dict[str, set[str]]) -> None:
    functions = sorted(set().union(*by_version.values()))
    versions = {version: names for version, names in by_version.items() if version}
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder, "empty.c"), Path(folder, "empty.map")
        results = {name: NO_DEVICE if name == "cudaGetDeviceCount" else 0 for name in functions}
        source.write_text(
            "\n".join(f"long {name}(void) {{ return {code}; }}" for name, code in results.items())
        )
        script.write_text(
            "\n".join(
                f"{version} {{ global: {' '.join(f'{name};' for name in sorted(names))} }};"
                for version, names in versions.items()
            )
        )
        command = ["aarch64-linux-gnu-gcc", "-w", "-fno-builtin", "-shared", "-fPIC"]
        command += [f"-Wl,-soname={library.name}", "-o", str(library), str(source)]
        if versions:
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def _needed(path: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", _output("readelf", "--dynamic", str(path)))


def _symbols(path: Path, which: str) -> list[str]:
    """Names as in ``memcpy@GLIBC_2.17``; weak ones may stay undefined."""
    lines = _output("aarch64-linux-gnu-nm", "--dynamic", f"--{which}-only", str(path)).splitlines()
    return [line.split()[-1] for line in lines if line.split()[-2] != "w"]


def _versions(path: Path) -> list[tuple[str, str]]:
    """Which library each version of a symbol is looked for in, as (version, library)."""
    found, library = [], ""
    for line in _output("readelf", "--version-info", "--wide", str(path)).splitlines():
        if match := re.search(r"File: (\S+)", line):
            library = match[1]
        elif library and (match := re.search(r"Name: (\S+)", line)):
            found.append((match[1], library))
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
