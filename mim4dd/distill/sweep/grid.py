"""Which settings a sweep runs: values of options, and how they are combined."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, get_args

from mim4dd._checks import check_choice
from mim4dd.distill.add_ons import ADD_ONS
from mim4dd.distill.config.commands import (
    Config,
    DistillConfig,
    ExpertsConfig,
    SweepConfig,
    TaskSettings,
    part,
)
from mim4dd.distill.experts.train import ExpertTraining
from mim4dd.distill.methods import METHODS
from mim4dd.distill.networks import NETWORKS
from mim4dd.distill.settings import check_type, options_of

__all__ = [
    "Setting",
    "base_of",
    "make_grid",
    "make_setting",
    "named",
    "option_name",
    "parse_value",
    "parse_vary",
    "require_effect",
    "shown",
    "titled",
]

# What the sweep has otherwise than a single distillation, whatever the presets say.
_DEFAULTS = {"experts": SweepConfig.experts, "eval_every": SweepConfig.eval_every}
# Experts of one network on one data set serve all settings: an option that they share with the
# distillation, such as dsa_strategy, is for them that of the base.
_OF_EXPERTS = options_of(ExpertTraining).keys() - {"dsa_strategy", "precision", "seed"}
_BASE = "base"
_ABSENT = object()
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Setting:
    """One point of a sweep.

    ``name`` says what differs from the base setting, ``options`` holds the values of all varied
    options. ``experts`` says how those are trained that a method may match.
    """

    name: str
    options: dict[str, Any]
    config: DistillConfig
    experts: ExpertsConfig

    @property
    def is_base(self) -> bool:
        """Whether it is the one around which the sweep is."""
        return self.name == _BASE

    @property
    def folder(self) -> str:
        """A file name of its own: the setting's name, where it can be one."""
        if re.fullmatch(r"[\w.,=+-]{1,120}", self.name):
            return self.name
        digest = hashlib.sha256(self.name.encode(errors="surrogateescape")).hexdigest()[:8]
        return re.sub(r"[^\w.,=+-]+", "_", self.name)[:100] + "-" + digest


