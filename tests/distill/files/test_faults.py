"""Disks, folders and clocks that fail: a run says so, keeps its checkpoint, and goes on by it."""

import errno
import os
import re
import shutil
import subprocess
import time

import pytest
import torch
import tqdm.std
from command_line import exit_status, outcome
from event_files import events_of, scalars_of
from same_run import leavings
from tiny import make_data, make_experts

from mim4dd.distill.files import atomic
from mim4dd.distill.files.folders import replacing_folder
from mim4dd.distill.files.hold import hold
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import BaseMethod, Objective
from mim4dd.distill.report.tensorboard import export_tensorboard
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.processes import WorkerError

SETTINGS = LoopSettings(
    iterations=6, lr_img=0.1, lr_lr=0.0, checkpoint_every=2, keep_every=3, optimizer_img="adam"
)
TINY = "--method dm --weight 0 --batch-real 4 --width 4 --depth 1 --num-eval 1 --eval-epochs 1"


class Mean(BaseMethod):
    """Match a mean of images that are drawn anew in every iteration."""

    def loss(self, image_syn, label_syn, syn_lr, real):
        images, _ = real.sample(4)
        return Objective((image_syn.mean(0) - images.mean(0)).square().sum(), [])


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return make_data()


def start(data, run, watch=None):
    """Begin or go on."""
    return distill(Mean(), data, SETTINGS, run, resume=True, watch=watch)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    run = RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    start(data, run)
    return leavings(run.path)


def hidden(folder):
    return [path.name for path in folder.rglob(".*")]


class Failing:
    """Calls of the system that write, of which one fails as on a full disk."""

    def __init__(self, patch, number):
        self.number, self.calls = number, 0
        for name in ("replace", "fsync", "link"):
            patch.setattr(os, name, self.counting(getattr(os, name)))
        patch.setattr(atomic, "append", self.cut_off(atomic.append))
        patch.setattr("mim4dd.distill.runs.directory.append", self.cut_off(atomic.append))

    def due(self):
        self.calls += 1
        return self.calls == self.number

    def counting(self, function):
        def call(*arguments):
            if self.due():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return call

    def cut_off(self, function):
        def call(path, content):
            if not self.due():
                return function(path, content)
            function(path, content[:20])
            raise OSError(errno.ENOSPC, f"{path} could not be written (No space left on device)")

        return call


def test_whichever_write_of_a_run_fails_it_goes_on_bit_for_bit(data, whole, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        calls = Failing(patch, -1)
        start(data, RunDirectory(tmp_path / "counted"))
    refused = 0
    for number in range(1, calls.calls + 1):
        run = RunDirectory(tmp_path / str(number))
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, number)
            try:
                start(data, run)
            except OSError as error:
                refused += 1
                said = error.strerror
                assert re.match(rf"{run.path}/\S+ could not be .*\(No space left on device\)", said)
                if run.checkpoint.exists():
                    run.load_checkpoint()
                    assert f"from its last checkpoint by --resume {run.path}" in said
        assert hidden(run.path) == []
        start(data, run)
        assert leavings(run.path) == whole, f"after call {number} of {calls.calls}"
    assert refused > calls.calls // 2  # where links fail, copies are made


@pytest.fixture
def disk(tmp_path):
    """A disk of a size, as root may make one."""
    place, mounted = tmp_path / "disk", []

    def mount(*options):
        place.mkdir(exist_ok=True)
        again = ["remount"] if mounted else []
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*again, *options]), "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no mount: {error}")
        if done.returncode:
            pytest.skip(f"tmpfs cannot be mounted: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_run_goes_on_once_its_disk_has_room_and_may_be_written(data, whole, disk):
    run = RunDirectory(disk("size=24k") / "run")
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\)"):
        start(data, run)
    disk("size=4m")
    start(data, run)
    assert leavings(run.path) == whole
    disk("ro")
    assert start(data, run).image_syn.shape == (3, 1, 8, 8)  # what is finished is read
    with pytest.raises(OSError, match=r"/new cannot be written \(Read-only file system\); choose"):
        start(data, RunDirectory(run.path.parent / "new"))


def test_a_folder_that_vanishes_is_not_made_anew(data, whole, tmp_path):
    run, away = RunDirectory(tmp_path / "run"), tmp_path / "away"
    for iteration in (1, 2, 3, 5):

        def watch(moment, iteration=iteration):
            if moment.iteration == iteration:
                run.path.rename(away)

        with pytest.raises(OSError, match="run was removed or moved while a command was at work"):
            start(data, run, watch)
        assert os.listdir(tmp_path) == ["away"]
        away.rename(run.path)
        assert hidden(run.path) == []
    start(data, run)
    assert leavings(run.path) == whole


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic.write_text(path, "text"),
        lambda path: atomic.link(path.parents[3] / "source", path),
        lambda path: RunDirectory(path).save_json(path / "a.json", {}),
        lambda path: replacing_folder(path).__enter__(),
    ],
)
def test_whatever_is_written_in_a_folder_that_vanished_is_refused(write, tmp_path):
    (tmp_path / "source").touch()
    with hold(tmp_path / "out"):
        (tmp_path / "out").rename(tmp_path / "away")
        with pytest.raises(FileNotFoundError, match="out was removed or moved while a command"):
            write(tmp_path / "out" / "a" / "b" / "c")
        atomic.write_text(tmp_path / "elsewhere", "text")
    assert sorted(os.listdir(tmp_path)) == ["away", "elsewhere", "source"]


