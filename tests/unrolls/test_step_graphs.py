"""StepGraphs: replayed steps give what launched ones do. Without a GPU, by a stand-in capture."""

import pytest
import torch
from torch import nn
from unrolls.test_unroll import make_inputs

import mim4dd.unroll
from mim4dd import StepGraphs, flatten_parameters, unroll_sgd
from mim4dd._unroll import graphs


class Rerun:
    """In the place of a CUDA graph: its replay runs the same code into the same results."""

    def __init__(self, run, result):
        self.run, self.result = run, result

    def replay(self):
        new = self.run()
        if isinstance(new, tuple):
            for old, value in zip(self.result, new, strict=True):
                if old is not None:
                    old.copy_(value)
        else:
            vars(self.result).update(vars(new))

    def pool(self):
        return None


@pytest.fixture(autouse=True)
def stand_in(device, monkeypatch):
    """Capture without a GPU, where there is none."""
    if device == "cuda":
        return
    captures = []

    def capture(run, pool):
        result = run()
        captures.append(run)
        return Rerun(run, result), result

    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(mim4dd.unroll, "check_step_graphs", lambda *_: None)


def gradients(inputs, step_graphs, **options):
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    theta_T = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches, lr=lr, step_graphs=step_graphs, **options
    )
    leaves = [theta_0, image_syn, lr] + ([label_syn] if label_syn.requires_grad else [])
    return theta_T, torch.autograd.grad((theta_T.sin() * theta_T).sum(), leaves)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "history": "checkpoints"}])
def test_replay_changes_nothing(soft, options, device):
    step_graphs = StepGraphs()
    model, *_ = make_inputs(device, 4)
    for _ in range(3):
        inputs = (model, *make_inputs(device, 4, 3, soft)[1:])
        actual = gradients(inputs, step_graphs, **options)
        expected = gradients(inputs, None, **options)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert len(step_graphs._captured) == 2  # with and without a graph for the second derivative


def test_other_shapes_are_captured_anew(device):
    step_graphs = StepGraphs()
    inputs = make_inputs(device, 3, 4)
    gradients(inputs, step_graphs)
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    fewer = (model, theta_0, image_syn, label_syn, batches[:, :2], lr)
    torch.testing.assert_close(gradients(fewer, step_graphs), gradients(fewer, None))
    assert len(step_graphs._captured) == 4


def test_one_model_per_step_graphs(device):
    step_graphs = StepGraphs()
    gradients(make_inputs(device, 2), step_graphs)
    with pytest.raises(ValueError, match="has captured another model or loss"):
        gradients(make_inputs(device, 2), step_graphs)


def test_another_mode_or_another_buffer_is_captured_anew(device, monkeypatch):
    if device == "cpu":  # as a graph does: the modules and buffers of the capture

        def capture(run, pool):
            result = run()
            return Frozen(), result

        monkeypatch.setattr(graphs, "_capture", capture)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3)).to(device).double()
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 1)
    theta_0 = flatten_parameters(model)
    step_graphs = StepGraphs()

    def train(step_graphs):
        with torch.no_grad():
            return unroll_sgd(
                model, theta_0, image_syn, label_syn, batches, lr=lr, step_graphs=step_graphs
            )

    train(step_graphs)
    model.eval()
    torch.testing.assert_close(train(step_graphs), train(None))
    model[2].running_mean = torch.ones_like(model[2].running_mean)
    torch.testing.assert_close(train(step_graphs), train(None))


class Frozen:
    """A graph whose replay changes nothing, as one of the same values does."""

    def replay(self):
        pass


class ReadsBack(nn.Module):
    """Looks at a value on the host, which no capture can follow."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(36, 3)

    def forward(self, images):
        if float(images.detach().sum()) > 1e9:
            raise AssertionError
        return self.linear(images.flatten(1))


def test_what_cannot_be_captured_is_launched_with_one_warning(device, monkeypatch):
    if device == "cpu":

        def refuse(run, pool):
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(graphs, "_capture", refuse)
    model = ReadsBack().to(device, torch.float64)
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    inputs = (model, flatten_parameters(model).requires_grad_(), image_syn, label_syn, batches, lr)
    step_graphs = StepGraphs()
    with pytest.warns(UserWarning, match="ReadsBack can't be captured") as caught:
        actual = gradients(inputs, step_graphs)
    assert len(caught) == 1
    torch.testing.assert_close(actual, gradients(inputs, None))


def test_where_there_is_no_gpu_it_is_refused(monkeypatch):
    monkeypatch.undo()
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs("cpu", 2)
    with pytest.raises(ValueError, match="step_graphs needs theta_0 on a CUDA device, got cpu"):
        unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr, step_graphs=StepGraphs())
