"""What every rank runs in test_ranks and test_shared_tasks; children that start fast."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import sys

import torch
from sgd_steps import acting_at
from tiny import make_data, make_network, maker

from mim4dd.__main__ import main
from mim4dd._unroll.diagnostics import DivergenceError
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.base import BaseMethod, Objective
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.ranks import joined_ranks, num_ranks, rank, share, sharing
from mim4dd.distill.training import kept
from mim4dd.distill.training.network import seeded_network

SETTINGS = LoopSettings(iterations=6, lr_img=0.1, lr_lr=0.0, checkpoint_every=1)


def hold_together(rank, folder):
    """1 where the rank was refused the run, 0 where it held it."""
    run = RunDirectory(folder, read_only=rank != 0)
    try:
        with run.held(torch.device("cpu")), run.held(torch.device("cpu")):
            return torch.tensor(0)
    except BlockingIOError:
        return torch.tensor(1)


class Mean(BaseMethod):
    """Match the mean image. The second rank may fail in iteration 3."""

    def __init__(self, fails):
        self.fails = fails

    def identity(self):
        return {"class": "Mean"}  # whether it fails or not

    def loss(self, image_syn, label_syn, syn_lr, real):
        if self.fails and rank() == 1 and real.iteration == 3:
            raise DivergenceError(2, "the loss of step 2 is nan")
        images, _ = real.sample(8)
        return Objective((image_syn.mean(0) - images.mean(0)).square().sum(), [])


def make_dc(data):
    """Networks that serve in several iterations, so that a checkpoint must hold them."""
    settings = DCSettings(outer_loop=4, lr_net=0.1, batch_real=4)
    return DC(lambda seed: seeded_network(lambda: make_network(data), seed), settings)


def make_sre2l(data):
    """Six steps of a teacher, another six, and then the images'."""
    settings = SRe2LSettings(num_networks=2, squeeze_epochs=2, squeeze_batch=16)
    return SRe2L(maker(data, "batch"), data, 0, settings)


def _stop_teachers_at(number):
    """Be asked to stop in a step of theirs; each is written as if it took a minute."""
    kept._SECONDS = 0.0
    torch.optim.SGD.step, _ = acting_at(number, lambda: signal.raise_signal(signal.SIGTERM))


def who_does(task):
    """A task, by which process, and which rank of how many that takes itself for."""
    return task, os.getpid(), rank(), num_ranks()


def _start(worker):
    return who_does


def _note_who_does_what(path):
    with sharing():
        shared = share(who_does, range(5))
        in_worker = dict(run_parallel(_start, list("abc"), 1))
    everything = share(who_does, range(5))
    values = {"pid": os.getpid(), "shared": shared, "everything": everything}
    path.write_text(json.dumps(values | {"in_worker": sorted(in_worker.items())}))


# Children are forked from a server that has imported everything, and so start within milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["mim4dd.__main__", "mim4dd.cli"])


def run_ranks(scenario, folder):
    """Run a scenario on two ranks; return the exit status and standard error of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [
        _SERVER.Process(target=_main, args=(scenario, folder, rank, port)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    hanging = [child for child in children if child.is_alive()]
    for child in hanging:
        child.kill()
    assert not hanging
    return [
        (child.exitcode, (folder / f"{rank}.err").read_text())
        for rank, child in enumerate(children)
    ]


def _main(scenario, folder, rank, port):
    descriptor = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if scenario.startswith("mim4dd "):
        os.chdir(folder)
        sys.argv = scenario.split()
        sys.stdout = open(f"{rank}.out", "w")  # noqa: SIM115 - until this process ends
        main()
        return
    if scenario == "shares":
        with joined_ranks("cpu"):
            _note_who_does_what(folder / f"{rank}.json")
        return
    data = make_data()
    with joined_ranks("cpu"):
        if scenario.startswith("dc"):
            name, iterations = scenario.split()[1:]
            settings = dataclasses.replace(SETTINGS, iterations=int(iterations))
            run = RunDirectory(folder / name, read_only=rank != 0)
            run.path.mkdir(exist_ok=True)
            distill(make_dc(data), data, settings, run, resume=True)
            return
        if scenario.startswith("sre2l"):
            name, stop = scenario.split()[1:]
            run = RunDirectory(folder / name, read_only=rank != 0)
            run.path.mkdir(exist_ok=True)
            _stop_teachers_at(int(stop))
            distill(make_sre2l(data), data, SETTINGS, run, resume=True)
            return
        blind = scenario == "blind" and rank == 1  # does not see the first one's files
        run = RunDirectory(folder / ("elsewhere" if blind else "run"), read_only=rank != 0)
        if scenario == "diverges":
            run.create(dataclasses.asdict(SETTINGS))
        resume = scenario != "diverges"
        distill(Mean(fails=scenario == "diverges"), data, SETTINGS, run, resume=resume)
