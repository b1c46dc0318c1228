"""clip_loss, the mean of both directions, against open_clip and PyTorch."""

from contrastive import FLOOR, GPU, THREADS, over_budget, run, square
from providers import CLIP, TEMPERATURE, Provider, installed

import mim4dd

CASES = {
    "tiny": [square(33, 16)],
    "full": [
        square(num_queries, 512, "bfloat16" if GPU else "float32", threads=threads)
        for num_queries in (2048, 8192)
        for threads in THREADS
    ],
}
if GPU:
    CASES["full"] += [square(16384, 128, "bfloat16", backward) for backward in (False, True)]
    CASES["short"] = [square(8192, 512, "bfloat16"), *CASES["full"][-2:]]


def two_calls(query, key, target):
    """One call a direction: what clip_loss saves by seeing both in one pass."""
    sides = (query, key), (key, query)
    there, back = (mim4dd.info_nce(*each, temperature=TEMPERATURE) for each in sides)
    return (there + back) / 2


PROVIDERS = {
    "mim4dd": Provider(
        lambda query, key, _: mim4dd.clip_loss(query, key, temperature=TEMPERATURE),
        package="mim4dd",
    ),
    "mim4dd, two info_nce": Provider(two_calls, package="mim4dd"),
    **installed(CLIP),
    **FLOOR,
}


def rows_loss(query, key, target, rows, **options):
    options |= {"temperature": TEMPERATURE, "reduction": "sum", "backend": "reference"}
    options["positive_index"] = target[rows]
    there, back = (
        mim4dd.info_nce(side[rows], other, **options)
        for side, other in ((query, key), (key, query))
    )
    return (there + back) / 2


def left_out(case, provider):
    return over_budget(case, PROVIDERS[provider])


def bench_clip_loss(case, provider, device, measure):
    run(PROVIDERS[provider], case, rows_loss, device, measure)
