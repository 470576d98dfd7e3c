"""Groups of commands: their list in `--help`, and the error for a command that does not exist."""

from __future__ import annotations

from typing import Any

import click

from ndxdp.cli.usage import no_command

SECTIONS = {
    "Answer": ("attach", "run", "share", "detach", "pause", "resume", "prefix"),
    "Observe": ("status", "hosts", "explain", "trace", "top", "doctor", "exporter", "metrics"),
    "Many hosts": ("fleet",),
    "Configure": ("init", "check", "reload", "install-service", "convert", "help"),
}
"""The commands in the order in which `ndxdp --help` lists them."""


class Group(click.Group):
    """A group of commands with errors in the form of ndxdp's own."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names; raise UsageError if there is none."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise no_command(ctx, args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; name it in an error of the parser, which leaves that out."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            name = ctx.invoked_subcommand
            if error.ctx is None and name and (command := self.get_command(ctx, name)):
                error.ctx = click.Context(command, info_name=name, parent=ctx)
            raise


class TopGroup(Group):
    """The group of all commands, which lists them by purpose."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a list of commands for each purpose; other commands come last."""
        listed = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in listed)
        widest = max(map(len, self.commands))
        for title, names in (*SECTIONS.items(), ("Other", others)):
            rows = [
                (name.ljust(widest), command.get_short_help_str(formatter.width - widest - 6))
                for name in names
                if (command := self.get_command(ctx, name)) and not command.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
