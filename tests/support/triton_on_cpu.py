"""Public ops of CPU tensors by a GPU's kernels: ``pytest --triton-on-cpu`` in tests/conftest.py.

The tests that take a device then say whether the API and the Triton kernels fit together, without a
GPU.
"""

import warnings

import torch
from launch_recorder import kernel_modules
from quick_interpreter import interpret_quickly

from mim4dd._library import LIB, triton_launcher

NAMESPACE = "mim4dd::"


def run_public_ops_by_triton() -> None:
    """Give CPU tensors of every op that has a launcher in mim4dd.kernels to it."""
    interpret_quickly()
    rooms = [module.__name__.split(".")[-1] for module in kernel_modules()]
    ops = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in (name.removeprefix(NAMESPACE) for name in ops if name.startswith(NAMESPACE)):
            for room in rooms:
                if op == room or op.startswith(f"{room}_bwd"):
                    LIB.impl(op, triton_launcher(op, room), "CPU", allow_override=True)


class OnlyOfDevices:
    """Leaves the tests that a GPU runs too: others are of the CPU's kernels."""

    def pytest_collection_modifyitems(self, config, items):
        devices = {"device", "kernel_device"}
        chosen = [item for item in items if devices & set(getattr(item, "fixturenames", ()))]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
