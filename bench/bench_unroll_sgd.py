"""unroll_sgd on the field's networks: the graph it replaces, other libraries, compiled adjoints.

Every way gives the gradients of images, step size and θ_0 through one trajectory loss. The floor is
the convolutions alone that this takes where all activations are kept.
"""

from functools import lru_cache, partial

import torch
from contrastive import GPU, THREADS
from providers import is_installed
from trajectories import (
    adjoint,
    by_jvp,
    by_vjp,
    gradients_of,
    graph,
    higher,
    tesla,
    torchopt,
)
from unroll import Case, answers_for, check, convolutions, flop_of, problem_for, relative_errors

from mim4dd import StepGraphs, unroll_sgd

MAIN = Case(10)
TINY = {"width": 4, "threads": THREADS[0]}


def full():
    """The main case on one thread and on all; sweeps of T, B and width; a residual network."""
    yield from (MAIN._replace(threads=threads) for threads in THREADS)
    yield from (Case(num_steps) for num_steps in (5, 40, 100))
    yield from (Case(10, batch) for batch in (50, 100))
    yield Case(5, 250)
    yield from (Case(10, batch, width=64) for batch in (10, 100))
    yield from (Case(5, width=width, network="ResNet-18") for width in (16, 64))


CASES = {
    "tiny": [
        Case(2, network="ConvNet-2", image_size=8, **TINY),
        # Of width 4 oneDNN writes beyond its memory on AVX2, in plain PyTorch's strided 1 × 1 too.
        Case(2, 2, network="ResNet-18", image_size=16, **TINY | {"width": 8}),
    ],
    "short": [MAIN, Case(10, 100), Case(40)],
    "full": list(full()),
}
if GPU:
    CASES["short"] = [MAIN, Case(10, 100)]


def ours(problem, model, **options):
    inputs = (problem.theta_0, problem.images, problem.labels, problem.batches)
    theta_T = unroll_sgd(model, *inputs, lr=problem.lr, **options)
    return gradients_of(problem, theta_T, problem.theta_0)


def captured(problem, model):
    return ours(problem, model, step_graphs=step_graphs_of(model))


@lru_cache(maxsize=1)
def step_graphs_of(model):
    """Captured once a case, as an outer loop does once for all its iterations."""
    return StepGraphs()


OURS = {"mim4dd": ours, "mim4dd, kept": partial(ours, memory_budget=8 * 2**30)}
if GPU:
    OURS["mim4dd, captured"] = captured
OTHERS = {
    "graph": graph,
    "graph, channels-last": partial(graph, memory_format=torch.channels_last),
    "tesla": tesla,
    "vjp": partial(adjoint, step_back=by_vjp),
    "jvp": partial(adjoint, step_back=by_jvp),
    "torch.compile": partial(adjoint, step_back=by_vjp, compiled=True),
    "torch.compile, jvp": partial(adjoint, step_back=by_jvp, compiled=True),
}
OTHERS |= {
    way.__name__: way for way in (higher, torchopt) if is_installed(way.__name__, way.__name__)
}
PROVIDERS = dict.fromkeys([*OURS, *OTHERS, "convolutions"])


def left_out(case, provider):
    if not provider.startswith("torch.compile"):
        return None
    if case in CASES["tiny"]:
        return "compiling takes a minute"
    if case.network != MAIN.network:
        return "compiling takes several minutes"
    if case not in CASES["short"] and case._replace(threads=MAIN.threads) != MAIN:
        return "compiling takes a minute, and the step is timed at T=10"
    return None


# Not in TF32, cuDNN's default: errors would say how coarse that is, and not which way is exact.
@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
def bench_unroll_sgd(case, provider, device, measure):
    anywhere = case._replace(threads=0)
    problem, model = problem_for(anywhere, device)
    info = {**case._asdict(), "flop": flop_of(problem)}
    if provider == "convolutions":
        measure(convolutions(problem), lambda _: None, **info)
        return
    way = partial(OURS[provider], model=model) if provider in OURS else OTHERS[provider]

    def checked(actual):
        plain, exact = answers_for(anywhere, device, moves=provider != "tesla")
        check(case, actual, plain, exact)
        figures = {"errors": relative_errors(actual, exact)}
        if provider == "tesla":
            _, true = answers_for(anywhere, device, moves=True)
            figures["bias"] = relative_errors(actual, true)
        return figures

    # What graphs hold between calls is part of what they take: the peak is that of a capture.
    anew = partial(ours, problem, model, step_graphs=StepGraphs())
    cold = anew if provider == "mim4dd, captured" else None
    measure(lambda: way(problem), checked, cold, **info)
