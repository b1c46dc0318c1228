"""Device fixtures. Without a GPU the Triton kernels run in Triton's interpreter, on the CPU."""

import os
import random
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import parse

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel module is first imported
else:
    # Without it cuBLAS warns below use_deterministic_algorithms, and our warnings are errors.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# No cases that are skipped: a quarter of all were, and collecting and reporting them took time.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if HAS_GPU else ["cpu"]


def pytest_addoption(parser):
    """Of tests/support/launch_recorder.py and triton_on_cpu.py."""
    group = parser.getgroup("mim4dd")
    group.addoption(
        "--record-launches", type=Path, metavar="FILE", help="note what Triton compiles"
    )
    group.addoption("--as-h200", action="store_true", help="interpret what an H200 would launch")
    group.addoption(
        "--triton-on-cpu", action="store_true", help="interpret what public ops launch on a GPU"
    )


def pytest_configure(config):
    """Before a test imports the kernels."""
    path = config.getoption("--record-launches", None)
    as_h200 = config.getoption("--as-h200", False)
    on_cpu = config.getoption("--triton-on-cpu", False)
    if (path or as_h200 or on_cpu) and HAS_GPU:
        raise pytest.UsageError(
            "--record-launches, --as-h200 and --triton-on-cpu are for Triton's interpreter"
        )
    if as_h200:
        from launch_recorder import pretend_h200

        pretend_h200()
    if path:
        from launch_recorder import LaunchRecorder

        config.pluginmanager.register(LaunchRecorder(path))
    if on_cpu:
        from triton_on_cpu import OnlyOfDevices, run_public_ops_by_triton

        run_public_ops_by_triton()
        config.pluginmanager.register(OnlyOfDevices())


def pytest_itemcollected(item):
    """Let ``-m gpu`` choose what runs on a GPU where there is one."""
    if "kernel_device" in getattr(item, "fixturenames", ()):
        item.add_marker("gpu")


@pytest.fixture(params=DEVICES)
def device(request):
    """Every device the public API runs on."""
    return request.param


@pytest.fixture
def kernel_device():
    """The device on which the Triton launchers can be called directly."""
    if HAS_GPU:
        return "cuda"
    if version("triton").startswith("3.6.") and parse(version("numpy")) >= parse("2.4"):
        pytest.fail("Triton 3.6 interprets with numpy before 2.4 only: pip install 'numpy<2.4'")
    from quick_interpreter import interpret_quickly

    interpret_quickly()
    return "cpu"


# Rows, columns, and bytes of a wave: one tile in each, and several.
@pytest.fixture(params=[(32, 24, 0), (32, 40, 2**14)], ids=["waves", "tiles"])
def small_tiles(request):
    """The CPU's passes over logits in small sizes: 72 queries are several tiles and waves."""
    from mim4dd import _C

    threads, sizes = torch.get_num_threads(), _C.set_tile_sizes(*request.param)
    torch.set_num_threads(1)  # a wave has a tile for each
    yield
    torch.set_num_threads(threads)
    _C.set_tile_sizes(*sizes)


@pytest.fixture
def narrow(monkeypatch):
    """Networks with the layers of the real ones, of a few thousand parameters."""
    monkeypatch.setattr(
        "mim4dd.distill.networks.alexnet._STAGES",
        ((4, 5, True), (6, 5, True), (8, 3, False), (6, 3, False), (6, 3, True)),
    )
    monkeypatch.setattr(
        "mim4dd.distill.networks.vgg11._STAGES", ((4,), (4,), (6, 6), (8, 8), (8, 8))
    )
    # Not below 8: of fewer channels oneDNN's strided 1 × 1 writes beyond its memory on AVX2.
    monkeypatch.setattr("mim4dd.distill.networks.resnet18._WIDTHS", (8, 10, 12, 14))


@pytest.fixture(autouse=True)
def _fresh_seed_and_poisoned_memory(request):
    """Fresh random inputs for every test and run, and NaN in torch.empty so that gaps show.

    The seed is printed by a failing test; MIM4DD_TEST_SEED repeats it.
    """
    seed = int(os.environ.get("MIM4DD_TEST_SEED") or random.SystemRandom().randrange(2**31))
    print(f"MIM4DD_TEST_SEED={seed}")
    # For GPUs that are not there torch.manual_seed keeps stack traces, longer than a short test.
    (torch.manual_seed if HAS_GPU else torch.default_generator.manual_seed)(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
