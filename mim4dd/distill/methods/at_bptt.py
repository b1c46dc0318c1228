"""Automatic truncated back-propagation through time (AT-BPTT)."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.rat_bptt import RaTBPTT, RaTBPTTSettings
from mim4dd.distill.methods.registry import method
from mim4dd.distill.training.passes import has_batch_norm, in_passes

__all__ = ["ATBPTT", "ATBPTTSettings", "truncate"]

# A stage ends after as many passes in a row as this share of the inner steps, in each of which the
# accuracy gained less than this.
_STAGE_ENDS = {1: (0.15, 0.015), 2: (0.125, 0.01)}


@dataclass(frozen=True)
class ATBPTTSettings(RaTBPTTSettings):
    """How AT-BPTT chooses the steps that it differentiates through.

    Args:
        window_change: Most steps by which a window may be longer or shorter than --window.
    """

    window_change: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(window_change=0)


@method("at_bptt", title="AT-BPTT", settings=ATBPTTSettings)
class ATBPTT(RaTBPTT):
    """:class:`RaTBPTT` with windows that follow the inner gradients, and the stage of distilling.

    In the first iteration of a pass over the real data, a fresh network is trained on the set for
    ``syn_steps`` steps, and :func:`truncate` chooses by its gradients where the window begins and
    how long it is. The stages are early, middle and late. One ends when the accuracy on real images
    hardly grows any more from pass to pass: by less than 1.5 points in 0.15 · ``syn_steps`` passes
    in a row, then by less than 1 point in 0.125 · ``syn_steps``.

    Args:
        new_network: Makes a network with the initial weights of a seed.
        settings: How far to train, and how far back to differentiate.

    Raises:
        ValueError: If a window may be empty, or longer than the training.

    References:
        Li et al. Beyond Random: Automatic Inner-loop Optimization in Dataset Distillation.
        arXiv:2510.04838.
    """

    settings: ATBPTTSettings

    def __init__(self, new_network: Callable[[int], nn.Module], settings: ATBPTTSettings) -> None:
        super().__init__(new_network, settings)
        change, window = settings.window_change, settings.window or settings.syn_steps
        if not change < window <= settings.syn_steps - change:
            raise ValueError(
                "window_change must be below window, and their sum at most syn_steps, "
                f"{settings.syn_steps}, got {change} and {window}"
            )
        self.progress = _Progress()

    def identity(self) -> dict[str, Any]:
        """What defines the method: not how far it is."""
        described = super().identity()
        return {name: part for name, part in described.items() if name != "progress"}

    def truncation(self, image_syn: Tensor, label_syn: Tensor, real: RealData) -> tuple[int, int]:
        """Those of the pass, which are chosen in its first iteration."""
        settings, progress = self.settings, self.progress
        if progress.judged >= len(real.data.image_train) / settings.batch_target:
            progress.end_pass(settings.syn_steps)
        if progress.judged == 0:
            norms = None
            if progress.stage != 2:
                norms = self._gradient_norms(image_syn.detach(), label_syn.detach(), real)
            progress.skipped, progress.window = truncate(
                progress.stage,
                norms,
                torch.rand((), generator=real.generator, dtype=torch.float64).item(),
                num_steps=settings.syn_steps,
                window=settings.window or settings.syn_steps,
                change=settings.window_change,
            )
        return progress.skipped + progress.window, progress.window

    def judged(
        self, network: nn.Module, theta: Tensor, images: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """The accuracy on the real images, by which the stages go, and what was chosen."""
        call, hits = FunctionalModel(network), 0
        passes = [images] if has_batch_norm(network) else in_passes(images, otherwise=len(images))
        with torch.no_grad():
            for row in theta:
                logits = torch.cat([call(row, part) for part in passes])
                hits += int((logits.argmax(1) == labels).sum())
        accuracy = hits / (len(theta) * len(labels))
        self.progress.accuracy_sum += accuracy
        self.progress.judged += 1
        return {
            "target_accuracy": accuracy,
            "stage": self.progress.stage,
            "window": self.progress.window,
            "window_start": self.progress.skipped,
        }

    def state(self) -> dict[str, Tensor]:
        """How far the stages are."""
        return {"progress": torch.tensor(astuple(self.progress), dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state` gave.

        Raises:
            ValueError: If it is of another method.
        """
        if not state:
            return
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        expected = {name: tuple(tensor.shape) for name, tensor in self.state().items()}
        if found != expected:
            raise ValueError(f"the checkpoint must hold {expected} for AT-BPTT, got {found}")
        values = zip(astuple(_Progress()), state["progress"].tolist(), strict=True)
        self.progress = _Progress(*(type(first)(value) for first, value in values))

    def _gradient_norms(self, images: Tensor, labels: Tensor, real: RealData) -> Tensor:
        """Lengths of the gradients of every step of a fresh network's training. (T,)"""
        settings = self.settings
        network = self.new_network(real.seed())
        batches = settings.schedule(len(images), settings.syn_steps, real.generator)
        draws = torch.Generator(images.device).manual_seed(real.seed())
        optimizer = torch.optim.Adam(network.parameters(), settings.inner_lr)
        norms = []
        for rows in batches.to(images.device):
            batch = images[rows] if self.augment is None else self.augment(images[rows], draws)
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels[rows]).backward()
            norms.append(torch.nn.utils.get_total_norm(_gradients(network)))
            optimizer.step()
        return torch.stack(norms)


