"""What the GPU can do: a copy, and matrix products in the sizes of the losses."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from stages.arguments import parse
from stages.records import run_cases

COLUMNS = (64, 96, 128, 256, 512, 768)
REPEATS = 15


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Median of the device's own clock."""
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        if device != "cuda":
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copied(device: str, count: int) -> dict:
    """Bytes read and written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return {"GB/s": 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device) / 1e9}


def multiplied(device: str, N: int, D: int, dtype: torch.dtype) -> dict:
    """(N, D) times (D, N), and (N, N) times (N, D)."""
    rows = torch.randn(N, D, device=device).to(dtype)
    logits = rows @ rows.T
    by_rows, by_logits = (
        2e-12 * N * N * D / seconds_of(call, device)
        for call in (
            lambda: torch.mm(rows, rows.T, out=logits),
            lambda: torch.mm(logits, rows),
        )
    )
    return {"logits TFLOP/s": by_rows, "gradient TFLOP/s": by_logits}


def main() -> None:
    args = parse(__doc__)
    N, count, columns = (16384, 2**29, COLUMNS) if not args.rehearsal else (64, 2**12, COLUMNS[:1])
    cases = [("copy", partial(copied, args.device, count))]
    cases += [
        (f"bfloat16 D={D}", partial(multiplied, args.device, N, D, torch.bfloat16)) for D in columns
    ]
    torch.set_float32_matmul_precision("high")
    cases += [("tf32 D=128", partial(multiplied, args.device, N, 128, torch.float32))]
    run_cases(args.results, args.stage, cases)


if __name__ == "__main__":
    main()
