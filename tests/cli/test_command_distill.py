"""`mim4dd distill`, as a user types it: its files, its errors, and what follows it."""

import json
from pathlib import Path

import pytest
import torch
from command_line import DISTILL
from PIL import Image

from mim4dd.distill.runs import RunDirectory, SyntheticSet


def test_from_experts_to_evaluation(with_experts):
    mim4dd = with_experts
    status, out, _ = mim4dd(f"distill {DISTILL} --iterations 6 --eval-every 3 --out run")
    assert status == 0
    assert "run/synthetic.safetensors: test accuracy" in out
    assert "of 2 networks" in out
    run = RunDirectory("run")
    config = run.read_config()
    assert (config["syn_steps"], config["weight"], config["ipc"]) == (3, 0.1, 1)
    rows = run.read_metrics()
    assert len(rows) == 7
    assert [row["iteration"] for row in rows if "accuracy" in row] == [0, 3, 6]
    assert SyntheticSet.load(run.synthetic).label_syn.tolist() == list(range(10))
    for name in ("synthetic", "curves"):
        assert Path(f"run/pictures/{name}.png").exists()
        assert f"run/pictures/{name}.png" in out

    status, out, _ = mim4dd("evaluate run --num-eval 3")
    assert status == 0
    *lines, source, header, scores = out.splitlines()
    assert source.startswith("DD-Ranking, in percent")
    assert (header.split(), scores.split()[:2]) == (["set", "network", "LRS"], ["run", "convnet"])
    assert [line.split("  ")[0] for line in lines] == [
        "run",
        "1 random real images per class",
        "whole training set",
    ]
    assert all(line.endswith("of 3 networks") for line in lines)

    mim4dd(f"distill {DISTILL} --iterations 2 --weight 0 --out mtt")
    assert "mi_lower_bound" not in RunDirectory("mtt").read_metrics()[0]
    status, out, _ = mim4dd("show run mtt --out both.png")
    assert status == 0
    assert "both.png" in out
    assert Path("both.png").exists()


@pytest.mark.parametrize("options", ["dc", "dsa --dsa-strategy crop_scale", "cafe"])
def test_methods_that_need_no_experts(options, mim4dd):
    few = "--iterations 3 --outer-loop 2 --inner-loop 1 --batch-real 4 --num-networks 2"
    status, out, err = mim4dd(
        f"distill --method {options} {few} --width 8 --num-keys 20 --num-eval 1 --eval-epochs 5"
    )
    assert status == 0, err
    assert "runs/distill/synthetic.safetensors: test accuracy" in out
    rows = RunDirectory("runs/distill").read_metrics()
    assert [("mi_lower_bound" in row) for row in rows] == [True] * 3 + [False]
    status, _, err = mim4dd(f"distill --method {options} --syn-steps 3 --out other")
    assert (status, err.startswith("mim4dd: syn_steps has no effect on method")) == (1, True)


def test_a_config_file_holds_options_and_the_command_line_wins(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --seed 7 --out first")
    status, _, err = mim4dd("distill --config first/config.json --temperature 0.2 --out second")
    assert status == 0, err
    first, second = (RunDirectory(path).read_config() for path in ("first", "second"))
    assert second == first | {"temperature": 0.2}
    for content, message in (
        ({"iteration": 3}, "bad.json names unknown options: iteration"),
        ({"ipc": "one"}, "bad.json: ipc must be of type int, got 'one'"),
        ({"ipc": True}, "bad.json: ipc must be of type int, got True"),
        ({"ipc": None}, "bad.json: ipc must be of type int, got None"),
        ({"layers": 1}, "bad.json: layers must be of type NoneType or str, got 1"),
        ({"critic": 1.5}, "bad.json: critic must be of type str, got 1.5"),
        ({"weight": "1"}, "bad.json: weight must be of type float or int, got '1'"),
        ([], "bad.json must hold a JSON object, got list"),
    ):
        Path("bad.json").write_text(json.dumps(content))
        status, _, err = mim4dd("distill --config bad.json --out third")
        assert (status, err) == (1, f"mim4dd: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ipc 0", "ipc must be at least 1"),
        ("--ipc 1000", "ipc must be at most the size of the smallest class"),
        ("--temperature 0", "temperature must be positive and finite, got 0"),
        ("--temperature nan", "temperature must be positive and finite, got nan"),
        ("--weight -1", "weight must be at least 0 and finite, got -1"),
        ("--syn-steps 0", "syn_steps must be at least 1"),
        ("--max-start-epoch 9", "max_start_epoch - 1 + expert_epochs must be within the experts'"),
        ("--width 16", "experts must be of the network 'ConvNet width=16"),
        ("--experts none", "experts must be a folder of expert_*.safetensors files, none holds"),
        ("--layers conv7", "layers must name submodules of the network, got ['conv7']; it has: "),
        ("--num-keys 0", "num_keys must be at least 1"),
        ("--dsa-strategy blur", "strategy must join some of color, crop"),
        ("--data nowhere", "data must be one of breast_cancer, cifar10, cifar100, digits, "),
        ("--device tpu9", "device must be a device that PyTorch knows, got 'tpu9'"),
        ("--from-iteration 3", "--from-iteration needs --resume with the run to continue"),
        ("--resume run", "run/config.json does not exist"),
    ],
)
def test_options_that_cannot_work_are_one_line_and_leave_nothing(options, message, with_experts):
    status, _, err = with_experts(f"distill {DISTILL} --out run {options}")
    assert status == 1
    assert err.splitlines()[-1].startswith(f"mim4dd: {message}")
    assert "Traceback" not in err
    assert not Path("run").exists()


