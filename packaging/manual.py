"""Write the man pages: manual.py DIRECTORY [DATE].

ndxdp(8) comes from the `--help` texts of the commands, ndxdp.toml(5) from docs/configuration.md. So
each option and key is described once, and none is missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ndxdp import __version__
from ndxdp.cli import examples
from ndxdp.cli.main import cli

CONFIGURATION = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
DOCUMENTS = "/usr/share/doc/ndxdp"

SEE_ALSO = rf""".SH SEE ALSO
.BR {{other}} ,
.BR ip\-neighbour (8),
.BR systemctl (1)
.PP
{DOCUMENTS}/docs/index.md lists the documentation by question.
"""

COMMANDS_END = r""".SH EXIT STATUS
.TP
.B 0
The command succeeded.
.TP
.B 1
The command failed.
.TP
.B 2
The arguments, or the configuration file, are wrong.
.TP
.B 3
.B ndxdp explain \-\-exit\-code
found that there is no answer.
.TP
.B 130
The command was interrupted.
.PP
.B ndxdp doctor
exits with 1 for warnings and 2 for failures.
.SH ENVIRONMENT
.TP
.B NDXDP_BPFFS
The same as \fB\-\-bpffs\fR.
.TP
.B NDXDP_RUN_DIRECTORY
The same as \fB\-\-run\-directory\fR.
.SH FILES
.TP
.I /etc/ndxdp/ndxdp.toml
The configuration of the service; see
.BR ndxdp.toml (5).
.TP
.I /sys/fs/bpf/ndxdp
Pinned programs and maps, which answer without a process.
.TP
.I /run/ndxdp
Rules and counters of userspace mode, and reports of running daemons.
.TP
.I /usr/share/ndxdp/dashboards
A dashboard for Grafana, alerts and recording rules for Prometheus.
.SH EXAMPLES
Answer for a prefix behind this host, except for one address, and show the state:
.PP
.EX
ndxdp attach eth0 \-n 2001:db8:0:1:c::/80 \-\-except 2001:db8:0:1:c::dead
ndxdp status
ndxdp explain 2001:db8:0:1:c::10
ndxdp detach eth0
.EE
.PP
To run ndxdp permanently, as a service, edit /etc/ndxdp/ndxdp.toml, then
.PP
.EX
ndxdp check
systemctl enable \-\-now ndxdp
.EE
"""


# ---- roff ----------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Escape text for roff, with hyphens that can be pasted into a shell."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def inline(text: str) -> str:
    """Convert a line of Markdown: `code`, **strong**, *emphasis*, [words](link)."""
    text = re.sub(r"\[((?:`[^`]*`|[^\][`])+)\]\([^)]+\)", r"\1", text)
    found = []
    for code, strong, emphasis, plain in re.findall(
        r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*|([^`*]+|\*)", text
    ):
        if code or strong:
            found.append(rf"\fB{escape(code or strong)}\fR")
        elif emphasis:
            found.append(rf"\fI{escape(emphasis)}\fR")
        else:
            found.append(escape(plain))
    return re.sub(r"^([.'])", r"\\&\1", "".join(found))


def title(name: str, section: int, date: str) -> str:
    """Return the first line of a manual page."""
    return f'.TH {escape(name).upper()} {section} "{date}" "ndxdp {__version__}" ndxdp\n'


def example(text: str) -> str:
    """Return an example, printed as it is."""
    return f".PP\n.EX\n{escape(text.rstrip())}\n.EE\n"


# ---- ndxdp(8) ------------------------------------------------------------------------------------


def commands(
    group: click.Group, above: click.Context | None = None
) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every command, depth first, with the context that has its full name."""
    context = click.Context(group, info_name=group.name if above else "ndxdp", parent=above)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        if isinstance(command, click.Group):
            yield from commands(command, context)
        else:
            yield command, click.Context(command, info_name=name, parent=context)


