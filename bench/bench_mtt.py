"""An outer iteration of MTT at its published settings for CIFAR-10, beside MTT's own loop.

ConvNet-3 of width 128, images of 32×32 pixels, augmentation by DSA as published; both sides take
the same draws. An iteration goes from the synthetic set to the gradients of images and step size.
"""

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from contrastive import THREADS, threads_of
from students import ConvNet
from torch import Tensor
from trajectories import as_function

from mim4dd import flatten_parameters
from mim4dd.distill import networks
from mim4dd.distill.config.presets import preset
from mim4dd.distill.data import ImageData, from_tensors
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings

# Where rounding puts an activation on the other side of a ReLU's kink, gradients move by chance
# (bench/unroll.py), here through up to 50 steps; a wrong formula moves them by half their size.
_KINK_ERROR = 0.1


class Case(NamedTuple):
    ipc: int
    width: int = 128
    image_size: int = 32
    depth: int = 3
    syn_steps: int | None = None  # by default as published for ipc
    threads: int = THREADS[-1]

    def __str__(self) -> str:
        steps = published(self).syn_steps
        name = f"ipc={self.ipc} T={steps} ConvNet-{self.depth} width={self.width}"
        return " ".join([name, *threads_of(self)])


CASES = {
    "tiny": [Case(1, width=4, image_size=8, depth=2, syn_steps=3, threads=THREADS[0])],
    "short": [Case(1)],
    "full": [Case(1), Case(10)],
}


class Experts:
    """One expert that walks as far in two epochs as a real one in a few steps."""

    num_epochs = 50

    def __init__(self, theta: Tensor) -> None:
        self.theta = theta

    def require_parameters_of(self, network: torch.nn.Module) -> None:
        """They are of any."""

    def __len__(self) -> int:
        return 1

    def segment(self, expert: int, start_epoch: int, epochs: int) -> tuple[Tensor, Tensor]:
        """The same start for all, and a target that the start epoch tells."""
        noise = torch.randn(self.theta.shape, generator=torch.Generator().manual_seed(start_epoch))
        return self.theta, self.theta + 1e-3 * noise.to(self.theta)


class Task(NamedTuple):
    method: MTT
    student: torch.nn.Module  # in plain PyTorch, for MTT's own loop
    data: ImageData
    image_syn: Tensor
    label_syn: Tensor
    syn_lr: Tensor


def published(case: Case) -> MTTSettings:
    options = preset("cifar10", "mtt", case.ipc)
    return MTTSettings(
        syn_steps=case.syn_steps or options["syn_steps"],
        expert_epochs=options["expert_epochs"],
        max_start_epoch=options["max_start_epoch"],
        dsa_strategy=options["dsa_strategy"],
    )


@lru_cache(maxsize=1)
def task_of(case: Case, device: str) -> Task:
    torch.manual_seed(0)
    size = case.image_size
    data = from_tensors(torch.rand(40, 3, size, size), torch.arange(40) % 10).to(device)
    student = ConvNet(case.width, size, case.depth).to(device)
    network = networks.ConvNet(10, width=case.width, depth=case.depth, image_size=size).to(device)
    labels = torch.arange(10, device=device).repeat_interleave(case.ipc)
    return Task(
        MTT(network, Experts(flatten_parameters(student)), published(case)),
        student,
        data,
        torch.randn(len(labels), 3, size, size, device=device, requires_grad=True),
        labels,
        torch.tensor(0.01, device=device, requires_grad=True),
    )


def draws_of(task: Task) -> RealData:
    return RealData(task.data, torch.Generator().manual_seed(0))


def ours(task: Task) -> tuple[Tensor, ...]:
    outcome = task.method.loss(task.image_syn, task.label_syn, task.syn_lr, draws_of(task))
    return torch.autograd.grad(outcome.value, (task.image_syn, task.syn_lr))


def ours_recomputed(task: Task) -> tuple[Tensor, ...]:
    """Without the activations that the default of memory_budget keeps."""
    settings = replace(task.method.settings, memory_budget=0)
    return ours(task._replace(method=MTT(task.method.network, task.method.experts, settings)))


def own_loop(task: Task) -> tuple[Tensor, ...]:
    """MTT's: one graph of all steps, of one flat vector, and one backward through it."""
    method, real, settings = task.method, draws_of(task), task.method.settings
    expert, start = real.integer(1), real.integer(settings.max_start_epoch)
    theta_0, target = method.experts.segment(expert, start, settings.expert_epochs)
    batches = settings.schedule(len(task.image_syn), settings.syn_steps, real.generator)
    stream = torch.Generator().manual_seed(real.seed())
    seeds = torch.randint(2**63 - 1, (settings.syn_steps,), generator=stream).tolist()
    call, theta = as_function(task.student), theta_0.clone().requires_grad_()
    for rows, seed in zip(batches.to(task.label_syn.device), seeds, strict=True):
        generator = torch.Generator(task.image_syn.device).manual_seed(seed)
        images = method.augment(task.image_syn[rows], generator)
        value = F.cross_entropy(call(theta, images), task.label_syn[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        theta = theta - task.syn_lr * gradient
    loss = F.mse_loss(theta, target, reduction="sum") / F.mse_loss(theta_0, target, reduction="sum")
    return torch.autograd.grad(loss, (task.image_syn, task.syn_lr))


PROVIDERS = {
    "mim4dd": ours,
    "mim4dd, memory_budget=0": ours_recomputed,
    "MTT's own loop": own_loop,
}


@lru_cache(maxsize=1)
def answer_of(case: Case, device: str) -> tuple[Tensor, ...]:
    return ours(task_of(case, device))


def bench_mtt(case, provider, device, measure):
    task = task_of(case, device)

    def check(actual):
        for part, expected in zip(actual, answer_of(case, device), strict=True):
            assert (part - expected).norm() <= _KINK_ERROR * expected.norm()

    measure(lambda: PROVIDERS[provider](task), check, **case._asdict())
