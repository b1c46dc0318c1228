"""What an unroll would leave without its gradient, and labels that are none: refused in words."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data, make_network
from torch import nn

from mim4dd import StepGraphs, flatten_parameters, unroll_adam, unroll_sgd
from mim4dd._unroll import graphs
from mim4dd._unroll.captured import leaves_of
from mim4dd.adapters.reparam_module import ReparamModule
from mim4dd.distill.evaluation.recipe import Evaluation, evaluate

IMAGES = torch.randn(4, 6, dtype=torch.float64)
LABELS = torch.arange(4) % 3
BATCHES = torch.arange(4).expand(3, -1)
ADVICE = "it would get no gradient. Detach it, or pass it as an input"


def model():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def learned(*shape):
    return torch.rand(shape, dtype=torch.float64, requires_grad=True)


class Scaled(nn.Module):
    """Reads a tensor that is no parameter of its own."""

    def __init__(self, scale):
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3).double(), [scale]

    def forward(self, images):
        return self.linear(images * self.scale[0])


class Aliased(nn.Module):
    """Reads one of its parameters by a second way, which no functional call can fill."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3).double()
        self.kept = (self.linear.weight,)

    def forward(self, images):
        return self.linear(images) + F.linear(images, self.kept[0])


class LearnedBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3).double()
        self.register_buffer("scale", learned(6))

    def forward(self, images):
        return self.linear(images * self.scale)


def a_leaf_in_the_loss(tensor):
    return {"loss": lambda output, labels: F.cross_entropy(output * tensor, labels)}


def by_augment(tensor, function):
    return {"augment": lambda images, _: function(images, tensor)}


