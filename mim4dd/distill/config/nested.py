"""Configurations: options are flat where they are typed, and nested where they are used."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from mim4dd.distill.registry import Entry, Registry
from mim4dd.distill.settings import Option, Settings, check_type, options_of

__all__ = ["Configuration", "part"]

Config = TypeVar("Config", bound="Configuration")
Part = TypeVar("Part", bound="Configuration")

# Beside a network or method without a use for them, these counted for nothing until mim4dd 0.2;
# comparisons and sweeps noted experts for every method.
_ONCE_IGNORED = frozenset({"width", "depth", "experts"})
# These could be null until then, for what is the default now.
_ONCE_NULL = frozenset({"norm", "pooling"})


@dataclass(frozen=True)
class Configuration(Settings):
    """Settings some of which are of a thing that is chosen by its name, and hold its own settings.

    A subclass names such things in ``CHOICES``. For an option ``method`` it has two fields:
    ``method_name``, and ``method``, the settings that the registry has for that name. Where options
    are typed, in files and for :meth:`of`, they are flat: ``method`` is the name, and beside it
    stand the options of that method alone.
    """

    CHOICES: ClassVar[Mapping[str, Registry[Any]]] = {}

    def check(self) -> None:
        """Raise ValueError on settings of something else than what is named."""
        for option, registry in self.CHOICES.items():
            name, settings = getattr(self, f"{option}_name"), getattr(self, option)
            if type(settings) is not registry[name].settings:
                raise ValueError(
                    f"{option} must hold the {registry[name].settings.__name__} of {name!r}, "
                    f"got {type(settings).__name__}"
                )

    @classmethod
    def chosen(cls, options: Mapping[str, Any]) -> dict[str, Entry]:
        """What these flat options choose, or the defaults of the class do.

        Raises:
            ValueError: If there is nothing by that name.
        """
        return {
            option: registry[options.get(option, getattr(cls, f"{option}_name"))]
            for option, registry in cls.CHOICES.items()
        }

    @classmethod
    def unused(cls, chosen: Mapping[str, Entry]) -> set[str]:
        """The configuration's own options that what is chosen has no use for."""
        return set()

    @classmethod
    def describe(cls, chosen: Mapping[str, Entry]) -> dict[str, Option]:
        """All flat options beside what is chosen, by name.

        Raises:
            ValueError: If two that are not the same share a name.
        """
        found = {}
        for option, registry in cls.CHOICES.items():
            text = f"{options_of(cls)[option].help} One of {', '.join(registry)}."
            found[option] = Option(str, chosen[option].name, text)
        unused = cls.unused(chosen)
        found |= {name: each for name, each in cls.own_options().items() if name not in unused}
        for option, entry in chosen.items():
            group = f"{option.replace('_', '-').capitalize()} {entry.title}"
            for name, each in options_of(entry.settings).items():
                new = each._replace(group=group)
                known = found.setdefault(name, new)
                if (known.hint, known.default) != (new.hint, new.default):
                    raise ValueError(
                        f"{name} is an option of {option} {entry.name!r} and, of another "
                        f"type or default, of {known.group or cls.__name__}: rename one"
                    )
        return found

    @classmethod
    def own_options(cls) -> dict[str, Option]:
        """The fields that are options themselves."""
        nested = {name for option in cls.CHOICES for name in (option, f"{option}_name")}
        return {name: each for name, each in options_of(cls).items() if name not in nested}

    @classmethod
    def every_option(cls) -> dict[str, Option]:
        """All flat options beside anything that may be chosen; of one name, with all its types."""
        found = {option: Option(str, None, "") for option in cls.CHOICES} | cls.own_options()
        for registry in cls.CHOICES.values():
            for entry in registry.values():
                for name, each in options_of(entry.settings).items():
                    known = found.setdefault(name, each)
                    if known.hint != each.hint:
                        found[name] = known._replace(hint=known.hint | each.hint)
        return found

    @classmethod
    def of(cls: type[Config], /, **options: Any) -> Config:
        """The configuration of flat options; those left out have the defaults of their classes.

        Raises:
            ValueError: If an option does not exist beside what is chosen, is not of its type or has
                a bad value.
        """
        cls.require(options, cls.__name__)
        values: dict[str, Any] = {
            name: options[name] for name in cls.own_options() if name in options
        }
        for option, entry in cls.chosen(options).items():
            own = {name: options[name] for name in entry.options & set(options)}
            values |= {f"{option}_name": entry.name, option: entry.settings(**own)}
        return cls(**values)

    @classmethod
    def require(cls, options: Mapping[str, Any], source: str) -> None:
        """Raise ValueError unless every option exists beside what is chosen and is of its type."""
        chosen = cls.chosen(options)
        known = cls.describe(chosen)
        for name in sorted(set(options) - set(known)):
            raise ValueError(cls._why_not(name, chosen, source))
        for name, value in options.items():
            check_type(name, value, known[name].hint, source)

    @classmethod
    def _why_not(cls, name: str, chosen: Mapping[str, Entry], source: str) -> str:
        for option, registry in cls.CHOICES.items():
            if name in registry.options():
                return f"{name} has no effect on {option} {chosen[option].name!r}"
        if name in cls.own_options():  # which what is chosen first, the method, has no use for
            option, entry = next(iter(chosen.items()))
            return f"{name} has no effect on {option} {entry.name!r}"
        return f"{source} names unknown options: {name}"

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The flat options that a file holds, without what counts for nothing.

        Until mim4dd 0.2 a run noted the options of all methods. Those of others than its own are
        left out where they are what that method has by default, as they had to be.

        Raises:
            ValueError: If an option does not exist, is not of its type, or would have no effect.
        """
        options = dict(values)
        for name in _ONCE_NULL & set(options):
            if options[name] is None:
                del options[name]
        chosen = cls.chosen(options)
        known = cls.describe(chosen)
        for name in sorted(set(options) - set(known)):
            if name in _ONCE_IGNORED or cls._is_default(name, options[name]):
                del options[name]
        cls.require(options, source)
        return options

    @classmethod
    def _is_default(cls, name: str, value: Any) -> bool:
        found = [
            options_of(kind)[name].default
            for kind in (
                cls,
                *(entry.settings for each in cls.CHOICES.values() for entry in each.values()),
            )
            if name in options_of(kind)
        ]
        return value in found

    @classmethod
    def complete(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Flat options with the defaults of the classes for the others; values are not checked."""
        defaults = {name: each.default for name, each in cls.describe(cls.chosen(options)).items()}
        return defaults | dict(options)

    def options(self) -> dict[str, Any]:
        """All options, flat: what :meth:`of` makes this configuration of, and files hold."""
        values = {option: getattr(self, f"{option}_name") for option in self.CHOICES}
        unused = self.unused(self.chosen(values))
        values |= {name: getattr(self, name) for name in self.own_options() if name not in unused}
        for option in self.CHOICES:
            settings = getattr(self, option)
            values |= {name: getattr(settings, name) for name in options_of(type(settings))}
        return values

    def but(self: Config, **changes: Any) -> Config:
        """The same with some flat options changed."""
        return type(self).of(**(self.options() | changes))


def part(config: Configuration, kind: type[Part], **changes: Any) -> Part:
    """The part of a configuration that another command takes, some flat options changed."""
    values = config.options()
    known: Collection[str] = kind.describe(kind.chosen(values))
    return kind.of(**({name: values[name] for name in values if name in known} | changes))
