"""Commands whose options are the fields of a configuration."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mim4dd.distill.config.commands import TaskSettings, method_titles
from mim4dd.distill.settings import check_options, field_help

__all__ = [
    "flag",
    "flags_on_command_line",
    "given_options",
    "reads_options",
    "with_options",
]

_OF_FILE = "mim4dd.options_of_file"
_CONFIG = "config_file"  # as "config" is what a command gets


def reads_options(
    kind: type[TaskSettings], name_of_file: Callable[[Path], Path] = lambda path: path
) -> Callable[[typer.Context, Path | None], Path | None]:
    """A callback for an eager option whose file holds the options that the command line leaves.

    Args:
        kind: What they are options of.
        name_of_file: The JSON file, from what was typed.
    """

    def read(context: typer.Context, path: Path | None) -> Path | None:
        """Make the file's values the defaults, which the command line overrides."""
        if path is not None:
            from mim4dd.distill.files.atomic import read_json

            file = name_of_file(path)
            values = read_json(file)
            check_options(values, kind, str(file))
            context.default_map = {**(context.default_map or {}), **values}
            context.meta[_OF_FILE] = frozenset(values)
        return path

    return read


def flag(name: str) -> str:
    """How an option is typed."""
    return "--config" if name == _CONFIG else f"--{name.replace('_', '-')}"


def flags_on_command_line(context: typer.Context, without: Iterable[str]) -> list[str]:
    """The options but some that were typed, not left to a default or a file, as they are typed."""
    left_out = frozenset(without)
    return [
        flag(name)
        for name in context.params
        if name not in left_out and _source(context, name) == "COMMANDLINE"
    ]


def _source(context: typer.Context, name: str) -> str | None:
    source = context.get_parameter_source(name)
    return None if source is None else source.name


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the option was typed or is in a configuration file."""
    # Of a file's null click says that it comes from the default.
    return _source(context, name) != "DEFAULT" or name in context.meta.get(_OF_FILE, ())


def given_options(context: typer.Context, config: TaskSettings) -> dict[str, Any]:
    """The options that were typed or came from a configuration file, without the defaults."""
    names = (option.name for option in fields(config))
    return {name: getattr(config, name) for name in names if _is_given(context, name)}


def _with_methods(name: str, text: str) -> str:
    """The help of an option, with the methods that take it where not all do."""
    titles = method_titles(name)
    return f"{text} Only {', '.join(titles)}." if titles else text


def with_options(kind: type[TaskSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of a configuration as an option, and the filled-in configuration.

    The dataclass stays the only place where an option, its default and its help are written.
    """
    hints, texts = get_type_hints(kind), field_help(kind)
    names = [option.name for option in fields(kind)]
    if "method" in names:
        texts = {name: _with_methods(name, text) for name, text in texts.items()}
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[hints[option.name], typer.Option(help=texts[option.name])],
        )
        for option in fields(kind)
    ]
    options.append(
        inspect.Parameter(
            _CONFIG,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(
                    flag(_CONFIG),
                    help="JSON file of options, such as a run's config.json.",
                    is_eager=True,
                    callback=reads_options(kind),
                ),
            ],
        )
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "config"
        ]

        wants_context = any(parameter.annotation is typer.Context for parameter in own)
        if not wants_context:
            own.append(
                inspect.Parameter(
                    "context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context
                )
            )

        def run(**values: Any) -> None:
            del values[_CONFIG]  # its callback has read it
            options = {name: values.pop(name) for name in names}
            context = values["context"] if wants_context else values.pop("context")
            given = {name: options[name] for name in names if _is_given(context, name)}
            config = kind.resolve(**given)
            command(config=config, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # Typer reads the options from the signature, which types say a function has not.
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {
            parameter.name: parameter.annotation for parameter in [*own, *options]
        }
        return run

    return decorate
