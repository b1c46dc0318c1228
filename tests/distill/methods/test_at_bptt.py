"""AT-BPTT: where windows lie, when stages end, and the loss by a naive unroll."""

import dataclasses
import itertools
import math
import random
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from naive_bptt import make_set, naive_adam
from tiny import doubled, make_data, make_network, maker, same_after_a_stop, stream

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.methods.at_bptt import ATBPTT, ATBPTTSettings, truncate
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.training.network import seeded_network
from mim4dd.unroll import flatten_parameters

# Of the 36 training images, 12 are judged in an iteration, so a pass has three.
SETTINGS = ATBPTTSettings(
    syn_steps=6, window=3, window_change=2, inner_lr=0.01, batch_syn=4, batch_target=12
)


def drawn_from_softmax(norms, share):
    weights = [math.exp(norm - max(norms)) for norm in norms]
    total = 0.0
    for step, weight in enumerate(weights):
        total += weight / sum(weights)
        if share <= total:
            return step
    return len(norms) - 1


def by_hand(stage, norms, share, steps, window, change):
    if stage == 2:
        return int(share * (steps - window - change + 1)), window + change
    step = drawn_from_softmax(norms, share)
    if stage == 3:
        return max(0, steps - step - (window - change)), window - change
    changes = [0, *(abs(now - last) for last, now in itertools.pairwise(norms))]
    rank = sorted(changes).index(changes[step])
    length = window - change + math.floor(Fraction(2 * change * rank, steps))
    return min(step, steps - length), length


def test_windows_lie_where_the_table_says():
    chosen = set()
    for _ in range(300):
        steps = random.choice([8, 25])
        window = random.randint(2, steps // 2)
        change = random.randint(0, window - 1)
        norms = [random.choice([0.1, 1.0, 2 * random.random()]) for _ in range(steps)]
        for stage in (1, 2, 3):
            share = random.random()
            found = truncate(
                stage,
                None if stage == 2 else torch.tensor(norms, dtype=torch.float64),
                share,
                num_steps=steps,
                window=window,
                change=change,
            )
            assert found == by_hand(stage, norms, share, steps, window, change)
            skipped, length = found
            assert 0 <= skipped <= steps - length
            assert window - change <= length <= window + change
            chosen.add((stage, found))
    assert len(chosen) > 100


def test_a_share_that_rounding_leaves_out_is_the_last_step():
    norms = torch.zeros(3, dtype=torch.float64)
    assert truncate(3, norms, 1.0, num_steps=3, window=1, change=0) == (0, 1)


def test_stages_end_where_the_accuracy_hardly_grows():
    method = ATBPTT(lambda seed: None, dataclasses.replace(SETTINGS, syn_steps=20))
    progress = method.progress
    stages = []

    def passes(count, gain):
        for _ in range(count):
            accuracy = progress.last_accuracy + gain
            progress.judged, progress.accuracy_sum = 2, 2 * accuracy
            progress.end_pass(20)
            stages.append(progress.stage)

    passes(2, 0.014)  # 3 = 0.15 · 20 in a row end the first stage
    passes(1, 0.016)
    passes(2, 0.014)
    assert set(stages) == {1}
    passes(1, 0.014)
    assert stages.pop() == 2
    passes(5, 0.012)  # as fast as the second stage needs
    passes(2, -0.1)
    assert set(stages[5:]) == {2}
    passes(1, 0.009)  # 2.5 = 0.125 · 20, so after the third
    assert stages.pop() == 3
    passes(9, 0.0)
    assert stages.pop() == 3


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_the_loss_is_the_definition(norm, stage):
    data = doubled(make_data())
    make = maker(data, norm)
    image_syn, label_syn = make_set(data)
    settings = dataclasses.replace(SETTINGS, num_networks=2)
    method = ATBPTT(make, settings)
    method.progress.stage = stage
    outcome = method.loss(image_syn, label_syn, torch.tensor(0.1), RealData(data, stream()))

    real = RealData(data, stream())
    networks = [make(real.seed()) for _ in range(2)]
    norms = None
    if stage != 2:
        probe = make(real.seed())
        call, theta = FunctionalModel(probe), flatten_parameters(probe).detach()
        batches = settings.schedule(len(image_syn), 6, real.generator)
        real.seed()
        norms = []
        for step, rows in enumerate(batches):
            at = naive_adam(call, theta, image_syn, label_syn, batches[:step], 1).detach()
            at.requires_grad_()
            loss = F.cross_entropy(call(at, image_syn[rows]), label_syn[rows])
            norms.append(torch.autograd.grad(loss, at)[0].norm().item())
    share = torch.rand((), generator=real.generator, dtype=torch.float64).item()
    skipped, window = by_hand(stage, norms, share, 6, 3, 2)
    batches = settings.schedule(len(image_syn), skipped + window, real.generator)
    real.seed()
    images, labels = real.sample(12)
    expected, hits = 0, 0
    for network, compared in zip(networks, outcome.compared, strict=True):
        call = FunctionalModel(network)
        start = flatten_parameters(network)
        theta = naive_adam(call, start, image_syn, label_syn, batches, window)
        torch.testing.assert_close(compared.theta_syn, theta)
        logits = call(theta, images)
        hits += (logits.argmax(1) == labels).sum().item()
        expected = expected + F.cross_entropy(logits, labels) / 2
    torch.testing.assert_close(outcome.value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, (image_syn, label_syn)),
        torch.autograd.grad(expected, (image_syn, label_syn)),
        rtol=1e-6,
        atol=1e-9,
    )
    assert outcome.metrics == {
        "target_loss": outcome.value.item(),
        "target_accuracy": hits / 24,
        "stage": stage,
        "window": window,
        "window_start": skipped,
    }


