"""docs/port.md: both sides of its diff give one loss and one gradient, and every block runs."""

import re
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from places import ROOT
from torch import nn
from torch.func import functional_call

import mim4dd
from mim4dd import reference
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.adapters.reparam_module import ReparamModule
from mim4dd.distill.networks import ConvNet

RELATIVE_ERROR = 1e-9
PAGE = (ROOT / "docs" / "port.md").read_text()
(DIFF,) = re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = {
    re.findall(r"^## (.*)$", PAGE[: block.start()], re.MULTILINE)[-1] + f" {number}": block.group(1)
    for number, block in enumerate(
        re.finditer(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    )
}


def side(sign):
    """The program before ("-") or after ("+") the diff."""
    return "".join(line[1:] + "\n" for line in DIFF.splitlines() if line[:1] in (sign, " "))


class NaiveReparamModule(nn.Module):
    """What matters of MTT's, written anew."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images, flat_param):
        named = dict(self.module.named_parameters())
        parts = flat_param.split([each.numel() for each in named.values()])
        state = {
            name: part.view_as(each)
            for (name, each), part in zip(named.items(), parts, strict=True)
        }
        return functional_call(self.module, state, (images,))


def differentiable_augment(images, strategy, param):
    """Draws from torch's global state, as DiffAugment of those repositories does."""
    assert (strategy, param) == ("color_crop", "parameters")
    return images + torch.rand(images.shape[0], 1, 1, 1, dtype=images.dtype).to(images)


@pytest.fixture
def names(device):
    """What the page takes for granted."""
    network = ConvNet(3, channels=1, width=6, depth=2, image_size=8).to(device, torch.float64)
    start = mim4dd.flatten_parameters(network)
    options = {"dtype": torch.float64, "device": device}
    return {
        "torch": torch,
        "F": F,
        "mim4dd": mim4dd,
        "network": network,
        "student": ReparamModule(network),
        "start": start,
        "target": start + 0.1 * torch.randn_like(start),
        "start_2": start + 0.1 * torch.randn_like(start),
        "target_2": start + 0.1 * torch.randn_like(start),
        "image_syn": torch.randn(6, 1, 8, 8, **options).requires_grad_(),
        "label_syn": torch.arange(6, device=device) % 3,
        "syn_lr": torch.tensor(0.05, **options).requires_grad_(),
        "batches": torch.stack([torch.randperm(6, device=device)[:4] for _ in range(5)]),
        "num_classes": 3,
        "syn_steps": 5,
        "batch_syn": 3,
        "iteration": 7,
        "DiffAugment": differentiable_augment,
        "dsa_param": "parameters",
    }


def naive(names, **changes):
    """θ_T by the graph of all steps."""
    call = FunctionalModel(names["network"])
    keys = ("start", "image_syn", "label_syn", "batches", "syn_lr")
    arguments = [changes.pop(key, names[key]) for key in keys]
    arguments[0] = arguments[0].clone().requires_grad_()
    return reference.unroll_sgd(call, *arguments, **changes)


def assert_same(ours, theirs, leaves):
    """Losses and gradients, by norm."""
    assert (ours - theirs).abs() <= RELATIVE_ERROR * theirs.abs()
    for mine, exact in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        assert exact.norm() > 0
        assert (mine - exact).norm() <= RELATIVE_ERROR * exact.norm()


def loss(names, theta):
    return mim4dd.trajectory_loss(theta, names["start"], names["target"])


def run(title, names):
    exec(compile(BLOCKS[title], f"docs/port.md, {title}", "exec"), names)


def test_both_sides_of_the_diff(names, monkeypatch):
    stand_in = ModuleType("reparam_module")
    stand_in.ReparamModule = NaiveReparamModule
    monkeypatch.setitem(sys.modules, "reparam_module", stand_in)
    arguments = [
        names[key] for key in ("network", "image_syn", "label_syn", "syn_lr", "start", "target")
    ]
    losses = []
    for sign in "-+":
        program = {"torch": torch, "F": F}
        exec(compile(side(sign), f"docs/port.md, {sign}", "exec"), program)
        torch.manual_seed(3)
        losses.append(program["matching_loss"](*arguments, syn_steps=9, batch_syn=2))
    assert_same(losses[1], losses[0], [names["image_syn"], names["syn_lr"]])


def test_every_block_is_tested():
    assert list(BLOCKS) == [
        "Augmentation 0",
        "Augmentation 1",
        "A learned step size 2",
        "Learned labels 3",
        "TESLA, truncation 4",
        "Several trajectories in one call 5",
        "An optimiser with parameter groups 6",
        "A canvas of textures 7",
    ]


def step_generators(names, device):
    seeds = torch.Generator().manual_seed(names["iteration"])
    return [
        torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, (), generator=seeds)))
        for _ in names["batches"]
    ]


