"""Every public name of every adapter: it gives what the peer's gives, or it is not there."""

import importlib
import pkgutil
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from adapters.test_adapters import assert_same, rows
from pages.test_port import NaiveReparamModule
from peers import adapted_peers

import mim4dd
from mim4dd import adapters

MODULES = {
    module.name: importlib.import_module(f"mim4dd.adapters.{module.name}")
    for module in pkgutil.iter_modules(adapters.__path__)
    if not module.name.startswith("_")
}


def public_names(module):
    """What can be imported from it, but for modules of other libraries, which are no one's own."""
    return [
        name
        for name in dir(module)
        if not name.startswith("_")
        and not (
            isinstance(value := getattr(module, name), ModuleType)
            and not value.__name__.startswith("mim4dd")
        )
    ]


PEERS = adapted_peers()
# There, Inf-CL's kernels need a GPU, and MTT's module is in no package: what they compute.
THEIRS = PEERS | {
    "inf_cl": SimpleNamespace(
        **dict.fromkeys(
            ("cal_inf_loss", "cal_ring_loss"),
            lambda q, k: F.cross_entropy(q @ k.T, torch.arange(6)),
        )
    ),
    "reparam_module": SimpleNamespace(ReparamModule=NaiveReparamModule),
    "torch_optim": torch.optim,
}
# What a peer does not have, and so cannot be taken for the peer's.
ADDED = {("torch_optim", "SGDOptions"), ("torch_optim", "sgd_options")}


def of_two_sides(function, first, second, labels):
    return function(first, second)


def of_module(module, first, second, labels):
    return module()(first, second)


def of_clip(module, first, second, labels):
    return module()(first, second, 10.0)


def of_sigmoid(module, first, second, labels):
    return module()(first, second, 10.0, -3.0)


def of_labels(module, first, second, labels):
    return module(temperature=0.2)(first, labels, None, second, labels.flip(0))


def of_memory(module, first, second, labels):
    losses = sys.modules[module.__module__.rpartition(".")[0]]
    memory = module(losses.NTXentLoss(temperature=0.2), 8, 9)
    return memory(first, labels) + memory(second, labels)


def of_wrapper(module, first, second, labels):
    library = module.__module__.partition(".pytorch_metric_learning")[0]
    losses = MODULES if library == "mim4dd.adapters" else PEERS
    loss = module(losses["pytorch_metric_learning"].NTXentLoss())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = loss(first, labels, None, second, labels.flip(0))
    assert "DistributedLossWrapper" in str(caught[-1].message)
    return value


def of_flat_parameters(module, first, second, labels):
    linear = torch.nn.Linear(8, 5).double()
    return module(linear)(first, flat_param=second.flatten()[:45]).sin().sum()


CALLS = {
    ("inf_cl", "cal_inf_loss"): of_two_sides,
    ("inf_cl", "cal_ring_loss"): of_two_sides,
    ("info_nce_pytorch", "InfoNCE"): of_module,
    ("info_nce_pytorch", "info_nce"): of_two_sides,
    ("lightly", "NTXentLoss"): of_module,
    ("open_clip", "ClipLoss"): of_clip,
    ("open_clip", "SigLipLoss"): of_sigmoid,
    ("pytorch_metric_learning", "CrossBatchMemory"): of_memory,
    ("pytorch_metric_learning", "DistributedLossWrapper"): of_wrapper,
    ("pytorch_metric_learning", "NTXentLoss"): of_labels,
    ("pytorch_metric_learning", "SupConLoss"): of_labels,
    ("reparam_module", "ReparamModule"): of_flat_parameters,
}


@pytest.mark.parametrize("library", MODULES)
def test_nothing_else_can_be_imported(library):
    """No helper, which under a peer's name would be taken for the peer's own."""
    module = MODULES[library]
    assert public_names(module) == sorted(module.__all__)
    for name in module.__all__:
        assert ((library, name) in ADDED) is not hasattr(THEIRS[library], name)


def test_the_package_has_its_modules_alone():
    assert public_names(adapters) == sorted(MODULES) == sorted(adapters.__all__)


@pytest.mark.parametrize(
    ("library", "name"),
    [
        (library, name)
        for library, module in MODULES.items()
        for name in public_names(module)
        if (library, name) not in ADDED
    ],
)
def test_what_is_there_is_as_the_peers(library, name):
    """Values and gradients, on rows of any length: where one is normalised, so is the other."""
    call = CALLS[library, name]
    inputs = [rows(6, 8), 3 * rows(6, 8)]
    labels = torch.randint(3, (6,))
    ours, theirs = (
        call(getattr(side[library], name), *inputs, labels) for side in (MODULES, THEIRS)
    )
    assert_same(ours, theirs, inputs)


def test_info_nce_of_the_issue():
    """mim4dd's own op would be 2148 there."""
    torch.manual_seed(0)
    query, key = 30 * torch.randn(64, 32), 30 * torch.randn(64, 32)
    own = mim4dd.info_nce(query, key)
    ours = MODULES["info_nce_pytorch"].info_nce(query, key)
    torch.testing.assert_close(ours, PEERS["info_nce_pytorch"].info_nce(query, key))
    assert own > 100 * ours
