"""Which settings a sweep runs: values of options, and how they are combined."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, get_args, get_type_hints

from mim4dd._checks import check_choice
from mim4dd.distill.add_ons.mutual_information import MIM4DDSettings
from mim4dd.distill.config.commands import (
    Config,
    DistillConfig,
    ExpertsConfig,
    SweepConfig,
    TaskSettings,
    foreign_options,
    needs_experts,
)
from mim4dd.distill.experts.train import ExpertTraining
from mim4dd.distill.methods import METHODS
from mim4dd.distill.networks import check_network, fixed_sizes
from mim4dd.distill.settings import check_options, option_names

__all__ = [
    "Setting",
    "base_of",
    "make_grid",
    "make_setting",
    "option_name",
    "parse_value",
    "parse_vary",
    "require_effect",
    "shown",
]

# What the sweep has otherwise than a single distillation, whatever the presets say.
_DEFAULTS = {"experts": SweepConfig.experts, "eval_every": SweepConfig.eval_every}
# Experts of one network on one data set serve all settings: an option that they share with the
# distillation, such as dsa_strategy, is for them that of the base.
_OF_EXPERTS = option_names(ExpertTraining) - option_names(DistillConfig)
_BASE = "base"
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


def option_name(text: str) -> str:
    """The option that ``text`` means, typed as a field or as on the command line.

    Raises:
        ValueError: If there is none, or it is the seed.
    """
    name = text.strip().lstrip("-").replace("-", "_")
    if name not in option_names(SweepConfig):
        known = ", ".join(sorted(option_names(SweepConfig) - {"seed"}))
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
    hint = get_type_hints(SweepConfig)[name]
    parts = get_args(hint) or (hint,)
    text = text.strip()
    if any(text in get_args(part) for part in parts):
        return text
    if NoneType in parts and text == "none":
        return None
    if not any(isinstance(part, type) for part in parts):
        check_choice(f"vary: {name}", text, parts)
        return text
    value: Any = text
    for kind in (part for part in parts if part in (bool, int, float)):
        try:
            value = _WORDS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            continue
    check_options({name: value}, SweepConfig, "vary")
    return value


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
    """Options that a setting has and does not use."""
    config = setting.config
    unused = fixed_sizes(config.network)
    if config.weight == 0:
        unused |= option_names(MIM4DDSettings) - {"weight"}
    if config.experts or not needs_experts(config.method):
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
    """The given options with some changed; ``names`` are those that tell settings apart."""
    check_options(dict(given), SweepConfig, "given")
    options = dict(given)
    if base is not None and change.get("method", base.config.method) != base.config.method:
        check_choice("vary: method", change["method"], tuple(METHODS))
        for name in foreign_options(change["method"]):
            options.pop(name, None)
    config = _with_default_layers(_resolved(DistillConfig, {**_DEFAULTS, **options, **change}))
    experts = _experts_for(config, given, change)
    norm, pooling = check_network(config.network, norm=config.norm, pooling=config.pooling)
    values = asdict(experts) | asdict(config) | {"norm": norm, "pooling": pooling}
    options = {name: values[name] for name in names}
    differing = [
        f"{name}={shown(value)}"
        for name, value in options.items()
        if base is not None and value != base.options[name]
    ]
    return Setting(",".join(differing) or _BASE, options, config, experts)


def _with_default_layers(config: DistillConfig) -> DistillConfig:
    """The same network, its norm and pooling left to the default where they are the default's."""
    norm, pooling = check_network(config.network, norm=None, pooling=None)
    return replace(
        config,
        norm=None if config.norm == norm else config.norm,
        pooling=None if config.pooling == pooling else config.pooling,
    )


def _experts_for(
    config: DistillConfig, given: Mapping[str, Any], change: Mapping[str, Any]
) -> ExpertsConfig:
    """How the experts are trained that a setting may match: on its data and its network."""
    task = {name: getattr(config, name) for name in option_names(TaskSettings)}
    typed = {**given, **{name: change[name] for name in change if name in _OF_EXPERTS}, **task}
    experts = _resolved(ExpertsConfig, typed)
    # Data, method and images per class may ask for longer trajectories than the data alone.
    asked = SweepConfig.preset(asdict(config)).get("train_epochs", 0)
    if "train_epochs" in typed or asked <= experts.train_epochs:
        return experts
    return replace(experts, train_epochs=asked)


def _resolved(kind: type[Config], given: Mapping[str, Any]) -> Config:
    """What a command makes of those of the options that it has."""
    return kind.resolve(**{name: given[name] for name in given if name in option_names(kind)})