@pytest.mark.parametrize("title", ["Augmentation 0", "Augmentation 1"])
def test_augmentation(title, names, device):
    before = torch.get_rng_state()
    run(title, names)
    actual = loss(names, names["theta"])
    leaves = [names["image_syn"], names["syn_lr"]]
    assert torch.equal(torch.get_rng_state(), before)
    generators = step_generators(names, device)
    augment = names["dsa"] if title == "Augmentation 0" else names["augment"]
    expected = naive(names, augment=lambda images, step: augment(images, generators[step]))
    assert_same(actual, loss(names, expected), leaves)
    plain = naive(names)
    assert (expected - plain).norm() > 1e-3 * (plain - names["start"]).norm()


def test_a_learned_step_size(names):
    run("A learned step size 2", names)
    assert 0 < names["step_size"]() != 0.01
    lr = torch.tensor(0.01, dtype=torch.float64).to(names["start"]).requires_grad_()
    (slope,) = torch.autograd.grad(loss(names, naive(names, syn_lr=lr)), lr)
    moved = names["step_size"]() - 0.01
    assert moved.item() == pytest.approx(-1e-5 * slope.item(), rel=0.05)


def test_learned_labels(names):
    run("Learned labels 3", names)
    gradient = names["label_logits"].grad
    logits = names["label_logits"].detach().requires_grad_()

    def soft_cross_entropy(output, logits):
        return -(logits.softmax(1) * output.log_softmax(1)).sum(1).mean()

    expected = loss(names, naive(names, label_syn=logits, loss=soft_cross_entropy))
    (exact,) = torch.autograd.grad(expected, logits)
    assert exact.norm() > 0
    assert (gradient - exact).norm() <= RELATIVE_ERROR * exact.norm()


def test_tesla_and_truncation(names):
    run("TESLA, truncation 4", names)
    head = naive(names, batches=names["batches"][:-2]).detach()
    expected = naive(names, start=head, batches=names["batches"][-2:])
    leaves = [names["image_syn"], names["syn_lr"]]
    assert_same(loss(names, names["theta"]), loss(names, expected), leaves)


def test_several_trajectories(names):
    run("Several trajectories in one call 5", names)
    expected = sum(
        mim4dd.trajectory_loss(naive(names, start=start), start, target)
        for start, target in zip(names["starts"], names["targets"], strict=True)
    )
    assert_same(names["loss"], expected / 2, [names["image_syn"], names["syn_lr"]])


def test_an_optimiser_with_parameter_groups(names):
    run("An optimiser with parameter groups 6", names)
    decay = torch.cat(
        [
            torch.full_like(parameter, 5e-4 if parameter.dim() > 1 else 0.0).flatten()
            for parameter in names["network"].parameters()
        ]
    ).detach()
    lr = torch.tensor(0.01, dtype=torch.float64).to(names["start"])
    expected = naive(names, syn_lr=lr, momentum=0.9, weight_decay=decay)
    assert_same(loss(names, names["theta"]), loss(names, expected), [names["image_syn"]])


def test_a_canvas_of_textures(names, device):
    names |= {
        "canvas_syn": torch.randn(
            6, 1, 16, 16, dtype=torch.float64, device=device
        ).requires_grad_(),
        "canvas_samples": 2,
        "im_size": 8,
    }
    run("A canvas of textures 7", names)
    generators = step_generators(names, device)
    expected = naive(
        names | {"image_syn": names["canvas_syn"]},
        augment=lambda canvases, step: names["crops"](canvases, generators[step]),
    )
    leaves = [names["canvas_syn"], names["syn_lr"]]
    assert_same(loss(names, names["theta"]), loss(names, expected), leaves)
