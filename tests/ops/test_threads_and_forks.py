"""Losses and the unroll in several threads at once, in forks and loaders, on any number of threads.

Bits are those of one call after another. What could wait for ever runs in a process with a limit.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import every_op
import pytest
import torch
from every_op import make_cases, same
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import mim4dd
from mim4dd._turns import alone_in, differentiable_attention
from mim4dd.adapters.reparam_module import ReparamModule
from mim4dd.distill.training.features import layer_features
from mim4dd.distill.training.network import seeded_network

LIMIT = 120  # seconds, of what takes a few


@pytest.fixture
def set_threads():
    """Set the number of threads of torch's operators for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def at_once(*functions):
    """What they return, each run by a thread of its own; raises what one raised."""
    results, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def run(index):
        barrier.wait(LIMIT)
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_get_what_one_call_after_another_gets(num_threads, set_threads, monkeypatch):
    set_threads(num_threads)
    monkeypatch.setattr(every_op, "SEED", torch.initial_seed())
    cases = make_cases()
    names = list(cases)
    serial = {name: cases[name]() for name in names}

    def all_from(first):
        torch.set_num_threads(num_threads)  # a thread that PyTorch meets first has its own number
        return {name: cases[name]() for name in names[first:] + names[:first]}

    for found in at_once(*(lambda first=first: all_from(first) for first in (0, 4, 8, 9))):
        assert same(found, serial) == []


def attentive():
    """A network that attends, and whose maps go through it in channels-last."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)),
        nn.Flatten(2),
        nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


def test_threads_take_turns_in_one_model_and_leave_it_as_it_was(set_threads):
    set_threads(1)
    model = attentive()
    student = ReparamModule(model)
    before, flags = list(model.parameters()), torch.backends.cuda.flash_sdp_enabled()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    images, labels = torch.randn(4, 1, 4, 4), torch.arange(4) % 3
    batches = torch.stack([torch.randperm(4) for _ in range(4)])
    theta = mim4dd.flatten_parameters(model)
    starts = [theta + 0.01 * torch.randn_like(theta) for _ in range(2)]

    def unrolled(start):
        start, pixels = start.clone().requires_grad_(), images.clone().requires_grad_()
        theta_T = mim4dd.unroll_sgd(model, start, pixels, labels, batches, lr=0.1)
        return torch.autograd.grad(theta_T.square().sum(), (start, pixels))

    functions = [
        *(lambda start=start: unrolled(start) for start in starts),
        lambda: [student(images, flat_param=starts[0]) for _ in range(8)],
        lambda: [layer_features(model, starts[1], images, ["1"])[0] for _ in range(8)],
        lambda: [mim4dd.flatten_parameters(model) for _ in range(8)],
    ]
    serial = [function() for function in functions]
    for _ in range(3):
        for mine, theirs in zip(at_once(*functions), serial, strict=True):
            assert all(torch.equal(*pair) for pair in zip(mine, theirs, strict=True))
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), before, strict=True))
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert torch.backends.cuda.flash_sdp_enabled() == flags


def test_models_that_share_a_module_take_turns():
    shared = nn.Linear(2, 2)
    one, other = nn.Sequential(shared, nn.ReLU()), nn.Sequential(nn.ReLU(), shared)
    entered, order = threading.Event(), []

    def second():
        entered.wait(LIMIT)
        with alone_in(other):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with alone_in(one), alone_in(shared):  # a thread that is within may enter again
        entered.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_last_thread_to_leave_puts_the_process_s_attention_back():
    enabled = torch.backends.cuda.flash_sdp_enabled
    entered, leave = threading.Event(), threading.Event()

    def first():
        with differentiable_attention():
            entered.set()
            leave.wait(LIMIT)

    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(LIMIT)
        with differentiable_attention():
            leave.set()
            thread.join()
            assert not enabled()
        assert enabled()


def test_seeds_do_not_mix_in_threads():
    def draws(seed):
        def draw():
            first = torch.rand(3)
            time.sleep(0.01)  # lets the other threads run
            return torch.cat([first, torch.rand(3)])

        return seeded_network(draw, seed)

    serial = [draws(seed) for seed in range(4)]
    found = at_once(*(lambda seed=seed: draws(seed) for seed in range(4)))
    assert all(torch.equal(*pair) for pair in zip(found, serial, strict=True))


def test_any_number_of_threads_and_a_change_between_forward_and_backward(set_threads, monkeypatch):
    monkeypatch.setattr(every_op, "SEED", torch.initial_seed())
    cases = make_cases()

    by_one = None
    for count in (1, 8, 1):  # 8 are more than many machines have
        set_threads(count)
        found = {name: case() for name, case in cases.items()}
        by_one = found if by_one is None else by_one
        # Of sums the last bits may differ, but not for one number of threads.
        assert same(found, by_one if count == 1 else {"flat passes": by_one["flat passes"]}) == []
        for name, results in found.items():
            for mine, theirs in zip(results, by_one[name], strict=True):
                largest = theirs.abs().max().item()
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * largest)

    query, key = torch.randn(130, 40, requires_grad=True), torch.randn(400, 40, requires_grad=True)
    for forward, backward in ((1, 8), (8, 1)):
        set_threads(forward)
        loss = mim4dd.info_nce(query, key)
        set_threads(backward)
        changed = torch.autograd.grad(loss, (query, key))
        plain = torch.autograd.grad(mim4dd.info_nce(query, key, backend="reference"), (query, key))
        for mine, theirs in zip(changed, plain, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_forks_and_loaders_get_the_same_and_wait_for_nothing():
    done = subprocess.run(
        [sys.executable, every_op.__file__],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        # Threads that wait without spinning leave the processors to those that work.
        env=os.environ
        | {"MIM4DD_TEST_SEED": str(torch.initial_seed()), "OMP_WAIT_POLICY": "passive"},
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