def test_a_truncated_expert_is_named(with_experts):
    path = Path("experts/expert_0001.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    status, _, err = with_experts(f"distill {DISTILL}")
    assert status == 1
    assert "expert_0001.safetensors is truncated or not a safetensors file" in err


def test_a_run_is_never_overwritten(with_experts):
    mim4dd = with_experts
    mim4dd(f"distill {DISTILL} --iterations 1 --out run")
    before = Path("run/synthetic.safetensors").read_bytes()
    status, _, err = mim4dd(f"distill {DISTILL} --iterations 2 --out run")
    assert status == 1
    assert "run already holds a run: continue it with --resume run" in err
    assert Path("run/synthetic.safetensors").read_bytes() == before


def test_rows_are_distilled_and_judged_by_name(mim4dd):
    few = "--method dm --iterations 2 --num-eval 2 --eval-epochs 5 --num-keys 20"
    status, out, err = mim4dd(f"distill --data wine {few} --out run")
    assert status == 0, err
    assert "of 2 networks" in out
    assert RunDirectory("run").read_config()["network"] == "mlp"
    status, out, err = mim4dd("evaluate run")
    assert status == 0, err
    assert "random real images" in out
    # Not after hours of distilling.
    status, _, err = mim4dd(f"distill --data wine {few} --eval-dsa-strategy crop --out other")
    assert status == 1
    assert err.endswith("eval_dsa_strategy must be 'none' for rows, which wine holds, got 'crop'")
    assert not Path("other").exists()
    assert not Path("demo/experts").exists()


def test_any_folder_of_images(mim4dd, tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = (torch.rand(10, 10, 3) * 127 + 128 * label).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    task = "--data pets --image-size 8 --width 8"
    assert mim4dd(f"experts {task} --num-experts 1 --train-epochs 4 --out experts")[0] == 0
    status, _, err = mim4dd(f"distill {DISTILL} {task} --iterations 2 --out run")
    assert status == 0, err
    assert SyntheticSet.load(Path("run/synthetic.safetensors")).class_names == ("cat", "dog")
    Path("pets").rename("animals")
    few = f"{DISTILL} {task.replace('pets', 'animals')} --iterations 1"
    assert mim4dd(f"distill {few} --out renamed")[0] == 0
    assert mim4dd("evaluate renamed --no-baselines")[0] == 0
    # The same names, and each has the other's pictures.
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        Path("animals", old).rename(Path("animals", new))
    status, _, err = mim4dd(f"distill {few} --out swapped")
    assert status == 1
    assert "experts in experts must be of the network and the data to distil for" in err
    assert "data.train.content (other samples or other labels of them)" in err
    assert not Path("swapped").exists()
    for command in ("evaluate renamed --no-baselines", "distill --resume renamed --iterations 2"):
        status, _, err = mim4dd(command)
        assert (status, "train.content (other samples" in err) == (1, True)


def test_more_images_than_a_class_has_start_from_noise(mim4dd, monkeypatch):
    many = "--method dm --ipc 200 --width 8 --iterations 1 --num-keys 20 --num-eval 1"
    status, _, err = mim4dd(f"distill {many} --eval-epochs 1 --init noise --out run")
    assert status == 0, err
    assert len(RunDirectory("run").load_result().image_syn) == 2000
    with monkeypatch.context() as patch:  # refused before anything is trained
        patch.delattr("mim4dd.distill.evaluation.recipe.train_network")
        for option, way_out in {
            "": "--no-baselines leaves the baselines out",
            " --fairness": "evaluate this set without --fairness",
        }.items():
            status, _, err = mim4dd(f"evaluate run{option}")
            assert status == 1
            assert "run cannot be compared with random real images: ipc must be at most" in err
            assert err.strip().endswith(way_out)
    assert mim4dd("evaluate run --no-baselines")[0] == 0
    status, _, err = mim4dd(f"distill {many} --init real --out other")
    assert status == 1
    assert "ipc must be at most the size of the smallest class" in err
    status, _, err = mim4dd(f"compare {many} --init noise --out other")
    assert (status, "ipc must be at most the size of" in err) == (1, True)
    assert not Path("other").exists()
