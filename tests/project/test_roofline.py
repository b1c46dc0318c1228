"""The cost model's arithmetic on cases that are worked out by hand."""

import json

import pytest

pytest.importorskip("triton")

import roofline
from roofline import Gpu, Launch, Pass

# One clock a second, and numbers that divide well.
SMALL = Gpu(
    multiprocessors=10, clock=1.0, bandwidth=100.0, flop=1000, shared_bytes=10_000, cublas=0.5
)


def test_the_slowest_unit_bounds_a_tile():
    # A clock issues for 4 of 8 warps, and does 16 of a warp's 32 exponentials or 1000 operations.
    assert Pass(100, 10, 5000).clocks(8, SMALL) == (200, 5)
    assert Pass(100, 20, 5000).clocks(8, SMALL) == (20 * 8 * 32 / 16, 5)


@pytest.mark.parametrize(
    ("blocks", "registers", "shared", "resident"),
    [
        (100, 128, 1000, 2),  # 128 registers of 256 threads: half of 65536
        (100, 129, 1000, 1),  # given out 8 at a time
        (100, 32, 3976, 2),  # of shared memory each block takes 1024 bytes more
        (100, 32, 3977, 1),
        (100, 32, 2300, 3),
        (12, 32, 0, 2),  # 12 blocks on 10 multiprocessors
        (10, 32, 0, 1),
    ],
)
def test_how_many_blocks_fit(blocks, registers, shared, resident):
    assert Launch(blocks, 8, registers, shared, ()).resident(SMALL) == resident


def test_a_launch_by_hand():
    # Alone, a block's 200 clocks hide its 50 of products or precede them; 25 blocks: 3 waves.
    tile = Pass(100, 0, 50_000)
    launch = Launch(25, 8, 200, 0, ((4, tile),))
    assert launch.seconds(SMALL) == (3 * 4 * 200, 3 * 4 * 250)
    # Two at a time take as long as both, whatever waits: 2 waves.
    assert launch._replace(registers=64, shared_bytes=3976).seconds(SMALL) == (2 * 4 * 400,) * 2
    # Memory may take longer than both.
    assert launch._replace(moved_bytes=1e6).seconds(SMALL) == (1e4, 1e4)


def test_cublas_reaches_a_share_of_the_peak():
    assert SMALL.ideal(1e6) == 1e6 / (0.5 * 10 * 1000)


def test_what_was_measured_stands_beside(tmp_path):
    lines = []
    for provider, median in (("mim4dd", 4.0), ("gemms", 2.0), ("gemms", 3.0), ("torch", 1.0)):
        info = {"op": "info_nce", "case": "a case", "provider": provider}
        found = {"extra_info": info, "stats": {"median": median}}
        record = {"stage": "losses", "case": f"{provider} {median}", "status": "ok", "found": found}
        lines.append(json.dumps(record))
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(lines))
    assert roofline.measured(path) == {("info_nce", "a case"): 0.5}
    assert roofline.measured(None) == {}


def test_cases_are_those_of_the_benchmarks():
    """By the title of a case what was measured is found."""
    from contrastive import square

    titles = {way.title for way in roofline.ways()}
    assert str(square(roofline.N, 128, "bfloat16", False, threads=0)) in titles
    labelled = square(roofline.N, 128, "bfloat16", num_classes=roofline.CLASSES, threads=0)
    assert str(labelled) in titles
