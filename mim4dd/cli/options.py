"""Commands whose options are those of a configuration, beside the method that is asked for."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand

from mim4dd.distill.config.commands import TaskSettings
from mim4dd.distill.config.file import read_options
from mim4dd.distill.registry import import_plugin
from mim4dd.distill.settings import Option

__all__ = [
    "PAPER_HELP",
    "add_command",
    "flag",
    "flags_on_command_line",
    "given_options",
    "with_options",
]

PAPER_HELP = "Draw in the size of a paper, without titles, as PNG, PDF and SVG."
_CONFIG = "config_file"  # as "config" is what a command gets
_GIVEN = "mim4dd.given_options"
_WIDEST = 100  # columns of a help
# What other options and their defaults depend on; a method comes first.
_DECIDING = ("method", "data", "ipc", "ipc_by_class", "add_on", "network")


class _Asked(NamedTuple):
    """What a command line says before its options are known, and which options there are then."""

    decided: dict[str, Any]
    of_file: dict[str, Any]
    tabulated: dict[str, Any]
    options: dict[str, Option]


class _InGroups(TyperCommand):
    """A command whose help is short: a group after another, each option with its default."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                group = getattr(parameter, "rich_help_panel", None) or "Options"
                names, text = record
                groups.setdefault(group, []).append((names, text.replace("[default: ", "[")))
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def flag(name: str) -> str:
    """How an option is typed."""
    return "--config" if name == _CONFIG else f"--{name.replace('_', '-')}"


def flags_on_command_line(context: typer.Context, without: Iterable[str]) -> list[str]:
    """The options but some that were typed, not left to a default or a file, as they are typed."""
    left_out = frozenset(without)
    return [flag(name) for name in context.params if name not in left_out and _typed(context, name)]


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def given_options(context: typer.Context) -> dict[str, Any]:
    """The options that were typed or came from a configuration file, without the defaults."""
    return dict(context.meta[_GIVEN])


def with_options(
    kind: type[TaskSettings], files: Mapping[str, Callable[[Path], Path]] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of a configuration, and the configuration that they make.

    Which options there are follows from those that choose something, as ``--method`` does: they are
    read first. The dataclasses stay the only places where an option, its default and its help are
    written; the defaults that are shown are the tabulated ones, for the method and the data.

    Args:
        kind: The configuration, which the command gets as ``config``.
        files: Options of the command's own by name, each with the file of options that it
            means, as ``--resume`` means a run's.
    """
    means: dict[str, Callable[[Path], Path]] = {_CONFIG: lambda path: path, **(files or {})}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        class Command(TyperCommand):
            def make_context(
                self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
            ) -> Any:
                asked = _ask_first(kind, args, means)
                _refuse_options_of_others(kind, args, asked)
                inner = typer.Typer(add_completion=False, rich_markup_mode=None)
                settings = {"max_content_width": _WIDEST}
                inner.command(info_name, cls=_InGroups, context_settings=settings)(
                    _bound(kind, function, asked)
                )
                return typer.main.get_command(inner).make_context(info_name, args, parent, **extra)

            def invoke(self, ctx: Any) -> Any:
                return ctx.command.invoke(ctx)  # the one that has the options

        def stub() -> None: ...

        stub.__name__, stub.__doc__ = function.__name__, function.__doc__
        stub.command_class = Command  # type: ignore[attr-defined]
        return stub

    return decorate


def add_command(app: typer.Typer, command: Callable[..., None]) -> None:
    """Have an application know a command, with or without :func:`with_options`."""
    app.command(cls=getattr(command, "command_class", None))(command)


def _ask_first(
    kind: type[TaskSettings], words: Sequence[str], means: Mapping[str, Callable[[Path], Path]]
) -> _Asked:
    """Read what decides about the other options, and the files of options; import plugins."""
    for name in _values("plugin", words):
        import_plugin(name)
    of_file: dict[str, Any] = {}
    for name, file_of in means.items():
        for typed in _values(name, words)[-1:]:
            file = file_of(Path(typed))
            of_file = kind.read(read_options(file), str(file))
    known = {*kind.own_options(), *kind.CHOICES}
    decided = {name: of_file[name] for name in _DECIDING if name in of_file}
    for name in known.intersection(_DECIDING):
        for typed in _values(name, words)[-1:]:
            decided[name] = typed
    if isinstance(ipc := decided.get("ipc"), str):
        if ipc.isdecimal():
            decided["ipc"] = int(ipc)
        else:  # which is refused when it is parsed
            del decided["ipc"]
    tabulated = kind.preset(decided)
    return _Asked(decided, of_file, tabulated, kind.describe(kind.chosen(tabulated | decided)))


def _values(name: str, words: Sequence[str]) -> list[str]:
    """The values of an option among the words of a command line."""
    sign = flag(name)
    after = [later for word, later in pairwise(words) if word == sign]
    return after + [word.partition("=")[2] for word in words if word.startswith(f"{sign}=")]


def _refuse_options_of_others(
    kind: type[TaskSettings], words: Sequence[str], asked: _Asked
) -> None:
    """Say of an option of another method that it has no effect on this one."""
    every = kind.every_option()
    typed = {
        word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        for word in words
        if word.startswith("--")
    }
    for name in sorted(typed & set(every) - set(asked.options)):
        kind.require({**asked.decided, name: every[name].default}, "the command line")


def _bound(
    kind: type[TaskSettings], function: Callable[..., None], asked: _Asked
) -> Callable[..., None]:
    """The command with the options there are beside what is decided."""
    options, defaults = asked.options, asked.tabulated | asked.of_file | asked.decided
    first = [name for name in _DECIDING if name in options]
    order = [*first, *(name for name in options if name not in first)]
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name, options[name].default),
            annotation=Annotated[
                options[name].hint,
                typer.Option(help=options[name].help, rich_help_panel=options[name].group or None),
            ],
        )
        for name in order
    ]
    parameters += [
        _extra(
            _CONFIG,
            Path | None,
            None,
            "JSON or YAML file with options, such as a run's config.json.",
        ),
        _extra(
            "plugin",
            list[str] | None,
            None,
            "Python file or module with your own methods, networks or data sets.",
        ),
    ]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "config"
    ]
    wants_context = any(parameter.annotation is typer.Context for parameter in own)
    if not wants_context:
        own.append(
            inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        )

    def run(**values: Any) -> None:
        for name in (_CONFIG, "plugin"):  # which were read first
            del values[name]
        context = values["context"] if wants_context else values.pop("context")
        typed = {name: values.pop(name) for name in order}
        given = asked.of_file | {name: typed[name] for name in order if _typed(context, name)}
        context.meta[_GIVEN] = given
        function(config=kind.resolve(**given), **values)

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    # Typer reads the options from the signature, which types say a function has not.
    run.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*parameters, *own]}
    return run


def _extra(name: str, hint: Any, default: Any, text: str) -> inspect.Parameter:
    annotation = Annotated[hint, typer.Option(flag(name), help=text)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
