"""`batchrun help`: lists the guides, or shows one in the pager. Shells can complete the topics."""

from __future__ import annotations

import click

from batchrun.cli.command import Command
from batchrun.cli.output import echo


def _complete(_ctx: click.Context, _param: click.Parameter, start: str) -> list[str]:
    from batchrun.commands import help as guides

    return [topic for topic in guides.topics() if topic.startswith(start)]


@click.command("help", cls=Command)
@click.argument("topic", required=False, shell_complete=_complete)
def show_guide(topic: str | None) -> None:
    """List the guides, or show the one on TOPIC.

    `batchrun COMMAND --help` explains the options of a command.

    \b
    Examples:
      batchrun help
      batchrun help sweeps
    """
    from batchrun.commands import help as guides

    if topic is None:
        echo(f"Guides, shown by batchrun help TOPIC:\n\n{guides.contents()}\n\nOptions: batchrun COMMAND --help")
    else:
        click.echo_via_pager(guides.guide(topic))
