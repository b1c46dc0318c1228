"""torch.profiler on a loss and on an unroll: where their time on the GPU and the host goes."""

from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from stages.arguments import parse
from stages.launches import LARGE, SMALL
from stages.records import run_cases

ROWS = 25


def profiled(call: Callable[[], object], device: str) -> dict:
    """The table of a call after two that compile and allocate."""
    call(), call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    by = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    averages = profiler.key_averages()
    return {"table": averages.table(sort_by=by, row_limit=ROWS, max_name_column_width=60)}


def loss(name: str, device: str) -> dict:
    call, inputs = (LARGE if device == "cuda" else SMALL)[name](device)
    return profiled(lambda: call(*inputs), device)


def unrolled(device: str, captured: bool) -> dict:
    """The field's ConvNet at one image per class; small in a rehearsal."""
    import bench_unroll_sgd as bench

    from mim4dd import StepGraphs

    case = bench.MAIN if device == "cuda" else bench.CASES["tiny"][0]
    problem, model = bench.problem_for(case._replace(threads=0), device)
    options = {"step_graphs": StepGraphs()} if captured else {}
    return profiled(lambda: bench.ours(problem, model, **options), device)


def main() -> None:
    args = parse(__doc__)
    cases = [(name, partial(loss, name, args.device)) for name in ("info_nce", "sup_con")]
    cases.append(("unroll", partial(unrolled, args.device, False)))
    if not args.rehearsal:  # capturing takes a GPU
        cases.append(("unroll, captured", partial(unrolled, args.device, True)))
    run_cases(args.results, args.stage, cases)


if __name__ == "__main__":
    main()
