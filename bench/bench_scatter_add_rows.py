"""scatter_add_rows: a batch's gradients into the synthetic set, against torch.index_add_."""

from typing import NamedTuple

import torch
from tolerance import assert_no_worse

from mim4dd import reference
from mim4dd.ops import scatter_add_rows  # noqa: F401  registers the op


class Case(NamedTuple):
    num_rows: int
    batch: int

    def __str__(self) -> str:
        return f"n={self.num_rows} B={self.batch}"


CASES = {"tiny": [Case(5, 7)], "full": [Case(10, 10), Case(500, 256)]}

PROVIDERS = {
    "mim4dd": torch.ops.mim4dd.scatter_add_rows,
    "torch.index_add_": lambda out, rows, source: out.index_add_(0, rows, source),
}


def bench_scatter_add_rows(case, provider, device, measure):
    out = torch.randn(case.num_rows, 3, 32, 32, device=device)
    source = torch.randn(case.batch, 3, 32, 32, device=device)
    rows = torch.randint(case.num_rows, (case.batch,), device=device)
    plain, exact, first = out.clone(), out.double(), out.clone()
    reference.scatter_add_rows(plain, rows, source)
    reference.scatter_add_rows(exact, rows, source.double())
    PROVIDERS[provider](first, rows, source)
    assert_no_worse(first, plain, exact)

    def call():
        PROVIDERS[provider](out, rows, source)
        return out

    measure(
        call,
        lambda _: None,  # it has added more than once by now
        moved_bytes=3 * source.nbytes,  # two reads and a write
    )