def test_experts_that_vanish_are_not_fewer(data, tmp_path, monkeypatch):
    folder, save = tmp_path / "experts", atomic.save_tensors

    def save_and_lose(path, *parts):
        save(path, *parts)
        shutil.rmtree(folder)

    monkeypatch.setattr("mim4dd.distill.experts.buffer.save_tensors", save_and_lose)
    with pytest.raises(OSError, match="experts was removed or moved while a command was at work"):
        make_experts(data, folder)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("jump", [-86_400, -2e9, 3e8], ids=["a day back", "to 1970", "years on"])
def test_the_clock_may_jump(jump, data, whole, tmp_path, monkeypatch):
    """Between any two calls, and files may be of any time."""
    clock, run = [time.time()], RunDirectory(tmp_path / "run")

    def now():
        clock[0] += jump
        return clock[0]

    monkeypatch.setattr(time, "time", now)
    monkeypatch.setattr(tqdm.std, "time", now)

    class Stopped(Exception):
        pass

    def watch(moment):
        for path in run.path.rglob("*"):
            os.utime(path, (now() % 2**31, now() % 2**31))
        if moment.iteration == 3:
            raise Stopped

    with pytest.raises(Stopped):
        start(data, run, watch)
    start(data, run)
    assert leavings(run.path) == whole
    assert all(0 <= row.get("seconds", 0) < 60 for row in run.read_metrics())
    assert 0 < run.read_checkpoint_header()["seconds"] < 120


def test_what_a_kill_leaves_between_writing_and_renaming_is_never_read(data, whole, tmp_path):
    run = RunDirectory(tmp_path / "run")

    class Killed(BaseException):
        pass

    def watch(moment):
        if moment.iteration == 3:
            raise Killed

    with pytest.raises(Killed):
        start(data, run, watch)
    for path in (run.checkpoint, run.metrics, run.synthetic, run.kept_set(3), run._kept(2)):
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.{'0' * 32}").write_bytes(b"half")
    assert run.iterations() == [0, 2]
    assert not run.finished
    start(data, run)
    assert leavings(run.path) == whole
    assert hidden(run.path) == []


def test_nothing_is_written_through_links_out_of_a_run(data, whole, tmp_path):
    """As somebody else's directory may have them."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine\n")
    for name in ("checkpoints", "sets"):
        run = RunDirectory(tmp_path / f"of_{name}")
        run.path.mkdir()
        (run.path / name).symlink_to(outside)
        with pytest.raises(ValueError, match=f"{name} is a link out of .*: replace it by a folder"):
            start(data, run)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(OSError, match=r"metrics\.jsonl could not be written \(it is a link\)"):
        start(data, run, lambda _: linked(run.metrics, outside / "file"))
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "mine\n"


def test_events_on_a_full_disk_are_refused_and_nothing_of_them_is_in_the_way(
    data, tmp_path, monkeypatch
):
    """tensorboardX's own writer would wait for ever for a thread that died."""
    library = pytest.importorskip("tensorboardX")
    run = RunDirectory(tmp_path / "run")
    start(data, run)
    write, written = library.RecordWriter.write, []

    def write_some(writer, content):
        written.append(content)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, content)

    with monkeypatch.context() as patch:
        patch.setattr(library.RecordWriter, "write", write_some)
        with pytest.raises(OSError, match=r"events\.out\.\S+ could not be written \(No space left"):
            export_tensorboard(run, [], tmp_path / "events")
    assert os.listdir(tmp_path / "events") == []
    path = export_tensorboard(run, [], tmp_path / "events")
    assert {key[0] for key in scalars_of(events_of(path))} == set(range(7))


def test_a_worker_that_dies_is_one_sentence(monkeypatch):
    def die():
        raise WorkerError("worker 0 was killed by SIGKILL, at task 3")

    monkeypatch.setattr("mim4dd.cli.app", die)
    assert exit_status("sweep") == "mim4dd: worker 0 was killed by SIGKILL, at task 3"


def linked(path, target):
    """Have a link in the place of a file, once."""
    if not path.is_symlink() and path.exists():
        path.unlink()
        path.symlink_to(target)


def test_neither_pictures_nor_events_go_through_links(tmp_path, capfd):
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    words = f"distill {TINY} --iterations 1 --eval-every 0 --out {run}"
    run.mkdir()
    (run / "tensorboard").symlink_to(outside)
    status = exit_status(*words.split(), "--log", "tensorboard")
    assert status.startswith(f"mim4dd: {run}/tensorboard is a link out of {run}, where nothing")
    (run / "pictures").symlink_to(outside)
    assert exit_status(*words.split()).startswith(f"mim4dd: {run}/pictures is a link out of {run}")
    status, _, said = outcome(capfd, "show", run, "--no-features")
    assert (status, said.splitlines()[-1].partition(",")[0]) == (
        1, f"mim4dd: {run}/pictures is a link out of {run}"
    )  # fmt: skip
    (run / "pictures").unlink()
    assert exit_status("show", run, "--no-features") == 0
    assert os.listdir(outside) == []