def test_a_window_serves_a_pass():
    data = make_data()
    image_syn, label_syn = data.sample(2, stream())
    probes = []

    def make(seed):
        return seeded_network(lambda: make_network(data), seed)

    method = ATBPTT(make, SETTINGS)
    gradient_norms = method._gradient_norms
    method._gradient_norms = lambda *given: probes.append(None) or gradient_norms(*given)
    assert len(data.image_train) == 36
    places = []
    for seed in range(6):
        metrics = method.loss(
            image_syn, label_syn, torch.tensor(0.1), RealData(data, stream(seed))
        ).metrics
        places.append((metrics["window_start"], metrics["window"]))
    assert len(set(places[:3])) == len(set(places[3:])) == 1
    assert len(probes) == 2


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    data = make_data()
    settings = LoopSettings(iterations=5, checkpoint_every=2, optimizer_img="adam", lr_img=0.01)

    def make():
        return ATBPTT(
            lambda seed: seeded_network(lambda: make_network(data), seed),
            dataclasses.replace(SETTINGS, dsa_strategy="crop_scale"),
        )

    assert same_after_a_stop(make, data, settings, tmp_path)


def test_the_stage_is_in_the_state():
    method, other = (ATBPTT(lambda seed: None, SETTINGS) for _ in range(2))
    method.progress.stage, method.progress.accuracy_sum = 2, 0.1
    other.restore({})
    assert other.progress.stage == 1
    other.restore(method.state())
    assert other.progress == method.progress
    with pytest.raises(ValueError, match=r"the checkpoint must hold .* for AT-BPTT, got .*theta"):
        other.restore({"theta": torch.zeros(3)})


def test_what_cannot_be_used_is_refused():
    for change in ({"window_change": 3}, {"window": 5}, {"window": 7}, {"window": None}):
        settings = dataclasses.replace(SETTINGS, **change)
        with pytest.raises(ValueError, match=r"window(_change)? must be"):
            ATBPTT(lambda seed: None, settings)
    with pytest.raises(ValueError, match="window_change must be at least 0"):
        dataclasses.replace(SETTINGS, window_change=-1)