def shown(value: Any) -> str:
    """A value as it is typed: what :func:`parse_value` reads."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)


def named(name: str) -> str:
    """What a picture or a table of a paper calls an option."""
    return "images per class" if name == "ipc" else name.replace("_", " ")


def titled(name: str, value: Any) -> str:
    """What a picture or a table of a paper calls a value: of a method, as in the literature."""
    return METHODS[value].title if name == "method" and value in METHODS else shown(value)


def option_name(text: str) -> str:
    """The option that ``text`` means, typed as a field or as on the command line.

    Raises:
        ValueError: If there is none, or it is the seed.
    """
    name = text.strip().lstrip("-").replace("-", "_")
    every = SweepConfig.every_option()
    if name not in every:
        known = ", ".join(sorted(every.keys() - {"seed"}))
        raise ValueError(f"vary must name an option, got {text!r}; there are: {known}")
    if name == "seed":
        raise ValueError("vary must not name seed: --seeds says how many there are")
    return name


def parse_value(name: str, text: str) -> Any:
    """The value of an option from how it is typed; ``none`` where an option may be None.

    Where "none" is one of the choices, as of norms and poolings, it is that one.

    Raises:
        ValueError: If it is not of the option's type.
    """
    hint = SweepConfig.every_option()[name].hint
    parts = _leaves(hint)
    text = text.strip()
    if text in parts:
        return text
    if NoneType in parts and text == "none":
        return None
    if not any(isinstance(part, type) for part in parts):
        check_choice(f"vary: {name}", text, tuple(dict.fromkeys(parts)))
    value: Any = text
    for kind in (each for each in parts if each in (bool, int, float)):
        try:
            value = _WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            continue
    check_type(name, value, hint, "vary")
    return value


def _leaves(hint: Any) -> list[Any]:
    """The types and choices that a hint allows, however they are nested."""
    parts = get_args(hint)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [hint]


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """The values of every varied option, from ``name=value,value,…``.

    Where ``|`` stands in the values it separates them, so that a value can hold commas.

    Raises:
        ValueError: If an option is unknown or named twice, or a value is missing or not of its
            type.

    Example:
        >>> from mim4dd.distill.sweep.grid import parse_vary
        >>> parse_vary(["weight=0,0.1", "layers=none|blocks.0,blocks.1"])
        {'weight': [0.0, 0.1], 'layers': [None, 'blocks.0,blocks.1']}
    """
    varied: dict[str, list[Any]] = {}
    for text in texts:
        left, equals, right = text.partition("=")
        values = right.split("|" if "|" in right else ",")
        if not equals or any(not value.strip() for value in values):
            raise ValueError(f"vary must be name=value,value,…, got {text!r}")
        name = option_name(left)
        if name in varied:
            raise ValueError(f"vary must name an option once, got {name} twice")
        varied[name] = [parse_value(name, value) for value in values]
    if not varied:
        raise ValueError("vary must name at least one option, got none")
    return varied


def make_grid(
    given: Mapping[str, Any], varied: Mapping[str, Sequence[Any]], one_at_a_time: bool
) -> list[Setting]:
    """All settings: every combination of values, or each value alone, and the base.

    The base comes first where it is not one of the combinations.

    Where a setting has another method than the base, given options that have no effect on that
    method are left at their defaults.

    Args:
        given: Options of the base setting; those left out have their defaults, which may depend on
            method, data set and images per class.
        varied: Values by option.
        one_at_a_time: Change one option of the base at a time instead of all together.

    Raises:
        ValueError: If a setting cannot be used, or an option has no effect on any.
    """
    changes: list[dict[str, Any]]
    if one_at_a_time:
        changes = [{}] + [{name: value} for name, values in varied.items() for value in values]
    else:
        points = itertools.product(*varied.values())
        changes = [dict(zip(varied, point, strict=True)) for point in points]
    base = make_setting(given, {}, varied)
    settings: dict[tuple[DistillConfig, ExpertsConfig], Setting] = {}
    for change in changes:
        setting = make_setting(given, change, varied, base)
        settings.setdefault((setting.config, setting.experts), setting)
    distinct = list(settings.values())
    require_effect(varied, distinct)
    return distinct if any(setting.is_base for setting in distinct) else [base, *distinct]


def require_effect(names: Iterable[str], settings: Sequence[Setting]) -> None:
    """Raise ValueError if one of the options has no effect on any of the settings."""
    useless = set(names).intersection(*(_without_effect(setting) for setting in settings))
    if useless:
        raise ValueError(f"vary: {', '.join(sorted(useless))} has no effect on any setting")


def _without_effect(setting: Setting) -> set[str]:
    """Options that a setting has no use for."""
    config = setting.config
    used = config.options().keys() | _OF_EXPERTS
    unused = set(SweepConfig.every_option()) - used
    if config.add_on.weight == 0:
        unused |= ADD_ONS[config.add_on_name].options - {"weight"}
    if config.experts or not METHODS[config.method_name].needs_experts:
        unused |= _OF_EXPERTS
    return unused


def base_of(settings: Sequence[Setting]) -> Setting:
    """The base setting among others."""
    return next(setting for setting in settings if setting.is_base)


def make_setting(
    given: Mapping[str, Any],
    change: Mapping[str, Any],
    names: Iterable[str],
    base: Setting | None = None,
) -> Setting:
    """The given options with some changed; ``names`` are those that tell settings apart.

    Given options of a method, add-on or network in whose place the change has another are left out,
    and so is what the change asks of a network that does not have it.
    """
    options = _without_others(given, change)
    known = DistillConfig.describe(SweepConfig.chosen({**given, **change}))
    of_networks = NETWORKS.options() - known.keys()
    change = {name: value for name, value in change.items() if name not in of_networks}
    SweepConfig.require(options, "given")
    defaults = {name: _DEFAULTS[name] for name in _DEFAULTS if name in known}
    config = _resolved(DistillConfig, {**defaults, **options, **change})
    experts = _experts_for(config, options, change)
    values = experts.options() | config.options()
    told = {name: values[name] for name in names if name in values}
    differing = [
        f"{name}={shown(value)}"
        for name, value in told.items()
        if base is not None and value != base.options.get(name, _ABSENT)
    ]
    return Setting(",".join(differing) or _BASE, told, config, experts)


def _without_others(given: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The given options, but for those of what the change chooses otherwise."""
    chosen = SweepConfig.chosen({**given, **change})
    others = SweepConfig.unused(chosen) if "method" in change else set()
    for option, registry in SweepConfig.CHOICES.items():
        if option in change:
            others |= registry.options() - SweepConfig.describe(chosen).keys()
    return {name: value for name, value in given.items() if name not in others}


def _experts_for(
    config: DistillConfig, given: Mapping[str, Any], change: Mapping[str, Any]
) -> ExpertsConfig:
    """How the experts are trained that a setting may match: on its data and its network."""
    task = part(config, TaskSettings).options()
    typed = {**given, **{name: change[name] for name in change if name in _OF_EXPERTS}, **task}
    experts = _resolved(ExpertsConfig, typed)
    # Data, method and images per class may ask for longer trajectories than the data alone.
    asked = SweepConfig.preset(config.options()).get("train_epochs", 0)
    if "train_epochs" in typed or asked <= experts.train_epochs:
        return experts
    return replace(experts, train_epochs=asked)


def _resolved(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """What a command makes of those of the options that it has."""
    of_sweep = options_of(SweepConfig).keys() | SweepConfig.every_option().keys()
    others = of_sweep - kind.every_option().keys()
    return kind.resolve(**{name: given[name] for name in given if name not in others})
