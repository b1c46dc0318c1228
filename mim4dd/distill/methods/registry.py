"""The base methods by name."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mim4dd.distill.evaluation import ByTeacher
from mim4dd.distill.methods.base import BaseMethod
from mim4dd.distill.registry import Entry, NoSettings, Registry
from mim4dd.distill.settings import Settings

__all__ = ["METHODS", "MethodEntry", "method"]

Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]  # options by data and images per class
Class = TypeVar("Class", bound=type[BaseMethod])


@dataclass(frozen=True)
class MethodEntry(Entry):
    """How a method is made of a configuration.

    ``learns`` is what it learns beside images: "syn_lr", "labels". ``judged_by`` is how a teacher's
    labels judge its sets; None: the method has no such evaluation of its own.

    Example:
        >>> from mim4dd.distill.methods import METHODS
        >>> METHODS["mtt"].needs_experts, sorted(METHODS["datm"].learns)
        (True, ['labels', 'syn_lr'])
    """

    make: Callable[..., BaseMethod]
    needs_experts: bool = False
    learns: frozenset[str] = frozenset()
    presets: Presets = field(default_factory=dict)
    judged_by: ByTeacher | None = None


METHODS: Registry[MethodEntry] = Registry("method", "mim4dd.distill.methods", "mim4dd.methods")


def method(
    name: str,
    *,
    title: str | None = None,
    settings: type[Settings] = NoSettings,
    needs_experts: bool = False,
    learns: Iterable[str] = (),
    presets: Presets | None = None,
    judged_by: ByTeacher | None = None,
) -> Callable[[Class], Class]:
    """Name a class of methods, for ``--method``, configurations and :func:`mim4dd.distill.resolve`.

    Args:
        name: What it is called where it is asked for.
        title: What it is called where it is shown; by default its name.
        settings: A frozen dataclass of its options, a :class:`~mim4dd.distill.settings.Settings`,
            whose ``Args:`` say what they are. ``config.method`` is one, and so is what the class's
            ``make`` gets, by default the second argument of the class itself.
        needs_experts: Whether it matches expert trajectories.
        learns: "syn_lr" and "labels" where its loss depends on these: the loop's options for them
            are the method's then.
        presets: Defaults of any options by data set and by images per class, "any" for all:
            ``{"cifar10": {"any": {"lr_img": 1.0}, "10": {"iterations": 5000}}}``.
        judged_by: How networks learn from a teacher's labels of its sets, for methods with a
            ``labelling_network``, which is the teacher.

    Raises:
        ValueError: If another module has registered the name.

    Example:
        >>> from mim4dd.distill.methods import METHODS
        >>> METHODS["dm"].title, METHODS["dm"].settings().batch_real
        ('DM', 256)
    """

    def register(kind: Class) -> Class:
        METHODS.add(
            MethodEntry(
                name,
                title or name,
                kind.make,
                settings,
                needs_experts,
                frozenset(learns),
                presets or {},
                judged_by,
            )
        )
        return kind

    return register
