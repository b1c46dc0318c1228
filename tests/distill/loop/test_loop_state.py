"""What methods may ask of the loop: own starting points, soft labels, state, averaged images."""

import dataclasses

import pytest
import torch
from same_run import leavings
from tiny import make_data

from mim4dd import MIM4DDLoss
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.identity.describe import describe_object
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.loop.state import LoopState, Snapshot
from mim4dd.distill.methods.base import BaseMethod, Initial, Objective, RealData
from mim4dd.distill.runs import RunDirectory, SyntheticSet

SETTINGS = LoopSettings(
    ipc=2, iterations=9, lr_img=0.1, lr_y=0.5, ema_decay=0.8, checkpoint_every=4
)


class Learner(BaseMethod):
    """Pulls images to a target that it moves, and labels to the second class."""

    def __init__(self, die_at=None):
        self.target, self.die_at, self.seen = torch.zeros(()), die_at, []

    def identity(self):
        return describe_object(self, without=("target", "die_at", "seen"))

    def initial(self, real, ipc):
        images, labels = real.data.sample(ipc, real.generator)
        return Initial(images, 3.0 * torch.nn.functional.one_hot(labels).float())

    def state(self):
        return {"target": self.target}

    def restore(self, state):
        self.target = state["target"]

    def loss(self, image_syn, label_syn, syn_lr, real):
        if real.iteration == self.die_at:
            raise KeyboardInterrupt
        self.seen.append((real.iteration, image_syn.detach().clone(), label_syn.detach().clone()))
        self.target = self.target + torch.rand((), generator=real.generator)
        value = (image_syn - self.target).square().mean() - label_syn[:, 1].log().mean()
        return Objective(value, [], {"target": self.target.item()})


def run_in(path, method, settings=SETTINGS):
    run = RunDirectory(path)
    if not run.config.exists():
        run.create(dataclasses.asdict(settings))
    return run, distill(method, make_data_once(), settings, run, resume=True)


def make_data_once():
    torch.manual_seed(0)
    return make_data()


def test_soft_labels_are_learned(tmp_path):
    learner = Learner()
    run, result = run_in(tmp_path / "run", learner)
    first, last = learner.seen[0][2], result.label_syn
    torch.testing.assert_close(last.sum(1), torch.ones(6))
    assert first.argmax(1).tolist() == result.class_syn.tolist() == [0, 0, 1, 1, 2, 2]
    assert (last[:, 1] > first[:, 1]).all()
    stored = SyntheticSet.load(run.synthetic)
    assert torch.equal(stored.label_syn, last)
    assert torch.equal(SyntheticSet.load(run.initial).label_syn, first)


def test_the_result_is_the_moving_average_of_the_images(tmp_path):
    learner = Learner()
    _, result = run_in(tmp_path / "averaged", learner)
    _, last = run_in(tmp_path / "last", Learner(), dataclasses.replace(SETTINGS, ema_decay=0.0))
    images = [images for _, images, _ in learner.seen] + [last.image_syn]
    average = images[0]
    for image in images[1:]:
        average = 0.8 * average + 0.2 * image
    torch.testing.assert_close(result.image_syn, average)


@pytest.mark.parametrize("optimizer_img", ["sgd", "adam"])
@pytest.mark.parametrize("die_at", [1, 4, 7])
def test_state_labels_and_averages_continue_bit_for_bit(optimizer_img, die_at, tmp_path):
    settings = dataclasses.replace(SETTINGS, optimizer_img=optimizer_img)
    whole, _ = run_in(tmp_path / "whole", Learner(), settings)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "parts", Learner(die_at), settings)
    parts, _ = run_in(tmp_path / "parts", Learner(), settings)
    assert leavings(whole.path) == leavings(parts.path)


@pytest.mark.parametrize("optimizer_img", ["sgd", "adam"])
def test_optimisers_continue_on_the_device_of_what_they_step(optimizer_img, tmp_path):
    settings = dataclasses.replace(SETTINGS, optimizer_img=optimizer_img)
    run, _ = run_in(tmp_path / "run", Learner(), settings)
    elsewhere = torch.empty(6, 1, 8, 8, device="meta"), torch.empty(6, 3, device="meta")
    state = LoopState(Initial(*elsewhere), torch.arange(6), settings)
    state.restore(Snapshot(*run.load_checkpoint()))
    for name, optimizer in state.optimizers.items():
        carried = dict(optimizer.state[state.learned[name]])
        assert carried.pop("step", torch.zeros(())).device.type == "cpu"
        assert {tensor.device.type for tensor in carried.values()} <= {"meta"}
        assert carried


