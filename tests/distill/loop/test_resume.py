"""A run directory holds one run: what else is refused, what may change, and going back."""

import dataclasses
import math
from functools import partial

import pytest
import torch
from same_run import leavings
from tiny import make_data, make_experts, make_network

from mim4dd import MIM4DDLoss, PositiveStepSize
from mim4dd.distill.add_ons.mutual_information import MIM4DD
from mim4dd.distill.data import from_tensors
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.identity.describe import describe_object
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.loop.settings import MAY_CHANGE
from mim4dd.distill.loop.state import LoopState
from mim4dd.distill.methods.base import BaseMethod, Initial, Objective
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.rat_bptt import RaTBPTT, RaTBPTTSettings
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.training.network import seeded_network

SETTINGS = LoopSettings(iterations=2, lr_img=0.1, lr_lr=0.0, checkpoint_every=1)
SOURCE = """
from mim4dd.distill.methods.base import Objective, BaseMethod

SCALE = 2.0
_POWERS = (1.0, 2.0)

class Mean(BaseMethod):
    '''Match the mean.'''

    def __init__(self, power=2):
        self.power = power

    def loss(self, image_syn, label_syn, syn_lr, real):
        # A comment.
        distance = image_syn.mean(0) - real.data.image_train.mean(0)
        return Objective(SCALE * penalty(distance, self.power), [])

def penalty(distance, power):
    return distance.abs().pow(power * _POWERS[0]).sum()
"""


def users(source=SOURCE, **arguments):
    """A user's method, as its program says it."""
    names = {"__name__": "program"}
    exec(compile(source, "program.py", "exec"), names)
    return names["Mean"](**arguments)


def fresh(network, data, seed):
    return seeded_network(lambda: network(data), seed)


def other(data, image_train):
    return dataclasses.replace(data, image_train=image_train)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return make_data()


def left(data, folder, method, settings=SETTINGS):
    run = RunDirectory(folder / "run")
    distill(method, data, settings, run)
    return run


