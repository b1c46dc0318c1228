"""How the loop steps the images: optimisers, weight decay, a step size that halves, clipping."""

import dataclasses

import pytest
import torch
from tiny import make_data, same_after_a_stop

from mim4dd.distill.data import from_tensors
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.loop.plateau import Plateau
from mim4dd.distill.methods.base import BaseMethod, Objective
from mim4dd.distill.runs import RunDirectory, SyntheticSet


class Constant(BaseMethod):
    """A loss of one gradient everywhere, with values as given."""

    def __init__(self, gradient, values=None):
        self.gradient, self.values = gradient, values

    def identity(self):
        return {}

    def loss(self, image_syn, label_syn, syn_lr, real):
        value = self.gradient * image_syn.sum()
        if self.values is not None:
            value = value - value.detach() + self.values[real.iteration]
        return Objective(value, [])


class Falling(Constant):
    """A gradient that is another one in every iteration, so that averages of it matter."""

    def loss(self, image_syn, label_syn, syn_lr, real):
        return Objective(self.gradient / (1 + real.iteration) * image_syn.sum(), [])


def distilled(method, folder, **options):
    run = RunDirectory(folder)
    run.create({})
    options = {"iterations": 3, "lr_img": 0.1, "eval_every": 0} | options
    result = distill(method, make_data(), LoopSettings(**options), run)
    return SyntheticSet.load(run.initial).image_syn, result.image_syn


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_optimisers_are_those_of_torch(name, decay, tmp_path):
    before, after = distilled(
        Constant(0.7), tmp_path / "run", optimizer_img=name, weight_decay_img=decay
    )
    images = before.clone().requires_grad_()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    momentum = {"momentum": 0.5} if name == "sgd" else {}
    optimizer = kind([images], 0.1, weight_decay=decay, **momentum)
    for _ in range(3):
        images.grad = torch.full_like(images, 0.7)
        optimizer.step()
    torch.testing.assert_close(after, images.detach())


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_averages_and_a_cosine_are_those_of_torch(name, tmp_path):
    options = {"optimizer_img": name, "beta1_img": 0.5, "beta2_img": 0.9, "cosine_img": True}
    before, after = distilled(Falling(0.7), tmp_path / "run", **options)
    images = before.clone().requires_grad_()
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    optimizer = kind([images], 0.1, betas=(0.5, 0.9), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    for iteration in range(3):
        images.grad = torch.full_like(images, 0.7 / (1 + iteration))
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(after, images.detach())
    assert schedule.get_last_lr()[0] == pytest.approx(0)


def test_the_step_size_halves_where_the_loss_stops_falling(tmp_path):
    values = [3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 4.0, 0.5]
    before, after = distilled(
        Constant(0.1, values), tmp_path / "run", iterations=9, patience_img=1, ema_decay=0.0,
        optimizer_img="adamw",
    )  # fmt: skip
    # AdamW steps by lr against a constant gradient. 2.0 and 2.5 are two in a row that are no new
    # least, and so are 1.0 and 1.0; what follows them, 4.0, is the first of the next ones.
    steps = [0.1] * 4 + [0.05] * 3 + [0.025] * 2
    expected = before
    for step in steps:
        expected = expected - step
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)


def test_a_plateau_goes_on_from_its_state():
    def make(lr):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr)
        return optimizer, Plateau(optimizer, lr, patience=2)

    optimizer, plateau = make(8.0)
    assert plateau.state()["least"] is None
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        plateau.step(loss)
    assert optimizer.param_groups[0]["lr"] == 4.0
    other, again = make(6.0)  # a step size may be another one when a run goes on
    again.restore(plateau.state())
    assert other.param_groups[0]["lr"] == 3.0
    for loss in (1.0, 1.0):
        again.step(loss)
    assert other.param_groups[0]["lr"] == 1.5
    fresh, unknown = make(2.0)
    unknown.restore({})
    assert fresh.param_groups[0]["lr"] == 2.0


@pytest.mark.parametrize("zca", [False, True])
def test_clipped_images_have_valid_pixels(zca, tmp_path):
    data = make_data()
    if zca:
        data = from_tensors(
            data.normalization.inverse(data.image_train), data.label_train, name="z", zca=True
        )
    for clip in (False, True):
        run = RunDirectory(tmp_path / f"{clip}")
        run.create({})
        settings = LoopSettings(iterations=1, lr_img=2.0, eval_every=0, clip_img=clip)
        result = distill(Constant(1.0), data, settings, run)
        pixels = result.pixels
        assert (pixels.min() < -0.1) != clip
        started = data.normalization.inverse(SyntheticSet.load(run.initial).image_syn)
        stepped = data.normalization(started) - 2.0
        expected = data.normalization.inverse(stepped)
        expected = expected.clamp(0, 1) if clip else expected
        torch.testing.assert_close(pixels, expected, rtol=1e-4, atol=1e-5)


def test_a_stopped_run_continues_bit_for_bit(tmp_path):
    settings = LoopSettings(
        iterations=5, checkpoint_every=2, lr_img=0.1, optimizer_img="adamw", patience_img=1,
        clip_img=True, weight_decay_img=0.1,
    )  # fmt: skip
    values = [1.0, 1.0, 2.0, 2.0, 2.0]
    assert same_after_a_stop(lambda: Constant(0.1, values), make_data(), settings, tmp_path)
    cosine = dataclasses.replace(settings, patience_img=0, cosine_img=True, beta1_img=0.5)
    assert same_after_a_stop(lambda: Falling(0.1), make_data(), cosine, tmp_path / "cosine")


def test_what_cannot_be_used_is_refused(tmp_path):
    rows = from_tensors(torch.rand(30, 5), torch.arange(30) % 3, name="table")
    with pytest.raises(ValueError, match="clip_img must be False for data of rows, as table is"):
        distill(Constant(1.0), rows, LoopSettings(clip_img=True), RunDirectory(tmp_path))
    for name in ("weight_decay_img", "patience_img"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            LoopSettings(**{name: -1})
    for name in ("beta1_img", "beta2_img"):
        with pytest.raises(ValueError, match=rf"{name} must lie in \[0, 1\), got 1.0"):
            LoopSettings(**{name: 1.0})
    with pytest.raises(ValueError, match="patience_img must be 0 beside cosine_img"):
        LoopSettings(cosine_img=True, patience_img=3)
