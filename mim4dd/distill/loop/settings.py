"""How a synthetic set is initialised and optimised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mim4dd._checks import check_positive
from mim4dd.distill.data.per_class import PerClass
from mim4dd.distill.settings import Settings

__all__ = ["MAY_CHANGE", "LoopSettings", "read_counts"]

# What a run may be continued with other values of: how fast and how long to go on, not where to.
# The rest says what the set is of. Step sizes of a method's inner networks are among them because
# a run that those made diverge could not be continued otherwise.
MAY_CHANGE = frozenset(
    {
        "iterations",
        "lr_img",
        "lr_lr",
        "lr_y",
        "lr_net",
        "inner_lr",
        "positive_syn_lr",
        "memory_budget",
        "checkpoint_every",
        "eval_every",
        "keep_every",
    }
)


@dataclass(frozen=True)
class LoopSettings(Settings):
    """How the synthetic set is initialised and optimised.

    Args:
        ipc: Synthetic images per class.
        ipc_by_class: Images for each class instead of ipc, such as 10,10,5.
        iterations: Steps of the images.
        optimizer_img: Optimiser of the images; "sgd" has momentum 0.5.
        lr_img: Step size of the images' optimiser.
        cosine_img: Lower lr_img along a cosine, to 0 at the end.
        beta1_img: β1 of "adam" and "adamw".
        beta2_img: β2 of "adam" and "adamw".
        weight_decay_img: Weight decay of the images, towards the mean image.
        patience_img: Steps without a lower loss that halve lr_img; 0: never.
        clip_img: Clip images to valid pixels after every step.
        lr_lr: Step size of the SGD of syn_lr; its momentum is 0.5.
        lr_y: Step size of the SGD of soft labels, with momentum 0.9.
        lr_teacher: Initial value of the learned step size syn_lr.
        positive_syn_lr: Learn syn_lr as :class:`mim4dd.PositiveStepSize`, so that it stays above 0.
        init: "real" images, "noise", or "unit_noise" (of norm 1).
        ema_decay: Decay of the images' moving average (FTD); 0: none.
        seed: Seed of everything random in the run.
        checkpoint_every: Iterations between checkpoints.
        eval_every: Iterations between evaluations for the curves; 0: none.
        keep_every: Iterations between copies of the set in sets/; 0: none.

    Example:
        >>> from mim4dd.distill.loop import LoopSettings
        >>> LoopSettings(ipc=10, iterations=1000, optimizer_img="adam", lr_img=0.01).lr_img
        0.01
    """

    GROUP: ClassVar[str] = "Loop"
    # The options for what only some methods learn beside images, which have no effect elsewhere.
    OF_LEARNED: ClassVar[Mapping[str, frozenset[str]]] = {
        "syn_lr": frozenset({"lr_lr", "positive_syn_lr"}),
        "labels": frozenset({"lr_y"}),
    }

    ipc: int = 1
    ipc_by_class: str | None = None
    iterations: int = 150
    optimizer_img: Literal["sgd", "adam", "adamw"] = "sgd"
    lr_img: float = 5.0
    cosine_img: bool = False
    beta1_img: float = 0.9
    beta2_img: float = 0.999
    weight_decay_img: float = 0.0
    patience_img: int = 0
    clip_img: bool = False
    lr_lr: float = 1e-4
    lr_y: float = 2.0
    lr_teacher: float = 0.03
    positive_syn_lr: bool = False
    init: Literal["real", "noise", "unit_noise"] = "real"
    ema_decay: float = 0.0
    seed: int = 0
    checkpoint_every: int = 20
    eval_every: int = 50
    keep_every: int = 0

    def check(self) -> None:
        """Raise ValueError on values that cannot be used."""
        self.require_at_least(ipc=1, iterations=1, lr_img=0, lr_lr=0, lr_y=0, seed=0)
        self.require_at_least(weight_decay_img=0, patience_img=0)
        if self.cosine_img and self.patience_img:
            raise ValueError(
                "patience_img must be 0 beside cosine_img, which sets the step size by itself, got "
                f"{self.patience_img}"
            )
        self.require_at_least(checkpoint_every=1, eval_every=0, keep_every=0)
        if self.ipc_by_class is not None:
            largest = max(read_counts(self.ipc_by_class))
            if self.ipc != largest:
                raise ValueError(
                    "ipc must be left out beside ipc_by_class, or be the largest of its numbers "
                    f"{largest}, got {self.ipc}"
                )
        check_positive("lr_teacher", self.lr_teacher)
        for name in ("ema_decay", "beta1_img", "beta2_img"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def per_class(self) -> PerClass:
        """Synthetic images of every class, as one number for all or one for each."""
        return self.ipc if self.ipc_by_class is None else read_counts(self.ipc_by_class)

    @property
    def ipc_title(self) -> str:
        """How many images per class for people, as a number or from the fewest to the most."""
        if self.ipc_by_class is None:
            return str(self.ipc)
        counts = read_counts(self.ipc_by_class)
        fewest, most = min(counts), max(counts)
        return str(most) if fewest == most else f"{fewest} to {most}"


def read_counts(text: str) -> tuple[int, ...]:
    """Numbers of images, joined by commas.

    Raises:
        ValueError: If that is not what they are, or one is below 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"ipc_by_class must be numbers from 1 on, joined by commas, as 10,10,5, got {text!r}"
        )
    return tuple(map(int, parts))