def test_one_methods_result_is_not_anothers(data, tmp_path):
    """DM's set came back as RaT-BPTT's, since its shapes fit."""
    make = partial(fresh, make_network, data)
    run = left(data, tmp_path, DM(make, DMSettings(batch_real=4)))
    before = run.synthetic.read_bytes()
    rat = RaTBPTT(make, RaTBPTTSettings(syn_steps=2, batch_target=4))
    with pytest.raises(ValueError, match=r"already holds a run: continue it with .*resume=True"):
        distill(rat, data, SETTINGS, run)
    with pytest.raises(ValueError, match=r"method\.class: 'mim4dd.*\.DM' → 'mim4dd.*\.RaTBPTT'"):
        distill(rat, data, SETTINGS, run, resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        distill(DM(make, DMSettings(batch_real=4)), data, SETTINGS, run)
    again = distill(DM(make, DMSettings(batch_real=4)), data, SETTINGS, run, resume=True)
    assert torch.equal(again.image_syn, run.load_result().image_syn)
    assert run.synthetic.read_bytes() == before


@pytest.mark.parametrize(
    ("edited", "arguments", "what"),
    [
        (SOURCE.replace(".mean(0) -", ".mean(0) * 1.5 -"), {}, "method.code"),
        (SOURCE.replace("distance.abs()", "distance"), {}, "method.code"),  # what the loss calls
        (SOURCE.replace("SCALE = 2.0", "SCALE = 3.0"), {}, "method.code"),
        (SOURCE.replace("(1.0, 2.0)", "(2.0, 2.0)"), {}, "method.code"),
        (SOURCE, {"power": 3}, "method.power: 2 → 3"),
    ],
)
def test_an_edited_loss_is_another_run(edited, arguments, what, data, tmp_path):
    run = left(data, tmp_path, users())
    assert edited != SOURCE or arguments
    with pytest.raises(ValueError, match=what):
        distill(users(edited, **arguments), data, SETTINGS, run, resume=True)
    reworded = SOURCE.replace("# A comment.", "# Another.").replace("Match the", "Fit the")
    distill(users(reworded), data, SETTINGS, run, resume=True)


def other_value(field):
    """A value that a setting does not have by default."""
    by_name = {"ipc": 3, "optimizer_img": "adam", "init": "noise", "ema_decay": 0.5}
    by_name |= {"ipc_by_class": "2,1,2", "beta1_img": 0.5, "beta2_img": 0.5}
    value = by_name.get(field.name, field.default)
    if value != field.default:
        return value
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("field", dataclasses.fields(LoopSettings), ids=lambda field: field.name)
def test_every_setting_of_the_loop_is_compared(field, data, tmp_path):
    settings = dataclasses.replace(SETTINGS, ipc=2, iterations=2)
    run = left(data, tmp_path, users(), settings)
    change = dataclasses.replace(settings, **{field.name: other_value(field)})
    if field.name in MAY_CHANGE:
        more = dataclasses.replace(change, iterations=3)
        distill(users(), data, more, run, resume=True)
        ((changed,),) = [run.load_checkpoint()[1]["changes"]]
        assert changed["iteration"] == 2
        assert f"settings.{field.name}" in changed["changed"]
        assert len(run.read_metrics()) == 4
        return
    may = "Of the settings only checkpoint_every.*lr_img.* may change"
    message = rf"settings\.{field.name}: .* → .*{may}"
    with pytest.raises(ValueError, match=message):
        distill(users(), data, change, run, resume=True)


def test_the_set_of_other_data_networks_and_weights_is_refused(data, tmp_path):
    make = partial(fresh, make_network, data)

    def method(weight=0.1, batch_real=4, make=make, temperature=0.1):
        base = DC(make, DCSettings(batch_real=batch_real))
        return MIM4DD(base, MIM4DDLoss(temperature), weight=weight, num_keys=9)

    run = left(data, tmp_path, method())

    def deeper(seed):
        network = make(seed)
        network.blocks[1].append(torch.nn.Tanh())
        return network

    for changed, what in (
        (method(weight=0.2), "method.weight: 0.1 → 0.2"),
        (method(temperature=0.2), "method.criterion.critic: .*temperature=0.1.*temperature=0.2"),
        (method(make=deeper), "blocks.1.2: none → 'Tanh"),
        (method(batch_real=5), "method.base.settings.batch_real: 4 → 5"),
        (DC(make, DCSettings(batch_real=4)), "method.class: '.*MIM4DD' → '.*DC'"),
    ):
        with pytest.raises(ValueError, match=what):
            distill(changed, data, SETTINGS, run, resume=True)
    brighter = data.image_train.clone()
    brighter[3] += 0.5
    for task, what in (
        (dataclasses.replace(data, class_names=("b", "a", "c")), r"data\.class_names\[0\]: '0' →"),
        (other(data, brighter), r"data\.train\.content \(other samples or other labels"),
    ):
        with pytest.raises(ValueError, match=what):
            distill(method(), task, SETTINGS, run, resume=True)
    renamed = dataclasses.replace(data, name="bars elsewhere")
    more = dataclasses.replace(SETTINGS, iterations=3)
    # The same object, whose networks have served, is the same method.
    served = method()
    distill(served, renamed, more, run, resume=True)
    distill(served, renamed, dataclasses.replace(SETTINGS, iterations=4), run, resume=True)
    assert len(run.read_metrics()) == 5


def test_what_says_nothing_of_itself_or_is_finished_is_not_continued(data, tmp_path):
    run = left(data, tmp_path, users())
    faster = dataclasses.replace(SETTINGS, lr_img=5.0)
    message = r"finished, so settings.lr_img: 0.1 → 5.0 would change nothing: ask for more"
    with pytest.raises(ValueError, match=message):
        distill(users(), data, faster, run, resume=True)
    with pytest.raises(ValueError, match="at iteration 2, beyond iterations 1: ask for more"):
        distill(users(), data, dataclasses.replace(SETTINGS, iterations=1), run, resume=True)
    tensors, header = load_tensors(run.checkpoint)
    del header["identity"]
    save_tensors(run.checkpoint, tensors, header)
    with pytest.raises(ValueError, match=r"does not say what it is of.*older mim4dd"):
        distill(users(), data, SETTINGS, run, resume=True)
    with pytest.raises(ValueError, match="got 1 without resume"):
        distill(users(), data, SETTINGS, RunDirectory(tmp_path / "new"), from_iteration=1)


@pytest.mark.parametrize("iterations", [2, 3])  # a finished run, and one that goes on
def test_another_version_of_the_library_is_warned_of(iterations, data, tmp_path, monkeypatch):
    run = left(data, tmp_path, users())
    monkeypatch.setattr("mim4dd.distill.loop.resume.__version__", "9.0")
    more = dataclasses.replace(SETTINGS, iterations=iterations)
    with pytest.warns(UserWarning, match=r"another version of mim4dd.*'0\..*' → '9\.0'"):
        distill(users(), data, more, run, resume=True)
    if iterations == 3:  # and once alone
        assert run.load_checkpoint()[1]["identity"]["mim4dd"] == "9.0"
        distill(users(), data, more, run, resume=True)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoint_is_gone_is_not_overwritten(finished, data, tmp_path):
    run = left(data, tmp_path, users())
    run.checkpoint.unlink()
    if not finished:
        run.synthetic.unlink()
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    what = "result" if finished else "metrics"
    with pytest.raises(ValueError, match=f"is gone.* to begin anew would overwrite its {what}"):
        distill(users(), data, SETTINGS, run, resume=True)
    assert kept == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def test_going_back_repeats_the_run_bit_for_bit(data, tmp_path):
    experts = make_experts(data, tmp_path / "experts")
    method = MTT(make_network(data), experts, MTTSettings(syn_steps=2, max_start_epoch=3))
    settings = dataclasses.replace(SETTINGS, iterations=14, lr_lr=1e-4)
    run = RunDirectory(tmp_path / "run")
    sets = []
    watched = dataclasses.replace(settings, eval_every=1)

    def keep(synthetic):
        sets.append(synthetic)
        return accuracy

    accuracy = type("Judged", (), {"mean": 0.5, "std": 0.0, "values": (0.5,)})
    distill(method, data, watched, run, keep)
    whole = leavings(run.path)
    kept = run.kept_iterations()
    assert len(kept) == 6
    assert kept[0] == 0
    assert max(after - before for before, after in zip(kept, [*kept[1:], 14], strict=True)) <= 5
    for iteration in kept:  # every checkpoint can be looked at
        stored, reached = run.load_set(iteration)
        assert reached == iteration
        for name in ("image_syn", "label_syn", "class_syn", "pixels", "syn_lr"):
            assert torch.equal(getattr(stored, name), getattr(sets[iteration], name))
        stored.require_data(data)
    with pytest.raises(ValueError, match=r"has a checkpoint of, 0, .*, 14, got 99"):
        distill(method, data, watched, run, keep, resume=True, from_iteration=99)
    distill(method, data, watched, run, keep, resume=True, from_iteration=kept[2])
    assert leavings(run.path) == whole


class Cliff(BaseMethod):
    """A bowl whose loss ends outside of a ball."""

    def loss(self, image_syn, label_syn, syn_lr, real):
        value = image_syn.square().sum()
        return Objective(value.log() * value if value < 1e4 else value * math.inf, [])


def test_a_run_that_diverged_goes_on_with_smaller_steps(data, tmp_path):
    run = RunDirectory(tmp_path / "run")
    settings = LoopSettings(iterations=9, lr_img=0.3, lr_lr=0.0, checkpoint_every=1)
    message = "; lower lr_img. The .*--resume .*run with smaller steps, or --from-iteration 0, 1"
    with pytest.raises(FloatingPointError, match=message):
        distill(Cliff(), data, settings, run)
    with pytest.raises(FloatingPointError):  # the same steps lead to the same end
        distill(Cliff(), data, settings, run, resume=True)
    assert run.load_set()[1] >= 1
    gentle = dataclasses.replace(settings, lr_img=1e-3)
    distill(Cliff(), data, gentle, run, resume=True, from_iteration=1)
    losses = [row["loss"] for row in run.read_metrics()[:-1]]
    assert len(losses) == 9
    assert losses[-1] < losses[1]
    assert run.load_checkpoint()[1]["changes"][-1]["changed"] == {"settings.lr_img": [0.3, 1e-3]}


class Ends(BaseMethod):
    """A loss that depends on the step size, and has no value in one iteration."""

    def __init__(self, at):
        self.at = at
        self.settings = DCSettings()

    def identity(self):
        return describe_object(self, without=("at",))

    def loss(self, image_syn, label_syn, syn_lr, real):
        value = (syn_lr * image_syn).square().sum()
        return Objective(value * math.nan if real.iteration == self.at else value, [])


@pytest.mark.parametrize("positive", [False, True])
def test_the_advice_of_a_run_that_diverges_can_be_followed(positive, data, tmp_path):
    settings = dataclasses.replace(SETTINGS, positive_syn_lr=positive, iterations=3)
    with pytest.raises(FloatingPointError) as anew:
        distill(Ends(0), data, settings, RunDirectory(tmp_path / "new"))
    assert str(anew.value).endswith("iteration 0; lower lr_img, lr_lr, lr_net, lr_teacher")
    run = RunDirectory(tmp_path / "run")
    distill(Ends(None), data, dataclasses.replace(settings, iterations=2), run)
    with pytest.raises(FloatingPointError) as stopped:  # in the first iteration that it goes on by
        distill(Ends(2), data, settings, run, resume=True)
    steps, _, way_on = str(stopped.value).partition(". The last good state, of iteration 2, is")
    assert steps.endswith("iteration 2; lower lr_img, lr_lr, lr_net")
    assert set(steps.partition("lower ")[2].split(", ")) <= MAY_CHANGE
    assert ("--positive-syn-lr" in way_on) != positive
    assert way_on.endswith("or --from-iteration 0, 1")


class Pull(BaseMethod):
    """Pulls the learned step size down, and the images nowhere."""

    def loss(self, image_syn, label_syn, syn_lr, real):
        return Objective(syn_lr + 0 * image_syn.sum(), [])


def test_a_positive_step_size_starts_alike_and_stays_positive(data, tmp_path):
    settings = LoopSettings(iterations=1, lr_lr=1e-6, lr_teacher=0.01)
    plain = distill(Pull(), data, settings, RunDirectory(tmp_path / "plain"))
    positive = dataclasses.replace(settings, positive_syn_lr=True)
    learned = distill(Pull(), data, positive, RunDirectory(tmp_path / "positive"))
    torch.testing.assert_close(0.01 - learned.syn_lr, 0.01 - plain.syn_lr, rtol=1e-3, atol=0)
    steep = dataclasses.replace(settings, iterations=5, lr_lr=4e-3, checkpoint_every=1)
    run = RunDirectory(tmp_path / "steep")
    with pytest.raises(FloatingPointError, match="the learned step size fell to"):
        distill(Pull(), data, steep, run)
    before = run.load_set()[0].syn_lr
    saved = dataclasses.replace(steep, positive_syn_lr=True)
    assert distill(Pull(), data, saved, run, resume=True).syn_lr > 0
    rows = run.read_metrics()
    assert rows[run.load_checkpoint()[1]["changes"][0]["iteration"]]["syn_lr"] == pytest.approx(
        before.item(), rel=1e-6
    )


@pytest.mark.parametrize("value", [1e-9, 3e-3, 0.01, 5.0])
def test_a_step_size_becomes_a_positive_one_of_the_same_value(value):
    settings = LoopSettings(lr_teacher=0.01, positive_syn_lr=True)
    plain = dataclasses.replace(settings, positive_syn_lr=False)
    initial = Initial(torch.zeros(2, 1, 4, 4))
    states = [LoopState(initial, torch.arange(2), each) for each in (plain, settings)]
    with torch.no_grad():
        states[0].syn_lr.fill_(value)
    states[1].restore(states[0].snapshot({}))
    assert isinstance(states[1].positive, PositiveStepSize)
    torch.testing.assert_close(states[1].syn_lr, states[0].syn_lr, rtol=1e-5, atol=0)
    states[0].restore(states[1].snapshot({}))
    torch.testing.assert_close(states[1].syn_lr, states[0].syn_lr, rtol=1e-5, atol=0)


@pytest.mark.parametrize("init", ["noise", "unit_noise"])
def test_noise_needs_no_real_images(init, tmp_path):
    torch.manual_seed(0)
    data = from_tensors(torch.rand(30, 1, 8, 8), torch.arange(30) % 3)
    settings = dataclasses.replace(SETTINGS, ipc=11, init=init)
    assert len(distill(users(), data, settings, RunDirectory(tmp_path / init)).image_syn) == 33
    real = dataclasses.replace(settings, init="real")
    with pytest.raises(ValueError, match="ipc must be at most the size of the smallest class"):
        distill(users(), data, real, RunDirectory(tmp_path / "real"))
    assert not (tmp_path / "real").exists()
