"""`ndxdp help`: the same text as `--help`."""

from __future__ import annotations

import click

from ndxdp.cli.options import verbosity
from ndxdp.cli.usage import no_command


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@verbosity
def help_command(words: tuple[str, ...]) -> None:
    """Describe a command, or list all commands.

    Print the same as `ndxdp COMMAND --help`.
    """
    context = click.get_current_context().find_root()
    for word in words:
        group = context.command
        found = group.get_command(context, word) if isinstance(group, click.Group) else None
        if found is None:
            raise no_command(context, word)
        context = click.Context(found, info_name=word, parent=context)
    click.echo(context.get_help())
