"""What a query-key pair costs as the keys grow in number: it should not."""

from functools import partial

from bench_info_nce import rows_loss
from contrastive import FLOOR, THREADS, Case, run
from providers import TEMPERATURE, Provider

from mim4dd import info_nce

CASES = {
    "tiny": [Case(16, 64, 16)],
    "full": [
        Case(256, 2**exponent, 128, threads=threads)
        for exponent in range(12, 19)
        for threads in THREADS
    ],
    "short": [Case(256, 2**exponent, 128) for exponent in (12, 18)],
}

PROVIDERS = {
    "mim4dd": Provider(
        lambda query, key, _: info_nce(query, key, temperature=TEMPERATURE), package="mim4dd"
    ),
    **FLOOR,
}


def bench_pair_cost(case, provider, device, measure):
    measure = partial(measure, pairs=case.num_queries * case.num_keys)
    run(PROVIDERS[provider], case, rows_loss, device, measure)
