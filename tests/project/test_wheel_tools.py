"""Which wheel stands for a build of the sources, and what the checks of a wheel cover."""

import platform
import re
import shutil
from zipfile import ZipFile

import find_wheel
import pytest
from finish_wheel import release
from places import ROOT
from wheel_sources import NOTE, source_digest, source_version, sources

import mim4dd

HERE = f"linux_{platform.machine()}"


def make_wheel(folder, platforms=HERE, digest=None, binaries=("_C.abi3.so",)):
    """A wheel as finish_wheel.py leaves it, with nothing in its binaries."""
    path = folder / f"mim4dd-{source_version()}-cp310-abi3-{platforms}.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr(f"mim4dd-{source_version()}.dist-info/{NOTE}", digest or source_digest())
        for name in binaries:
            archive.writestr(f"mim4dd/{name}", "")
    return path


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setenv("MIM4DD_CUDA", "0")


@pytest.mark.parametrize(
    "platforms", [HERE, f"manylinux_2_5_{platform.machine()}.{HERE}", f"other.{HERE}"]
)
@pytest.mark.usefixtures("without_gpu")
def test_a_wheel_of_these_sources_fits(platforms, tmp_path):
    assert find_wheel.misfit(make_wheel(tmp_path, platforms)) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"digest": "0" * 64}, "was made from other sources"),
        ({"platforms": f"manylinux_9_99_{platform.machine()}"}, "is for another machine"),
        ({"platforms": "manylinux_2_17_s390x"}, "is for another machine"),
        ({"platforms": f"musllinux_1_2_{platform.machine()}"}, "is for another machine"),
    ],
)
@pytest.mark.usefixtures("without_gpu")
def test_another_wheel_is_left_with_its_reason(options, reason, tmp_path):
    assert reason in find_wheel.misfit(make_wheel(tmp_path, **options))


@pytest.mark.usefixtures("without_gpu")
def test_a_wheel_cut_off_is_left(tmp_path):
    wheel = make_wheel(tmp_path)
    wheel.write_bytes(wheel.read_bytes()[:-30])
    assert find_wheel.misfit(wheel) == "is not a whole wheel"


def test_a_wheel_without_the_cuda_half_is_left_where_that_half_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("MIM4DD_CUDA", "1")
    assert "has no CUDA half" in find_wheel.misfit(make_wheel(tmp_path))
    both = make_wheel(tmp_path, binaries=("_C.abi3.so", "_C_cuda.abi3.so"))
    assert find_wheel.misfit(both) is None


def test_every_source_counts_and_nothing_that_is_made(tmp_path):
    for name in ("csrc", "kernels", "mim4dd"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "kernels")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, tmp_path)
    digest = source_digest(tmp_path)
    (tmp_path / "mim4dd" / "_C.abi3.so").write_bytes(b"made")
    (tmp_path / "kernels" / "__pycache__").mkdir()
    (tmp_path / "kernels" / "__pycache__" / "rows.pyc").write_bytes(b"made")
    assert source_digest(tmp_path) == digest
    names = {path.relative_to(tmp_path).as_posix() for path in sources(tmp_path)}
    assert {"setup.py", "csrc/module.cpp", "csrc/dispatch.h", "kernels/contrastive.py"} <= names
    assert {"mim4dd/distill/config/presets.json", "mim4dd/py.typed"} <= names
    for path in (tmp_path / "csrc" / "dispatch.h", tmp_path / "mim4dd" / "new.py"):
        path.open("a").write("# more\n")
        assert source_digest(tmp_path) != digest
        digest = source_digest(tmp_path)


def test_the_version_is_read_without_importing():
    assert source_version() == mim4dd.__version__


def test_the_matrix_has_every_python_and_the_oldest_torch():
    project = (ROOT / "pyproject.toml").read_text()
    pythons = re.findall(r"Python :: (3\.\d+)", project)
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', project)
    makefile = (ROOT / "Makefile").read_text()
    pairs = re.search(r"^WHEEL_MATRIX := (.+)$", makefile, re.MULTILINE)[1].split()
    assert {pair.split(":")[0] for pair in pairs} == set(pythons)
    torches = {pair.split(":")[1] for pair in pairs}
    assert "newest" in torches
    assert re.search(r"^TORCH \?= torch==(.+)$", makefile, re.MULTILINE)[1] in torches
    assert min(map(release, torches - {"newest"})) == release(oldest)
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r'"(3\.\d+:[\w.]+)"', workflow) == pairs