def records(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """Return the names and the help text of each option except --help."""
    found = (parameter.get_help_record(context) for parameter in command.params)
    return [(names, " ".join(meaning.split())) for names, meaning in filter(None, found)]


def options(records: list[tuple[str, str]]) -> str:
    """Return a list of options and their meanings."""
    return "".join(f".TP\n.B {escape(names)}\n{escape(meaning)}\n" for names, meaning in records)


def paragraphs(help_text: str | None) -> str:
    """Return the paragraphs of a help text."""
    pieces = re.split(r"\n\s*\n", (help_text or "").strip())
    return "\n.PP\n".join(escape(" ".join(piece.split())) for piece in pieces)


def commands_page(date: str) -> str:
    """Return ndxdp(8), made from the `--help` texts."""
    root = click.Context(cli, info_name="ndxdp")
    text = title("ndxdp", 8, date)
    text += ".SH NAME\nndxdp \\- answer IPv6 Neighbor Solicitations in the kernel\n"
    text += ".SH SYNOPSIS\n.B ndxdp\n.RI [ OPTIONS ]\n.I COMMAND\n.RI [ ARGS ]...\n"
    text += f".SH DESCRIPTION\n{paragraphs(cli.help)}\n.PP\n"
    text += (
        "A BPF program answers from the target's own address, for containers, virtual machines and"
        "\ntunnels whose prefix an upstream router treats as on\\-link. The program passes frames"
        "\nthat it does not answer to the kernel unchanged.\n"
    )
    everywhere = records(cli, root)
    text += f".SH OPTIONS\n{options(everywhere)}.PP\n"
    text += "Every command accepts the last three as well, and \\fB\\-h\\fR.\n.SH COMMANDS\n"
    for command, context in commands(cli):
        usage = " ".join(command.collect_usage_pieces(context))
        text += f".SS {escape(f'{context.command_path} {usage}')}\n"
        own = [each for each in records(command, context) if each not in everywhere]
        text += f"{paragraphs(command.help)}\n{options(own)}"
        text += example("\n".join(examples.lines_of(context.command_path.partition(" ")[2])))
    return text + COMMANDS_END + SEE_ALSO.format(other="ndxdp.toml (5)")


# ---- ndxdp.toml(5) -------------------------------------------------------------------------------


def row(line: str) -> str:
    """Convert a row of a table of keys: key, type, default, and description."""
    cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    name, kind, default, meaning = cells
    about = ", ".join(filter(None, (kind, default and f"default {default}")))
    if default == "needed":
        about = f"{kind}, needed"
    tag = inline(name) + (f" ({inline(about)})" if about else "")
    return f".TP\n{tag}\n{inline(meaning)}\n"


def configuration_page(markdown: str, date: str) -> str:
    """Return ndxdp.toml(5), made from docs/configuration.md."""
    text = title("ndxdp.toml", 5, date)
    text += ".SH NAME\nndxdp.toml \\- configuration of ndxdp\n"
    text += ".SH SYNOPSIS\n.I /etc/ndxdp/ndxdp.toml\n.SH DESCRIPTION\n"
    pieces = re.split(r"^```\w*\n(.*?)^```$", markdown, flags=re.MULTILINE | re.DOTALL)
    for number, piece in enumerate(pieces):
        if number % 2:
            text += example(piece)
            continue
        for block in re.split(r"\n\s*\n", piece.strip()):
            if block.startswith("# "):
                continue
            if block.startswith("## "):
                text += f'.SH "{escape(block[3:])}"\n'
            elif block.startswith("|"):
                text += "".join(map(row, block.splitlines()[2:]))
            elif block:
                text += f".PP\n{inline(' '.join(block.split()))}\n"
    text = text.replace(".SH DESCRIPTION\n.PP\n", ".SH DESCRIPTION\n")
    return text + SEE_ALSO.format(other="ndxdp (8)")


def main(directory: Path, date: str) -> None:
    """Write both manual pages into a folder."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ndxdp.8").write_text(commands_page(date))
    markdown = CONFIGURATION.read_text()
    (directory / "ndxdp.toml.5").write_text(configuration_page(markdown, date))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
