"""`mim4dd show`: every picture of a run, the page about it, its TensorBoard events."""

import base64
import io
import json
import shlex
import shutil
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from command_line import exit_status
from event_files import events_of, scalars_of
from PIL import Image

from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.report.html import summary
from mim4dd.distill.report.show import draw_run, draw_run_features, run_names
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runs.metrics import final_bound

call = partial(exit_status, draw=True)
NAME = "<script>alert('1')&amp;\"<b>"
EXPERTS = "--width 8 --num-experts 2 --train-epochs 4"
DISTILL = (
    "--experts experts --width 8 --syn-steps 3 --max-start-epoch 3 --num-keys 40 "
    "--num-eval 2 --eval-epochs 10 --iterations 4 --eval-every 2"
)
FILES = ["synthetic", "before_after", "curves", "embedding", "similarity"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Experts and two runs, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("experts", *EXPERTS.split(), "--out", "experts") == 0
        assert call("distill", *DISTILL.split(), "--out", "runs/" + NAME) == 0
        assert call("distill", *DISTILL.split(), "--weight", "0", "--out", "runs/mtt") == 0
    return folder


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """The two runs in a folder that a test may change."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return [Path("runs") / NAME, Path("runs/mtt")]


def test_distilling_leaves_pictures(runs):
    for name in ("synthetic", "curves"):
        with Image.open(runs[0] / "pictures" / f"{name}.png") as picture:
            assert picture.convert("L").getextrema()[0] < 100  # not blank


def test_show_draws_everything_and_prints_where(runs, capsys):
    shutil.rmtree(runs[0] / "pictures")
    config = json.loads((runs[0] / "config.json").read_text())
    (runs[0] / "config.json").write_text(json.dumps(config | {"device": "cuda:7"}))  # not here
    assert call("show", str(runs[0])) == 0
    paths = [str(runs[0] / "pictures" / f"{name}.png") for name in FILES]
    assert capsys.readouterr().out.splitlines() == paths
    for path in paths:
        with Image.open(path) as picture:
            dark, bright = picture.convert("L").getextrema()
            assert dark < 100  # not blank
            assert bright == 255


def test_files_for_a_paper_and_an_animation_are_printed(runs, capsys):
    assert call("show", str(runs[0]), "--no-features", "--paper", "--gif") == 0
    pictures = runs[0] / "pictures"
    files = [f"{name}.{kind}" for name in FILES[:3] for kind in ("png", "pdf", "svg")]
    assert capsys.readouterr().out.splitlines() == [
        str(pictures / name) for name in [*files, "evolution.gif"]
    ]
    with Image.open(pictures / "evolution.gif") as gif:
        assert gif.n_frames == 2  # as it began, and the result
    assert "--gif is of runs" in call("show", str(runs[0] / "synthetic.safetensors"), "--gif")


def test_what_cannot_be_drawn_is_said(runs, capsys):
    shutil.move("experts", "elsewhere")
    (runs[0] / "initial.safetensors").unlink()
    shutil.rmtree(runs[0] / "pictures")
    assert call("show", str(runs[0])) == 0
    lines = capsys.readouterr().out.splitlines()
    pictures = runs[0] / "pictures"
    missing = runs[0] / "initial.safetensors"
    assert lines[2] == f"{pictures}/before_after.png left out: {missing} does not exist"
    assert lines[3].startswith(
        f"{pictures}/embedding.png and similarity.png left out: experts must"
    )
    assert sorted(path.stem for path in pictures.iterdir()) == ["curves", "synthetic"]

    assert call("show", str(runs[0]), "--features", "--layers", "classifier") == 0
    assert (pictures / "similarity.png").exists()
    assert "--layers has no effect with --no-features" in call(
        "show", str(runs[0]), "--no-features", "--layers", "blocks.0"
    )


def test_a_method_without_experts_is_not_told_that_they_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = "--method dm --width 8 --iterations 1 --eval-every 0 --num-eval 1 --eval-epochs 1"
    assert call("distill", *options.split(), "--out", "run") == 0
    assert call("show", "run") == 0
    *_, reason = capsys.readouterr().out.splitlines()
    assert reason.endswith("left out: the run has no experts; --features trains a network")


def test_a_run_of_python_without_a_configuration_is_shown(runs, capsys):
    (runs[0] / "config.json").unlink()
    assert call("show", str(runs[0])) == 0
    *_, reason = capsys.readouterr().out.splitlines()
    assert reason.endswith(f"similarity.png left out: {runs[0]}/config.json does not exist")
    assert (
        call("show", str(runs[0]), "--features") == f"mim4dd: {runs[0]}/config.json does not exist"
    )
    assert call("show", "runs/nowhere") == (
        "mim4dd: runs/nowhere/synthetic.safetensors does not exist"
    )
    (runs[0] / "config.json").write_text("{}")
    assert call("show", str(runs[0]), "--no-features") == 0


def test_layers_that_are_none_are_refused(runs):
    with pytest.raises(ValueError, match="layers must name submodules of the network, got"):
        draw_run_features(RunDirectory(runs[0]), "cpu", ["conv9"], train=False)


def rewritten(run, **changes):
    """Replace parts of a run's set, in both its files."""
    for path in (run.initial, run.synthetic):
        kept = vars(SyntheticSet.load(path))
        SyntheticSet(**(kept | {name: make(kept) for name, make in changes.items()})).save(path)


def test_soft_labels_and_rows_have_heat_maps(runs):
    run = RunDirectory(runs[0])
    rewritten(run, label_syn=lambda kept: torch.randn(len(kept["class_syn"]), 10).softmax(1))
    assert [picture.path.stem for picture in draw_run(run, "digits").pictures] == [
        "synthetic", "before_after", "soft_labels", "curves"
    ]  # fmt: skip
    rewritten(
        run,
        image_syn=lambda kept: kept["image_syn"].flatten(1),
        pixels=lambda kept: kept["pixels"].flatten(1),
    )
    drawn = draw_run(run, "digits")
    assert drawn.pictures[0].title == "Synthetic rows"
    assert drawn.left_out == []


def test_runs_are_told_apart_by_what_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(run_names([Path("a/mtt/seed0"), Path("a/dm/seed0")]).values()) == [
        "mtt/seed0", "dm/seed0"
    ]  # fmt: skip
    assert list(run_names([Path("a"), Path("a/b")]).values()) == ["a", "a/b"]
    assert list(run_names([Path("a/..") / "c"]).values()) == ["c"]


class Page(HTMLParser):
    """What a page holds: elements, texts, and whether every tag is closed."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts, self.style = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.texts.append(data)

    def pictures(self):
        found = []
        for tag, attributes in self.elements:
            if tag == "img":
                kind, _, content = attributes["src"].partition(",")
                assert kind == "data:image/png;base64"
                found.append(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))
                found[-1].load()
                assert int(attributes["width"]) == round(found[-1].width / 1.5)
        return found


def check_self_contained(page):
    assert "url(" not in page.style
    assert "@import" not in page.style
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "b")
        assert not {"href", "srcset", "onload", "onerror"} & attributes.keys()
        assert attributes.get("src", "data:").startswith("data:")
    policies = [a["content"] for tag, a in page.elements if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_the_page_of_a_run_holds_everything_and_fetches_nothing(runs):
    assert call("show", str(runs[0]), "--html", "page.html") == 0
    page = Page(Path("page.html").read_text())
    check_self_contained(page)
    assert len(page.pictures()) == len(FILES)
    assert page.texts.count(NAME) == 2  # title and heading, as written
    for option, value in RunDirectory(runs[0]).read_config().items():
        assert option in page.texts
        assert value is None or str(value) in page.texts
    for key, text in summary(RunDirectory(runs[0])).items():
        assert page.texts[page.texts.index(key) + 1] == text
    assert "prefers-color-scheme: dark" in page.style
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.elements
    )


def test_the_summary_is_of_the_metrics(runs):
    run = RunDirectory(runs[0])
    rows = run.read_metrics()
    entries = summary(run)
    last = rows[-1]
    assert entries["test accuracy"] == (
        f"{100 * last['accuracy']:.1f} ({100 * last['accuracy_std']:.1f}) % of 2 networks "
        "after 4 iterations"
    )
    bound = rows[3]["mi_lower_bound"]  # a tenth of four rows is one
    assert entries["MI lower bound"] == f"{bound:.2f} nats (at most log C = 2.30)"
    assert float(entries["time per iteration"].removesuffix(" s, the median")) > 0
    assert entries["time"].endswith(" s")
    peak = run.load_checkpoint()[1]["peak_bytes"]
    assert entries["peak memory"] == f"{peak / 2**20:.0f} MiB"
    assert final_bound([{"mi_lower_bound": float(step)} for step in range(30)]) == 28.0
    assert final_bound([{"loss": 1.0}]) is None
    assert "MI lower bound" not in summary(RunDirectory(runs[1]))


def test_the_page_says_how_to_repeat_a_run(runs):
    assert call("show", str(runs[0]), "--no-features", "--html", "page.html") == 0
    texts = Page(Path("page.html").read_text()).texts
    by_file, whole = (text for text in texts if text.startswith("mim4dd "))
    before = {path.name: path.read_bytes() for path in Path("experts").iterdir()}
    result = (runs[0] / "synthetic.safetensors").read_bytes()
    assert call(*shlex.split(by_file)[1:]) == 0
    assert Path("again/synthetic.safetensors").read_bytes() == result
    for folder in ("again", "experts", runs[0]):
        shutil.rmtree(folder)
    for line in whole.splitlines():
        assert call(*shlex.split(line)[1:]) == 0
    assert Path("again/synthetic.safetensors").read_bytes() == result
    for name, content in before.items():
        trajectory = content[-100:]  # the header tells how long it took
        assert Path("experts", name).read_bytes()[-100:] == trajectory


def test_experts_of_another_program_are_not_said_to_be_trained(runs):
    for path in Path("experts").iterdir():
        tensors, header = load_tensors(path)
        save_tensors(path, tensors, header | {"training": None})
    assert call("show", str(runs[1]), "--no-features", "--html", "page.html") == 0
    texts = Page(Path("page.html").read_text()).texts
    assert not any("mim4dd experts" in text for text in texts)
    assert sum(text.startswith("mim4dd distill") for text in texts) == 2


def test_several_runs_stand_side_by_side(runs):
    words = ["show", *map(str, runs), "--no-features", "--out", "all.png", "--html", "page.html"]
    assert call(*words) == 0
    text = Path("page.html").read_text()
    page = Page(text)
    check_self_contained(page)
    # The curves of both are one picture, the samples before and after are of each.
    assert len(page.pictures()) == 1 + 2 * 2
    marked = [i for i, (tag, a) in enumerate(page.elements) if a.get("class") == "differs"]
    assert len(marked) == 1
    assert page.texts[page.texts.index("weight") :][:3] == ["weight", "0.1", "0.0"]
    assert page.texts.index("weight") < page.texts.index("num_eval")
    with Image.open("all.png") as picture:
        assert picture.convert("L").getextrema()[0] < 100


def test_tensorboard_reads_back_metrics_and_pictures(runs, capsys):
    pytest.importorskip("tensorboardX")
    words = ["show", str(runs[0]), "--no-features", "--tensorboard", "events"]
    assert call(*words) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path.parent == Path("events") / NAME
    events = events_of(path)
    scalars = scalars_of(events)
    pictures = {
        value.tag: Image.open(io.BytesIO(value.image.encoded_image_string))
        for event in events
        for value in event.summary.value
        if value.HasField("image")
    }
    expected = {
        (row["iteration"], name): value
        for row in RunDirectory(runs[0]).read_metrics()
        for name, value in row.items()
        if name != "iteration"
    }
    assert scalars.keys() == expected.keys()
    for key, value in expected.items():
        assert scalars[key] == pytest.approx(value, rel=1e-6)  # they are kept in single precision
    assert sorted(pictures) == sorted(FILES[:3])
    for name, picture in pictures.items():
        drawn = Image.open(runs[0] / "pictures" / f"{name}.png").convert("RGB")
        assert picture.convert("RGB").tobytes() == drawn.tobytes()

    assert "holds TensorBoard events already; choose another folder" in call(*words)


def test_a_missing_tensorboardx_is_named(runs, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    status = call("show", str(runs[0]), "--no-features", "--tensorboard", "events")
    assert status == (
        "mim4dd: tensorboardX is missing; pip install 'mim4dd[tensorboard]' brings it"
    )
