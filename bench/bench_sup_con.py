"""sup_con on class labels, against PyTorch, pytorch-metric-learning and our single positive."""

from contrastive import FLOOR, GPU, THREADS, over_budget, run, square
from providers import LABELLED, TEMPERATURE, Provider, installed

from mim4dd import info_nce, sup_con

SINGLE_POSITIVE = "mim4dd, single positive"

CASES = {
    "tiny": [square(33, 16, num_classes=10)],
    "full": [
        square(num_queries, 128, dtype, num_classes=num_classes, threads=threads)
        for num_queries in (2048, 8192)
        for dtype in ("float32", *(("bfloat16",) if GPU else ()))
        for num_classes in (10, 100)
        for threads in THREADS
    ],
}
if GPU:
    CASES["short"] = [
        square(16384, 128, "bfloat16", backward, num_classes=10) for backward in (False, True)
    ]

PROVIDERS = {
    "mim4dd": Provider(lambda *inputs: sup_con(*inputs, temperature=TEMPERATURE), package="mim4dd"),
    # Another loss on the same features: what many positives cost on top.
    SINGLE_POSITIVE: Provider(
        lambda query, key, *_: info_nce(query, key, temperature=TEMPERATURE), package="mim4dd"
    ),
    **installed(LABELLED),
    **FLOOR,
}

_OPTIONS = {"temperature": TEMPERATURE, "reduction": "sum", "backend": "reference"}


def rows_loss(query, key, labels, key_labels, rows, normalize):
    return sup_con(query[rows], key, labels[rows], key_labels, normalize=normalize, **_OPTIONS)


def single_positive(query, key, labels, key_labels, rows, normalize):
    positive = range(*rows.indices(len(query)))
    index = labels.new_tensor(positive)
    return info_nce(query[rows], key, positive_index=index, **_OPTIONS)


def left_out(case, provider):
    return over_budget(case, PROVIDERS[provider])


def bench_sup_con(case, provider, device, measure):
    loss = single_positive if provider == SINGLE_POSITIVE else rows_loss
    run(PROVIDERS[provider], case, loss, device, measure)
