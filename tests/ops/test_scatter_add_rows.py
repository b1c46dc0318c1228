"""scatter_add_rows: values, order, threads, registration, errors."""

import pytest
import torch
from tolerance import assert_no_worse
from torch.library import opcheck

from mim4dd import reference
from mim4dd.ops import scatter_add_rows  # noqa: F401  registers the op

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(1,), (7,), (3, 16, 16), (30_011,), ()]
op = torch.ops.mim4dd.scatter_add_rows


def make_inputs(dtype, device, row_shape, num_rows=11, batch=29):
    out = torch.randn(num_rows, *row_shape, dtype=dtype, device=device)
    rows = torch.randint(num_rows, (batch,), device=device)  # more than rows: some occur twice
    return out, rows, torch.randn(batch, *row_shape, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("row_shape", SHAPES, ids=str)
def test_values(dtype, row_shape, device):
    out, rows, source = make_inputs(dtype, device, row_shape)
    plain, exact = out.clone(), out.double()
    reference.scatter_add_rows(plain, rows, source, 0.3)
    reference.scatter_add_rows(exact, rows, source.double(), 0.3)
    op(out, rows, source, scale=0.3)
    assert_no_worse(out, plain, exact)


def test_it_is_index_add(device):
    out, rows, source = make_inputs(torch.float64, device, (5, 7))
    expected = out.index_add(0, rows, source)
    op(out, rows, source)
    torch.testing.assert_close(out, expected)


def test_duplicates_are_added_in_the_order_of_the_batch(device):
    out = torch.ones(1, 300, device=device)
    source = torch.tensor([1e8, -1e8, 2.0], device=device)[:, None].expand(3, 300)
    op(out, torch.zeros(3, dtype=torch.int64, device=device), source)
    assert (out == 2).all()  # ((1 + 1e8) − 1e8) + 2; any other order gives 3 or 1


def test_bits_do_not_depend_on_the_number_of_threads():
    out, rows, source = make_inputs(torch.float32, "cpu", (30_011,))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(out.clone())
            op(results[-1], rows, source)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strided_inputs(device):
    out, rows, source = make_inputs(torch.float64, device, (6, 8))
    base = torch.zeros(11, 8, 12, dtype=torch.float64, device=device)
    view = base.transpose(1, 2)[:, ::2]
    view.copy_(out)
    op(view, rows.repeat_interleave(2)[::2], source.transpose(1, 2).contiguous().transpose(1, 2))
    op(out, rows, source)
    assert torch.equal(view, out)
    assert (base.transpose(1, 2)[:, 1::2] == 0).all()


def test_nothing_to_add(device):
    out, rows, source = make_inputs(torch.float32, device, (5,))
    before = out.clone()
    op(out, rows[:0], source[:0])
    assert torch.equal(out, before)
    op(out[:, :0], rows, source[:, :0])


def test_nan_stays_visible(device):
    out, rows, source = make_inputs(torch.float32, device, (5,))
    source[4, 2] = torch.nan
    op(out, rows, source)
    assert out.isnan().nonzero().tolist() == [[int(rows[4]), 2]]


def test_registration(device):
    opcheck(op.default, make_inputs(torch.float32, device, (5,)), {"scale": 0.5})


def test_compiles(device):
    out, rows, source = make_inputs(torch.float32, device, (5,))
    expected = out.index_add(0, rows, source, alpha=2)

    def call(out, rows, source):
        out = out.clone()
        op(out, rows, source, scale=2.0)
        return out

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(out, rows, source), expected)


def test_a_derivative_is_refused(device):
    out, rows, source = make_inputs(torch.float32, device, (5,))
    source.requires_grad_()
    with pytest.raises(RuntimeError, match="scatter_add_rows is not differentiable"):
        op(out, rows, source)
    with torch.no_grad():
        op(out, rows, source)


def test_rows_out_of_range_change_nothing():
    out, rows, source = make_inputs(torch.float32, "cpu", (5,))
    before = out.clone()
    for row in (-1, 11):
        rows[7] = row
        with pytest.raises(RuntimeError, match=f"rows must index the 11 rows of out, got {row}"):
            op(out, rows, source)
    assert torch.equal(out, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(2, dtype=torch.int64)}, "must be \\(n, ...\\), \\(B\\)"),
        ({"rows": torch.zeros(3, dtype=torch.int32)}, "rows must be int64"),
        ({"source": torch.zeros(3, 4)}, "must have the shape of a row of out"),
        ({"source": torch.zeros(3, 5, 1)}, "must be \\(n, ...\\)"),
        ({"source": torch.zeros(3, 5).double()}, "share a dtype"),
        ({"out": torch.zeros(0, 5)}, "rows must index the 0 rows"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "out": torch.zeros(4, 5),
        "rows": torch.zeros(3, dtype=torch.int64),
        "source": torch.zeros(3, 5),
    }
    with pytest.raises(RuntimeError, match=message):
        op(**(arguments | change))


def test_shared_memory_is_refused(device):
    out, rows, _ = make_inputs(torch.float32, device, (5,))
    with pytest.raises(RuntimeError, match="source must not overlap out"):
        op(out, rows[:4], out[2:6])
