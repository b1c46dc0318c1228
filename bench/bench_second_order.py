"""Double backward of info_nce, as distillation needs it, against the graph of plain PyTorch."""

import torch
from contrastive import THREADS, check_answer, gemms, inputs_of, square
from providers import SINGLE, TEMPERATURE, Provider

from mim4dd import info_nce

CASES = {
    "tiny": [square(33, 16)],
    "full": [square(2048, 128, threads=threads) for threads in THREADS],
}


def ours(query, key, _, **options):
    return info_nce(query, key, temperature=TEMPERATURE, reduction="sum", **options)


def plain(query, key, target):
    return SINGLE["torch"].loss(query, key, target, reduction="sum")


# S, then T = aKᵀ and Qbᵀ, are of the shape (N, M); PK, PᵀQ, (P∘T)K, Pb, WᵀQ and (P−Y)ᵀa come back.
NUM_GEMMS = 9
PROVIDERS = {
    "mim4dd": Provider(ours, package="mim4dd"),
    "torch": Provider(plain),
    "gemms": Provider(gemms),
}


def second_order(loss, query, key, *labels, **options):
    """The squared norm of the gradient, and its gradient."""
    gradients = torch.autograd.grad(
        loss(query, key, *labels, **options), (query, key), create_graph=True
    )
    norm = sum(gradient.square().sum() for gradient in gradients)
    return (norm.detach(), *torch.autograd.grad(norm, (query, key)))


def bench_second_order(case, provider, device, measure):
    inputs = inputs_of(case, device)
    flop = 2 * NUM_GEMMS * case.num_queries * case.num_keys * case.dimension
    info = {**case._asdict(), "flop": flop}
    if provider == "gemms":
        call = gemms([inputs.query], [inputs.key], NUM_GEMMS)
        measure(call, lambda _: None, **info)
        return

    def check(actual):
        answers = []
        for dtype in (torch.float32, torch.float64):
            sides = (side.detach().to(dtype).requires_grad_() for side in inputs[:2])
            answers.append(second_order(ours, *sides, *inputs.labels, backend="reference"))
        check_answer(actual, *answers, PROVIDERS[provider], num_queries=1)

    loss = PROVIDERS[provider].loss
    measure(lambda: second_order(loss, inputs.query, inputs.key, *inputs.labels), check, **info)
