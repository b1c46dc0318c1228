"""One process at a time works in a folder: who is refused, who is not, and what the dead hold."""

import errno
import fcntl
import os
import signal
import threading
import time

import pytest
from command_line import exit_status
from on_ranks import on_ranks
from ranked import hold_together

from mim4dd.distill.files import hold as hold_module
from mim4dd.distill.files.hold import hold
from mim4dd.distill.runs import RunDirectory

TINY = "--width 4 --depth 1 --num-eval 1 --eval-epochs 1"
DM = f"--method dm --batch-real 4 --iterations 2 {TINY}"


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    monkeypatch.setattr(hold_module, "_TRIES", 2)


def take(folder):
    with hold(folder):
        pass


def other_process(folder, held):
    """A process that holds the folder until it is killed; ``held`` says when it does."""
    child = os.fork()
    if child == 0:
        try:
            with hold(folder):
                held.touch()
                time.sleep(600)
        finally:
            os._exit(1)
    while not held.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    return child


def test_another_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    folder = tmp_path / "run"
    child = other_process(folder, tmp_path / "held")
    try:
        refusal = rf"run is in use: process {child} on {os.uname().nodename} is at work there; "
        with pytest.raises(BlockingIOError, match=refusal):
            take(folder)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.listdir(folder) == [".lock"]
    take(folder)
    assert os.listdir(folder) == []


def test_a_fork_of_the_holder_holds_nothing_and_ends_nothing(tmp_path):
    parent = os.getpid()
    try:
        with hold(tmp_path):
            child = os.fork()
            if child == 0:
                raise SystemExit  # out of the block
            os.waitpid(child, 0)
            assert os.listdir(tmp_path) == [".lock"]
            child = os.fork()
            if child == 0:
                time.sleep(600)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    try:
        take(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_another_thread_is_refused_and_whoever_holds_a_run_may_do_so_again(tmp_path):
    run, refusals = RunDirectory(tmp_path), []

    def work():
        try:
            with run.held():
                pass
        except BlockingIOError as error:
            refusals.append(str(error))

    with run.held(), run.held():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert f"process {os.getpid()} on" in refusals[0]
    with RunDirectory(tmp_path, read_only=True).held(), run.held():  # of the ranks one holds it
        pass


def test_ranks_hold_a_run_together_and_are_refused_together(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    assert sum(on_ranks(2, hold_together, tmp_path, folder)) == 0
    with hold(folder):
        assert sum(on_ranks(2, hold_together, tmp_path, folder)) == 2
    assert os.listdir(folder) == []


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path):
    with hold(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert os.listdir(tmp_path) == []
    with hold(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert os.listdir(tmp_path / "a" / "b") == ["file"]


@pytest.mark.parametrize("make", [os.symlink, os.link, lambda _, path: os.mkfifo(path)])
def test_nothing_is_written_through_a_link(make, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("mine")
    folder.mkdir()
    make(outside, folder / ".lock")
    with pytest.raises(OSError, match=r"\.lock cannot be locked \(it is .*link.*; remove it if"):
        take(folder)
    assert outside.read_text() == "mine"
    assert os.listdir(folder) == [".lock"]


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks .*see to it that no other process works"):
        take(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_needs_no_lock(tmp_path, monkeypatch):
    whole = os.open

    def refuse(path, flags, *more, **place):
        if path == ".lock":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return whole(path, flags, *more, **place)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=r"cannot be locked \(Read-only file system\)"):
        take(tmp_path)  # where others may write
    monkeypatch.setattr(os, "access", lambda *_: False)
    take(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"/a cannot be written .*; choose another place"):
        take(tmp_path / "file" / "a")


def test_a_folder_that_is_moved_or_replaced_is_not_there(tmp_path):
    folder = tmp_path / "run"
    with hold(folder) as held:
        held.require_there()
        folder.rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match="run was removed or moved while a command"):
            held.require_there()
        folder.mkdir()
        with hold(folder), pytest.raises(FileNotFoundError, match="was removed or moved"):
            held.require_there()  # the other one is another's
    assert os.listdir(tmp_path / "moved") == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert exit_status(*f"distill {DM} --weight 0 --out {folder}".split()) == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "experts --width 4 --depth 1 --num-experts 1 --train-epochs 1 --out {}",
        f"distill {DM} --out {{}}",
        f"compare {DM} --num-keys 40 --out {{}}",
        f"sweep {DM} --vary weight=0,1 --seeds 1 --out {{}}",
        f"sweep {DM} --vary weight=0.1..1 --search 1 --seeds 1 --out {{}}",
        "reproduce digits-dm-ipc1-0 --out {} --results {}/results",
    ],
    ids=lambda command: command.split()[0] + (" --search" if "--search" in command else ""),
)
def test_a_second_command_is_refused_before_it_writes(command, tmp_path):
    if "--search" in command:
        pytest.importorskip("optuna")
    folder = tmp_path / "out"
    with hold(folder):
        status = exit_status(*command.format(folder, tmp_path).split())
        assert status.startswith(f"mim4dd: {folder} is in use: process {os.getpid()} on ")
        assert os.listdir(folder) == [".lock"]
    assert os.listdir(tmp_path) == []


def test_who_reads_a_run_waits_for_nobody(finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*.safetensors")}
    with hold(finished):
        status = exit_status("distill", "--resume", finished)
        assert status.startswith(f"mim4dd: {finished} is in use: ")
        assert exit_status("show", finished, "--no-features", "--html", tmp_path / "a.html") == 0
        assert exit_status("evaluate", finished, "--no-baselines", "--csv", tmp_path / "a.csv") == 0
    assert before == {path: path.read_bytes() for path in finished.rglob("*.safetensors")}


def test_a_run_that_is_evaluated_in_python_is_noted_by_one_process(finished):
    from mim4dd import distill

    run = distill.open_run(finished)
    with hold(finished), pytest.raises(BlockingIOError, match="is in use"):
        run.evaluate(baselines=False)
    table = run.evaluate(seeds=2, baselines=False)
    assert [len(accuracy.values) for row in table.values() for accuracy in row.values()] == [2]
    assert not (finished / ".lock").exists()
