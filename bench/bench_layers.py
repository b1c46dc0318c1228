"""Distillation's shapes: several layers of few queries in one call, against a call for each.

Features are normalised by the loss. The keys come from real images, so only the queries have
gradients. `single` cases have one positive per query, on the diagonal.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from contrastive import FLOOR, THREADS, check_answer, gemms, threads_of
from providers import LABELLED, SINGLE, TEMPERATURE, Provider, compiled, installed

from mim4dd import sup_con


class Case(NamedTuple):
    num_queries: int
    num_keys: int
    dimensions: tuple[int, ...]
    single: bool = False
    threads: int = THREADS[-1]

    def __str__(self) -> str:
        sizes = dict.fromkeys(self.dimensions)
        parts = [f"L={len(self.dimensions)} N={self.num_queries} M={self.num_keys}"]
        parts += ["D=" + ",".join(map(str, self.dimensions if len(sizes) > 1 else sizes))]
        parts += ["one positive" if self.single else "10 classes"]
        return " ".join(parts + threads_of(self))


SHAPES = [
    *((num_queries, 256, (d,) * 4) for d in (128, 512, 2048) for num_queries in (10, 50, 100)),
    (50, 256, (64, 128, 512, 2048)),
    (100, 100, (512,) * 4, True),
]
CASES = {
    "tiny": [Case(5, 16, (8, 16)), Case(5, 5, (8, 16), True)],
    "full": [Case(*shape)._replace(threads=threads) for shape in SHAPES for threads in THREADS],
    "short": [Case(*SHAPES[4]), Case(*SHAPES[-2])],
}


def in_one_call(query, key, *labels, **options):
    return sup_con(query, key, *labels, temperature=TEMPERATURE, normalize=True, **options).sum()


def for_each(loss, query, key, *labels):
    return sum(loss(q, k, *labels) for q, k in zip(query, key, strict=True))


def plain(query, key, *labels):
    return LABELLED["torch"].loss(F.normalize(query, dim=1), F.normalize(key, dim=1), *labels)


PROVIDERS = {
    "mim4dd": Provider(in_one_call, package="mim4dd"),
    "torch": Provider(partial(for_each, plain)),
    "torch.compile": Provider(compiled(partial(for_each, plain))),  # all layers in one graph
    "torch.compile, each": Provider(partial(for_each, compiled(plain))),
} | {
    name: provider._replace(loss=partial(for_each, provider.loss))
    for name, provider in installed(LABELLED | SINGLE).items()
    if name in ("info-nce-pytorch", "pytorch-metric-learning")
}
PROVIDERS |= FLOOR


def left_out(case, provider):
    only_single = provider == "info-nce-pytorch" and not case.single
    return "has one positive per query, on the diagonal" if only_single else None


def values(loss, query, *inputs, **options):
    value = loss(query, *inputs, **options)
    return (value.detach(), *torch.autograd.grad(value, query))


def bench_layers(case, provider, device, measure):
    draws = torch.Generator(device).manual_seed(0)
    query, key = (
        [torch.randn(count, d, device=device, generator=draws) for d in case.dimensions]
        for count in (case.num_queries, case.num_keys)
    )
    num_classes = case.num_queries if case.single else min(10, case.num_queries)
    labels = [torch.arange(len(side[0]), device=device) % num_classes for side in (query, key)]
    query = [layer.requires_grad_() for layer in query]
    info = {
        **case._asdict(),
        "flop": 4 * case.num_queries * case.num_keys * sum(case.dimensions),
    }
    if provider == "gemms":
        measure(gemms(query, key, 2), lambda _: None, **info)
        return

    def check(actual):
        answers = []
        for dtype in (torch.float32, torch.float64):
            sides = ([layer.detach().to(dtype) for layer in side] for side in (query, key))
            leaves, constants = sides
            leaves = [leaf.requires_grad_() for leaf in leaves]
            answers.append(values(in_one_call, leaves, constants, *labels, backend="reference"))
        check_answer(actual, *answers, PROVIDERS[provider], case.num_queries)

    measure(lambda: values(PROVIDERS[provider].loss, query, key, *labels), check, **info)
