"""info_nce with the positives on the diagonal: every way to the same loss, and the GEMM floor."""

from contrastive import FLOOR, GPU, THREADS, over_budget, run, square
from providers import SINGLE, TEMPERATURE, Provider, installed

from mim4dd import info_nce


def on_cpu():
    """Three shapes on one thread and on all, a sweep of N, and one that no graph fits in."""
    for num_queries, dimension in ((2048, 128), (8192, 128), (8192, 512)):
        for backward in (False, True):
            for threads in THREADS:
                yield square(num_queries, dimension, "float32", backward, threads=threads)
    yield from (square(num_queries, 128) for num_queries in (256, 512, 1024, 4096, 16384, 32768))


def on_gpu():
    for dtype, dimensions in (("float32", (128,)), ("bfloat16", (64, 128, 256, 512, 1024))):
        for dimension in dimensions:
            for num_queries in (512, 2048, 8192, 32768, 65536):
                yield square(num_queries, dimension, dtype, backward=False)
                yield square(num_queries, dimension, dtype)


CASES = {
    "tiny": [square(33, 16, "float32", backward) for backward in (False, True)]
    + [square(num_queries, 16) for num_queries in (65, 129)],
    "full": list(on_gpu() if GPU else on_cpu()),
}
if GPU:
    # The first are those of docs/roofline.md.
    CASES["short"] = [
        *(
            square(16384, dimension, "bfloat16", backward)
            for dimension in (128, 256, 768, 64)
            for backward in (False, True)
        ),
        *(square(num_queries, 128, "bfloat16") for num_queries in (2048, 32768)),
    ]

PROVIDERS = {
    "mim4dd": Provider(
        lambda query, key, _: info_nce(query, key, temperature=TEMPERATURE), package="mim4dd"
    ),
    **installed(SINGLE),
    **FLOOR,
}


def rows_loss(query, key, target, rows, normalize):
    return info_nce(
        query[rows],
        key,
        positive_index=target[rows],
        temperature=TEMPERATURE,
        reduction="sum",
        normalize=normalize,
        backend="reference",
    )


def left_out(case, provider):
    if provider == "torch.compile" and case in CASES["tiny"][2:]:
        return "compiling takes ten seconds, and it has run on another shape"
    return over_budget(case, PROVIDERS[provider])


def bench_info_nce(case, provider, device, measure):
    run(PROVIDERS[provider], case, rows_loss, device, measure)
