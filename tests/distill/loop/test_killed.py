"""SIGKILL at any moment, again and again, changes nothing about what a command leaves."""

import pytest
from killing import KILLS, finish, kill_again_and_again
from same_run import leavings

from mim4dd.distill.files.atomic import read_json
from mim4dd.distill.runs import RunDirectory

EXPERTS = "--width 8 --num-experts 2 --train-epochs 3"
DISTILL = (
    "--width 8 --syn-steps 3 --max-start-epoch 2 --num-keys 40 --num-eval 2 --eval-epochs 10 "
    "--iterations 60 --checkpoint-every 7 --eval-every 20"
)


@pytest.fixture
def experts(tmp_path):
    finish(tmp_path, f"experts {EXPERTS} --out experts")
    return tmp_path


def test_distill(experts):
    begin = f"distill --experts experts {DISTILL} --keep-every 9 --out"
    parts = RunDirectory(experts / "parts")
    finish(experts, f"{begin} whole")
    kill_again_and_again(
        experts,
        lambda: "distill --resume parts" if parts.config.exists() else f"{begin} parts",
        kills=KILLS,
        longest=1,
    )
    assert parts.kept_sets() == [9, 18, 27, 36, 45, 54]
    assert leavings(experts / "whole") == leavings(parts.path)


def test_compare(tmp_path):
    command = f"compare {EXPERTS} {DISTILL} --num-distill 1 --out"
    finish(tmp_path, f"{command} whole")
    kill_again_and_again(tmp_path, lambda: f"{command} parts", kills=KILLS, longest=2)
    summaries = [read_json(tmp_path / name / "summary.json") for name in ("whole", "parts")]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    for method in ("mtt", "mtt+mim4dd"):
        assert leavings(tmp_path / "whole" / method / "seed0") == leavings(
            tmp_path / "parts" / method / "seed0"
        )