def test_iterations_draw_from_streams_of_their_own(tmp_path):
    _, result = run_in(tmp_path / "one", Learner())
    _, other = run_in(tmp_path / "two", Learner(), dataclasses.replace(SETTINGS, seed=1))
    run = RunDirectory(tmp_path / "one")
    targets = [row["target"] for row in run.read_metrics()[:-1]]
    steps = torch.tensor(targets).diff()
    assert len(set(steps.tolist())) == len(steps)
    assert not torch.equal(result.image_syn, other.image_syn)


class InPlace(Learner):
    """As an optimiser does it: the state is the live tensor."""

    def restore(self, state):
        self.target.copy_(state["target"])

    def loss(self, image_syn, label_syn, syn_lr, real):
        live = self.target
        outcome = super().loss(image_syn, label_syn, syn_lr, real)
        self.target = live.copy_(self.target)
        return outcome


def test_a_state_may_change_in_place(tmp_path):
    whole, _ = run_in(tmp_path / "whole", Learner())
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path / "parts", InPlace(die_at=7))
    parts, _ = run_in(tmp_path / "parts", InPlace())
    assert leavings(whole.path)[1] == leavings(parts.path)[1]  # of methods by two names


def returning(loss, initial=None):
    """A method of this loss of the images and of this start."""

    class Given(BaseMethod):
        def loss(self, image_syn, label_syn, syn_lr, real):
            return loss(image_syn)

        def initial(self, real, ipc):
            return initial

    return Given()


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (returning(lambda images: images.sum()), TypeError, "Given must return an Objective, got"),
        (returning(lambda images: Objective(0.5, [])), TypeError, "must be a tensor, got float"),
        (
            returning(lambda images: Objective(images.sum(0), [])),
            ValueError,
            r"value must be a scalar \(\), got \(1, 8, 8\)",
        ),
        (
            returning(lambda images: Objective(images.detach().sum(), [])),
            ValueError,
            "must depend on image_syn or label_syn, but sends gradients to neither",
        ),
        (
            returning(
                lambda images: Objective(
                    torch.zeros((), requires_grad=True) + images.data.sum(), []
                )
            ),
            ValueError,
            "must depend on image_syn or label_syn, but sends gradients to neither",
        ),
        (
            returning(None, Initial(torch.zeros(5, 1, 8, 8))),
            ValueError,
            r"initial must give image_syn \(6, 1, 8, 8\) for 2 images per class, got \(5, 1",
        ),
        (
            returning(None, Initial(torch.zeros(6, 1, 8, 8), torch.zeros(6))),
            ValueError,
            r"initial must give label_logits \(6, 3\) for 2 images per class, got \(6,\)",
        ),
        (
            MIM4DD(returning(lambda images: Objective(images.sum(), [])), MIM4DDLoss(), weight=1.0),
            ValueError,
            "Given must give the networks to compare in Objective.compared for MIM4DD, got none",
        ),
    ],
)
def test_a_method_that_cannot_work_is_told_why(method, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run_in(tmp_path / "run", method)


def test_classes_of_a_set_need_as_many_images_each():
    real = RealData(make_data_once(), torch.Generator())
    with pytest.raises(ValueError, match="num_images must be a multiple of the 3 classes, got 7"):
        real.class_syn(7)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    class Stateless(BaseMethod):
        def loss(self, image_syn, label_syn, syn_lr, real):
            return Objective(image_syn.square().mean(), [])

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_in(path, Learner(die_at=6))
    message = r"holds another run.*method\.class: '.*Learner' → '.*<locals>.Stateles"
    with pytest.raises(ValueError, match=message):
        run_in(path, Stateless())
    # A method that says nothing of itself is still held to what it carries.
    Stateless.identity = Learner.identity = lambda self: {}
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "silent", Learner(die_at=6))
        with pytest.raises(ValueError, match="must hold no state for Stateless, got target"):
            run_in(tmp_path / "silent", Stateless())
    finally:
        Learner.identity = _identity


_identity = Learner.identity


def test_a_checkpoint_without_the_average_that_is_asked_for_is_refused(tmp_path):
    path = tmp_path / "run"
    run_in(path, Learner(), dataclasses.replace(SETTINGS, ema_decay=0.0))
    with pytest.raises(ValueError, match=r"settings\.ema_decay: 0\.0 → 0\.8"):
        run_in(path, Learner())
