"""mim4dd buffer."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.cli.options import flags_on_command_line, with_options
from mim4dd.distill.config.commands import TaskSettings

__all__ = ["buffer"]


@with_options(TaskSettings)
def buffer(
    config: TaskSettings,
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Folder of replay_buffer_*.pt or of expert_*.safetensors files.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the converted files.")],
    cast: Annotated[
        bool, typer.Option("--cast", help="Also convert parameters in half or double precision.")
    ] = False,
) -> None:
    """Convert experts from MTT's files, or to MTT's files.

    The first expert from MTT is tested on the data; a warning says if it is no better than chance.
    """
    from mim4dd.distill.experts.replay_buffer import export_replay_buffers, import_replay_buffers

    theirs, ours = any(source.glob("replay_buffer_*.pt")), any(source.glob("expert_*.safetensors"))
    if theirs == ours:
        raise ValueError(
            "source must be a folder of replay_buffer_*.pt or of expert_*.safetensors files, "
            f"{source} holds {'both' if ours else 'neither'}"
        )
    if theirs:
        data = config.load_data()
        network = config.make_network(data)
        experts = import_replay_buffers(
            source, out, network, config.network_title, data.name, data=data, cast=cast
        )
        accuracy = experts.headers[0]["accuracy"]
        # None if an earlier call without data has written it.
        tested = "" if accuracy is None else f", test accuracy of the first {accuracy:.3f}"
        typer.echo(f"{len(experts)} experts of {experts.num_epochs} epochs in {out}{tested}")
        return
    given = flags_on_command_line(context, without=("source", "out"))
    if given:
        raise ValueError(
            f"{source} already says what its experts are; leave out {', '.join(given)}"
        )
    for path in export_replay_buffers(source, out):
        typer.echo(str(path))
