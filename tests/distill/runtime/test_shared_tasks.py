"""Tasks that ranks share out: each does some, all know all, and files are those of one process."""

import json
from pathlib import Path

import pytest
from killing import finish
from ranked import run_ranks
from safetensors.torch import load_file

from mim4dd.distill.files.atomic import read_json

EXPERTS = "experts --width 4 --num-experts 3 --train-epochs 2 --out"
SMALL = "--method dm --width 4 --batch-real 8 --iterations 2 --eval-epochs 2 --num-eval 3"


def both(folder, command, out):
    """What one process and two ranks leave by a command, and what each rank printed."""
    finish(folder, f"{command} {out}")
    assert [status for status, _ in run_ranks(f"mim4dd {command} {out}-ranks", folder)] == [0, 0]
    printed = [(folder / f"{rank}.out").read_text() for rank in range(2)]
    return folder / out, folder / f"{out}-ranks", printed


def test_each_does_a_part_and_all_know_all(tmp_path):
    assert [status for status, _ in run_ranks("shares", tmp_path)] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    pids = [first["pid"], second["pid"]]
    # Within a task a rank is alone.
    assert first["shared"] == second["shared"] == [[i, pids[i % 2], 0, 1] for i in range(5)]
    tasks = [[i, [task, pids[i % 2], 0, 1]] for i, task in enumerate("abc")]
    assert first["in_worker"] == second["in_worker"] == tasks
    for rank, each in enumerate((first, second)):  # outside of `sharing` it does all
        assert each["everything"] == [[i, pids[rank], rank, 2] for i in range(5)]


def test_experts(tmp_path):
    alone, ranks, printed = both(tmp_path, EXPERTS, "experts")
    files = [sorted(path.name for path in folder.glob("*")) for folder in (alone, ranks)]
    assert files[0] == files[1]
    assert len(files[0]) == 3
    for name in files[0]:
        ours, theirs = (load_file(folder / name)["trajectory"] for folder in (ranks, alone))
        assert ours.equal(theirs)
    assert printed[0].startswith("3 experts of 2 epochs")
    assert printed[1] == ""


def test_evaluate(tmp_path):
    finish(tmp_path, f"distill {SMALL} --eval-every 0 --out run")
    alone, ranks, printed = both(tmp_path, "evaluate run --csv", "table.csv")
    assert alone.read_text() == ranks.read_text()
    assert "of 3 networks" in printed[0]
    assert printed[1] == ""


def test_sweep(tmp_path):
    alone, ranks, _ = both(tmp_path, f"sweep {SMALL} --vary weight=0,0.1 --seeds 1 --out", "sweep")
    results = [
        {str(path.relative_to(folder)): read_json(path)["accuracy"] for path in files(folder)}
        for folder in (alone, ranks)
    ]
    assert len(results[0]) == 3  # two settings and real images
    assert results[0] == results[1]
    assert {path.name for path in alone.iterdir()} == {path.name for path in ranks.iterdir()}


def files(folder: Path) -> list[Path]:
    return [*folder.glob("runs/*/*/result.json"), *folder.glob("random_real/*/*/result.json")]


def test_compare(tmp_path):
    alone, ranks, printed = both(tmp_path, f"compare {SMALL} --num-distill 1 --out", "compare")
    summaries = [read_json(folder / "summary.json") for folder in (alone, ranks)]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    assert summaries[0]["mim4dd_gain"] == summaries[1]["mim4dd_gain"]
    assert len(summaries[1]["pictures"]) == len(summaries[0]["pictures"])
    assert printed[1] == ""


@pytest.mark.parametrize("command", ["show run", "sweep --search 2 --vary weight=0.1..1"])
def test_other_commands_are_of_one_process(tmp_path, command):
    for status, message in run_ranks(f"mim4dd {command}", tmp_path):
        assert status == 1
        assert "runs as one process and must not be started by torchrun" in message