@dataclass
class _Progress:
    """Where the stages are, and what holds in the pass at hand."""

    stage: int = 1
    slow_passes: int = 0
    last_accuracy: float = 0.0
    judged: int = 0  # iterations of the pass
    accuracy_sum: float = 0.0
    skipped: int = 0
    window: int = 0

    def end_pass(self, num_steps: int) -> None:
        """Go to the next pass, and to the next stage if the accuracy did not grow long enough."""
        accuracy = self.accuracy_sum / self.judged
        if self.stage in _STAGE_ENDS:
            share, least_gain = _STAGE_ENDS[self.stage]
            slow = accuracy - self.last_accuracy < least_gain
            self.slow_passes = self.slow_passes + 1 if slow else 0
            if self.slow_passes >= share * num_steps:
                self.stage, self.slow_passes = self.stage + 1, 0
        self.last_accuracy, self.accuracy_sum, self.judged = accuracy, 0.0, 0


def truncate(
    stage: int, norms: Tensor | None, share: float, *, num_steps: int, window: int, change: int
) -> tuple[int, int]:
    r"""How many inner steps AT-BPTT skips, and how many of the next it differentiates through.

    With g_t the length of the gradient of step t, :math:`\Delta_t = |g_t - g_{t-1}|` and
    :math:`\Delta_0 = 0`, and s drawn from softmax(g):

    ===== ================================== ========================================
    stage steps that are skipped             window w
    ===== ================================== ========================================
    1     s, at most T − w                   ⌊W − d + 2 d · rank(Δ_s) / T⌋
    2     uniform in 0, …, T − w             W + d
    3     T − w − s, at least 0              W − d
    ===== ================================== ========================================

    The rank of Δ_s is the number of smaller ones.

    Args:
        stage: 1, 2 or 3.
        norms: The lengths g; None in stage 2. (T,)
        share: What is drawn, uniform in [0, 1).
        num_steps: T.
        window: W.
        change: d.

    Example:
        >>> import torch
        >>> from mim4dd.distill.methods.at_bptt import truncate
        >>> truncate(1, torch.tensor([9.0, 1.0, 0.0, 0.0]), 0.5, num_steps=4, window=2, change=1)
        (0, 1)
        >>> truncate(2, None, 0.5, num_steps=4, window=2, change=1)
        (1, 3)

    References:
        Li et al. arXiv:2510.04838, and the published code, ``window_start_size``.
    """
    if norms is None:
        chosen = window + change
        return int(share * (num_steps - chosen + 1)), chosen
    norms = norms.double().cpu()
    up_to = norms.softmax(0).cumsum(0)
    drawn = min(int(torch.searchsorted(up_to, share)), num_steps - 1)  # rounding may leave 1 out
    if stage == 3:
        chosen = window - change
        return max(0, num_steps - chosen - drawn), chosen
    changes = norms.diff(prepend=norms[:1]).abs()
    rank = int((changes < changes[drawn]).sum())
    chosen = window - change + 2 * change * rank // num_steps
    return min(drawn, num_steps - chosen), chosen


def _gradients(network: nn.Module) -> list[Tensor]:
    return [each.grad for each in network.parameters() if each.grad is not None]