def only_sine(images, tensor):
    return tensor.sin().repeat(len(images) // len(tensor), 1)


CAPTURES = {
    "a leaf in loss": lambda: a_leaf_in_the_loss(learned(3)),
    "no leaf in loss": lambda: a_leaf_in_the_loss(2 * learned(3).exp()),
    "a leaf in augment": lambda: by_augment(learned(6), torch.mul),
    "no leaf in augment": lambda: by_augment(learned(6).relu(), torch.mul),
    "only what is captured in augment": lambda: by_augment(learned(4, 6), only_sine),
    "a leaf in model": lambda: {"model": Scaled(learned(6))},
    "no leaf in model": lambda: {"model": Scaled(learned(6) ** 2)},
    "a parameter by another way": lambda: {"model": Aliased()},
    "a buffer": lambda: {"model": LearnedBuffer()},
}
SHAPES = {"a leaf in loss": "(3,)", "only what is captured in augment": "(4, 6)"}
ENTRIES = {
    "sgd": (unroll_sgd, {}),
    "momentum": (unroll_sgd, {"momentum": 0.9}),
    "tesla": (unroll_sgd, {"method": "tesla"}),
    "window": (unroll_sgd, {"window": 1}),
    "kept": (unroll_sgd, {"memory_budget": 10**9}),
    "checkpoints": (unroll_sgd, {"history": "checkpoints"}),
    "adam": (unroll_adam, {}),
    "adam, kept": (unroll_adam, {"memory_budget": 10**9}),
}


def run(entry=unroll_sgd, **options):
    torch.manual_seed(0)
    network = options.pop("model", None) or model()
    arguments = {"image_syn": IMAGES.clone().requires_grad_(), "label_syn": LABELS} | {
        name: options.pop(name) for name in ("image_syn", "label_syn") if name in options
    }
    lr = options.pop("lr", 0.1)
    theta_0 = options.pop("theta_0", None)
    theta_0 = flatten_parameters(network) if theta_0 is None else theta_0
    return entry(network, theta_0, *arguments.values(), BATCHES, lr=lr, **options)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", CAPTURES)
def test_a_captured_tensor_is_refused(name, entry):
    call, options = ENTRIES[entry]
    place = "augment" if "augment" in name else "model and loss"
    with pytest.raises(ValueError, match=f"^{place} must use no tensor that requires") as caught:
        run(call, **CAPTURES[name](), **options)
    assert ADVICE in str(caught.value)
    assert SHAPES.get(name, "(3, 6)" if "another" in name else "") in str(caught.value)
    names = {"a parameter by another way": "'linear.weight'", "a buffer": "'scale'"}
    assert names.get(name, "") in str(caught.value)


@pytest.mark.parametrize("place", ["augment", "model and loss"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_tensor_that_is_read_in_the_last_step_alone_is_refused(place, entry):
    """A draw may decide what a step reads."""
    call, options = ENTRIES[entry]
    tensor, calls = learned(1), []

    def augment(images, _):
        calls.append(None)
        return images * tensor if len(calls) >= 3 and place == "augment" else images * 1

    def loss(output, labels):
        value = F.cross_entropy(output, labels)
        return value * tensor.sum() if len(calls) >= 3 and place != "augment" else value

    with pytest.raises(ValueError, match=f"^{place} must use no tensor that requires"):
        run(call, augment=augment, loss=loss, **options).sum().backward()


@pytest.mark.parametrize("name", CAPTURES)
def test_side_by_side_and_in_the_adapter(name):
    options = CAPTURES[name]()
    network = options.pop("model", None) or model()
    starts = torch.stack([flatten_parameters(network)] * 2)
    for batches in (BATCHES, BATCHES[:, None].expand(-1, 2, -1)):
        with pytest.raises(ValueError, match="must use no tensor that requires"):
            unroll_sgd(network, starts, IMAGES, LABELS, batches, lr=0.1, **options)
    with pytest.raises(ValueError, match="must use no tensor that requires"):
        ReparamModule(network).unroll(IMAGES, LABELS, BATCHES, lr=0.1, **options)


def test_in_captured_steps(monkeypatch):
    monkeypatch.setattr("mim4dd.unroll.check_step_graphs", lambda *_: None)
    monkeypatch.setattr(graphs, "_capture", lambda run, pool: (None, run()))
    for name in CAPTURES:
        with pytest.raises(ValueError, match="must use no tensor that requires"):
            run(**CAPTURES[name](), step_graphs=StepGraphs())


@pytest.mark.parametrize("name", ["image_syn", "theta_0", "lr"])
def test_an_input_that_is_captured_too_is_refused(name):
    """Its other gradient would come alone."""
    network = model()
    values = {
        "image_syn": IMAGES.clone().requires_grad_(),
        "theta_0": flatten_parameters(network).requires_grad_(),
        "lr": torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
    }

    def loss(output, labels):
        return F.cross_entropy(output, labels) + values[name].square().sum()

    with pytest.raises(ValueError, match="model and loss must use no tensor"):
        run(model=network, loss=loss, **values)


def test_what_is_constant_may_be_captured():
    constant = torch.rand(3, dtype=torch.float64)
    expected = run(**a_leaf_in_the_loss(constant))
    assert torch.equal(
        run(**a_leaf_in_the_loss(constant.clone().requires_grad_().detach())), expected
    )
    with torch.no_grad():  # where no gradient is asked for, none is missed
        assert torch.equal(run(**a_leaf_in_the_loss(constant.clone().requires_grad_())), expected)


def test_every_input_gets_its_gradient():
    network = model()
    leaves = {
        "theta_0": flatten_parameters(network).requires_grad_(),
        "image_syn": IMAGES.clone().requires_grad_(),
        "lr": torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True),
    }
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    theta_T = run(model=network, label_syn=logits.softmax(1), **leaves)
    for gradient in torch.autograd.grad(theta_T.sin().sum(), [*leaves.values(), logits]):
        assert gradient.norm() > 0


def test_leaves_of_a_graph():
    first, second = learned(2), learned(2)
    shared = first * second
    assert {id(leaf) for leaf in leaves_of((shared + shared.sin()).sum())} == {
        id(first),
        id(second),
    }
    assert leaves_of(first) == [first]
    assert leaves_of(first.detach()) == []


def test_a_list_of_step_sizes_would_lose_its_gradient():
    with pytest.raises(TypeError, match="lr must be a number, got list"):
        run(lr=[learned(), learned(), learned()])


NOT_PROBABILITIES = {
    "logits": torch.randn(4, 3, dtype=torch.float64) * 5,
    "a sum of 2": torch.full((4, 3), 2 / 3, dtype=torch.float64),
    "one below 0": torch.tensor([[1.1, -0.1, 0.0]] * 4, dtype=torch.float64),
    "NaN": torch.full((4, 3), math.nan, dtype=torch.float64),
}


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
@pytest.mark.parametrize("entry", [unroll_sgd, unroll_adam])
@pytest.mark.parametrize("name", NOT_PROBABILITIES)
def test_rows_that_are_no_probabilities(name, entry, loss):
    with pytest.raises(ValueError, match=r"label_syn \(n, C\) must hold probabilities.*softmax"):
        run(entry, label_syn=NOT_PROBABILITIES[name], loss=loss)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_to_rounding(dtype):
    network = nn.Linear(6, 1000).to(dtype)
    labels = torch.randn(4, 1000).softmax(1).to(dtype)
    theta_0 = flatten_parameters(network)
    unroll_sgd(network, theta_0, IMAGES.to(dtype), labels, BATCHES, lr=0.1)


@pytest.mark.parametrize("labels", [[0, 1, 3, 2], [0, -1, 1, 2], [0, -100, 1, 2]])
def test_classes_out_of_range(labels):
    with pytest.raises(ValueError, match=r"label_syn must be .*classes.*got"):
        run(label_syn=torch.tensor(labels))


def test_more_probabilities_than_outputs():
    labels = torch.full((4, 5), 0.2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got 5 classes and outputs of shape \(4, 3\)"):
        run(label_syn=labels)


def test_another_loss_takes_what_it_takes():
    def from_logits(output, logits):
        return F.cross_entropy(output, logits.softmax(1))

    logits = NOT_PROBABILITIES["logits"].clone().requires_grad_()
    ours = run(label_syn=logits, loss=from_logits)
    assert torch.autograd.grad(ours.sin().sum(), logits)[0].norm() > 0

    def skipping(output, labels):
        return F.cross_entropy(output, labels, ignore_index=-1)

    run(label_syn=torch.tensor([0, -1, 1, 2]), loss=skipping)


def test_evaluation_refuses_the_same_labels():
    data = make_data()
    images, _ = data.sample(1, torch.Generator().manual_seed(0))
    classes, recipe = data.num_classes, Evaluation(num_eval=1, eval_epochs=1)

    def judge(labels):
        return evaluate(lambda: make_network(data), images, labels, 0.01, data, recipe)

    for kind in ("logits", "a sum of 2", "one below 0", "NaN"):
        rows = NOT_PROBABILITIES[kind][0].repeat(len(images), classes)[:, :classes]
        with pytest.raises(ValueError, match=r"labels \(n, C\) must hold probabilities.*softmax"):
            judge(rows.float())
    for wrong in (-1, classes):
        labels = torch.arange(classes).roll(1)
        labels[0] = wrong
        with pytest.raises(
            ValueError, match=f"labels must be classes, from 0 to {classes - 1}, got"
        ):
            judge(labels)
    assert 0 <= judge(torch.randn(len(images), classes).softmax(1)).mean <= 1
