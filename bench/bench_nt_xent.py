"""NT-Xent of SimCLR by info_nce, both views in one set without self-pairs, against lightly."""

import torch
from contrastive import FLOOR, GPU, THREADS, over_budget, run, square
from providers import NT_XENT, TEMPERATURE, Provider, installed

from mim4dd import info_nce

CASES = {
    "tiny": [square(33, 16)],
    "full": [square(num, 128, threads=threads) for num in (256, 2048) for threads in THREADS],
}
if GPU:
    CASES["short"] = [square(2048, 128)]


def nt_xent(query, key, target, **options):
    views = torch.cat([query, key])
    positive = torch.cat([target + len(query), target])
    options |= {"temperature": TEMPERATURE, "normalize": True, "exclude_self": True}
    return info_nce(views, views, positive_index=positive, **options)


PROVIDERS = {
    "mim4dd": Provider(nt_xent, normalizes=True, package="mim4dd"),
    **installed(NT_XENT),
    **FLOOR,
}


def rows_loss(query, key, target, rows, normalize):
    """The whole at once: which pair is a self-pair depends on the row."""
    assert rows.start == 0, "a case must fit in one piece"
    return len(query) * nt_xent(query, key, target, backend="reference")


def left_out(case, provider):
    return over_budget(case, PROVIDERS[provider])


def bench_nt_xent(case, provider, device, measure):
    run(PROVIDERS[provider], case, rows_loss, device, measure, both_in_one=True)
