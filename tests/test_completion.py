"""Completion in bash, zsh and fish: what is offered, and that the shells insert it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ndxdp.cli import completion
from ndxdp.cli.main import cli
from ndxdp.ndp.reason import Reason
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    HOST,
    NDXDP,
    PATIENCE,
    REPOSITORY,
    UPLINK,
    Network,
    call,
    done,
    remove_instance,
    sh,
)
from tests.test_lean import TELLING, imported

GUEST, OTHER_GUEST = "2001:db8::c:0:0:7", "2001:db8::d:0:0:8"
BIN = REPOSITORY / ".venv" / "bin"


def offered(line: str, *, env: dict[str, str] | None = None) -> list[str]:
    """Return what is offered at the end of a line; nothing may be printed on stderr."""
    words = line.split(" ")
    request = {
        "_NDXDP_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(["ndxdp", *words]),
        "COMP_CWORD": str(len(words)),
    }
    ended = call(*NDXDP, env=request | (env or {}))
    assert (ended.code, ended.err) == (0, ""), ended
    return [item.partition(",")[2] for item in ended.out.splitlines() if "," in item]


def kinds(line: str) -> set[str]:
    """Return the types of what is offered: `plain`, `file` or `dir`."""
    words = line.split(" ")
    environment = {
        "_NDXDP_COMPLETE": "zsh_complete",
        "COMP_WORDS": "\n".join(["ndxdp", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return set(call(*NDXDP, env=environment).out.splitlines()[::3]) - {""}


@pytest.fixture
def two(net: Network) -> Iterator[Network]:
    """Attach ndxdp to one of two interfaces, with some rules."""
    sh("ip", "link", "add", "other0", "type", "veth", "peer", "name", "far0")
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    done("prefix", "add", GUEST)
    done("prefix", "add", "--origin", "wg0", OTHER_GUEST)
    yield net
    sh("ip", "link", "delete", "other0")
    remove_instance()


# ---- what is offered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pre", ["prefix"]),
        ("prefix ", ["add", "del", "list", "replace"]),
        ("help prefix re", ["replace"]),
        ("attach other", ["other0"]),
        ("run o", ["other0"]),
        ("doctor o", ["other0"]),
        ("pause ", [UPLINK]),
        ("status ", [UPLINK]),
        ("trace ", [UPLINK]),
        (f"trace {UPLINK} ", []),
        ("explain -i ", [UPLINK]),
        ("prefix del 2001", [BEHIND, GUEST]),
        (f"prefix del {UPLINK} ", [BEHIND, GUEST]),
        (f"prefix del {GUEST} 2001", [BEHIND]),
        (f"prefix del -i {UPLINK} 2001:db8::c:", [GUEST]),
        ("prefix del --origin wg0 2001", [OTHER_GUEST]),
        ("prefix del --origin ", ["manual", "wg0", "host"]),
        (f"prefix replace {UPLINK} 2001", [BEHIND, GUEST, OTHER_GUEST]),
        ("explain 2001:db8::d", [OTHER_GUEST]),
        ("trace --target 2001:db8::d", [OTHER_GUEST]),
        ("trace --reason no_r", ["no_rule", "no_route"]),
        ("trace --reason ", [reason.label for reason in list(Reason)[1:]]),
        ("attach up0 --mode ", ["auto", "native", "generic", "tc", "userspace"]),
        ("attach up0 --mode=na", ["native"]),
        ("attach up0 --mo", ["--mode"]),
        ("attach up0 --dev fa", ["far0"]),
        ("prefix add --na-source ", ["target", "link-local"]),
        (f"prefix add {UPLINK} 2001", []),
        ("attach up0 -n 2001", []),
        ("pause nosuch", []),
        ("--color ", ["auto", "always", "never"]),
    ],
)
def test_values(two: Network, line: str, expected: list[str]) -> None:
    found = offered(line)
    if "host" in expected or line.endswith((":", "2001")):
        assert set(found) == set(expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("check ", "file"),
        ("run -c ", "file"),
        ("reload --config ", "file"),
        ("convert ", "file"),
        ("prefix add --file ", "file"),
        ("trace --pcap ", "file"),
        ("run --docker-socket ", "file"),
        ("--bpffs ", "dir"),
        ("install-service --directory ", "dir"),
    ],
)
def test_files_and_directories_are_left_to_the_shell(line: str, kind: str) -> None:
    assert kinds(line) == {kind}


def test_each_parameter_has_its_values_or_is_free() -> None:
    """Know for every parameter what to offer; `ndxdp/cli/completion.py` has both lists."""
    unknown = []

    def visit(command: click.Command) -> None:
        for parameter in command.params:
            has_own = isinstance(parameter.type, click.Choice) or (
                isinstance(parameter, click.Option) and (parameter.is_flag or parameter.count)
            )
            number = isinstance(parameter.type, click.IntRange | click.FloatRange)
            metavar = completion.metavar_of(parameter)
            if not (has_own or number or metavar in {*completion.COMPLETERS, *completion.FREE}):
                unknown.append(f"{command.name} {parameter.name} {metavar}")
        for inner in command.commands.values() if isinstance(command, click.Group) else ():
            visit(inner)

    visit(cli)
    assert not unknown


def test_many_rules_are_not_offered(two: Network) -> None:
    """Offer no prefix where there are more than a user can choose from."""
    listing = "".join(f"2001:db8::e:0:{n:x}\n" for n in range(1, 10_002))
    done("prefix", "add", "--file", "-", stdin=listing)
    assert offered("prefix del 2001:db8::c") == []
    assert offered("prefix del ") == [UPLINK]


def test_userspace_mode(net: Network) -> None:
    running = net.run(UPLINK, "--mode", "userspace", "-n", BEHIND)
    assert offered("prefix list ") == [UPLINK]
    assert offered(f"explain {UPLINK} 2001:db8::2") == [HOST]
    running.end_cleanly()


@pytest.mark.parametrize("words", [("--bpffs", "/nonexistent"), ("--bpffs", "/tmp")])
def test_where_nothing_can_be_read_every_interface_is_offered(
    two: Network, words: tuple[str, ...]
) -> None:
    """Offer all interfaces where the pins cannot be read, as for another user than root."""
    line = " ".join(words)
    assert offered(f"{line} pause ") == ["far0", "other0", UPLINK]
    assert offered(f"{line} prefix del {UPLINK} ") == []


def test_another_user_gets_interfaces_and_no_error(two: Network) -> None:
    code = (
        "import os, shlex; from ndxdp.cli.main import main\n"
        # The other user cannot import them, if Python is in root's home.
        "import ndxdp.cli.completion, ndxdp.store.directories, ndxdp.store.instance\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    mode = stat.S_IMODE(BPFFS.stat().st_mode)
    BPFFS.chmod(0o700)  # as systemd mounts it
    try:
        assert _of_another_user(code, "pause o") == ["other0"]
        assert _of_another_user(code, "prefix del up0 ") == []
        assert _of_another_user(code, "explain up") == [UPLINK]
    finally:
        BPFFS.chmod(mode)


def _of_another_user(code: str, line: str) -> list[str]:
    request = {
        "_NDXDP_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(["ndxdp", *line.split(" ")]),
        "COMP_CWORD": str(len(line.split(" "))),
    }
    ended = call(sys.executable, "-c", code, env=request)
    assert (ended.code, ended.err) == (0, "")
    return [item.partition(",")[2] for item in ended.out.splitlines() if item]


def test_completion_imports_little(two: Network) -> None:
    """Complete interfaces and rules without the costly libraries."""
    request = {"COMP_WORDS": "ndxdp\nprefix\ndel\n2001", "COMP_CWORD": "3"}
    script = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules)))\n"
        "from ndxdp.cli.main import main; main()"
    )
    ended = call(sys.executable, "-c", script, env=request | {"_NDXDP_COMPLETE": "bash_complete"})
    loaded = set(ended.out.split())
    assert f"plain,{GUEST}" in loaded
    assert "ndxdp.store.instance" in loaded
    costly = {"pyroute2", "asyncio", "prometheus_client", "rich", "subprocess", "tomllib", "http"}
    assert not loaded & costly
    plain = call(*TELLING, "--version")
    assert "ndxdp.cli.completion" not in imported(plain.err), "other commands do not pay for it"


# ---- Docker --------------------------------------------------------------------------------------


@contextlib.contextmanager
def engine(path: Path, body: bytes | None) -> Iterator[None]:
    """Answer one request at a socket with a body, or accept it and stay silent."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as client:
                client.recv(65536)
                if body is not None:
                    client.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
                else:
                    client.recv(1)  # until the other end closes

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
            last.settimeout(0.1)
            last.connect(str(path))
            last.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            b'[{"Name": "bridge"}, {"Name": "ipv6exposed"}, {"Name": "ipv4"}]',
            ["ipv4", "ipv6exposed"],
        ),
        (b"[]", []),
        (b"nonsense", []),
        (b"{}", []),
        (None, []),
    ],
)
def test_networks_of_docker(
    net: Network, tmp_path: Path, body: bytes | None, expected: list[str]
) -> None:
    path = tmp_path / "docker.sock"
    with engine(path, body):
        assert offered(f"run --docker-socket {path} -N ip") == expected


def test_without_docker_nothing_is_offered(net: Network, tmp_path: Path) -> None:
    assert offered(f"run --docker-socket {tmp_path}/none -N ") == []


# ---- shells --------------------------------------------------------------------------------------


class Shell:
    """An interactive shell on a terminal of its own, with the completion of ndxdp.

    Control-T prints the line that has been typed, with what the shell has inserted.
    """

    def __init__(self, *command: str, setup: str) -> None:
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb"}
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment | {"PS1": "$ ", "HISTFILE": ""},
            cwd="/",
            start_new_session=True,
        )
        os.close(theirs)
        self.type(f"{setup}\necho is''ready\n", "isready")

    def type(self, keys: str, until: str) -> str:
        """Type some keys; return what is written until a pattern is."""
        os.write(self._ours, keys.encode())
        written, give_up = "", time.monotonic() + 30 * PATIENCE
        while not re.search(until, written):
            readable, _, _ = select.select([self._ours], [], [], give_up - time.monotonic())
            assert readable, f"not within 30 s: {until!r}, but {written!r}"
            written += os.read(self._ours, 65536).decode(errors="replace")
        return written

    def complete(self, line: str) -> str:
        """Return a line after the Tab key."""
        shown = self.type(f"{line}\t\x14", r"LINE=<[^$]*?>")
        self.type("\x15", "")
        found = re.search(r"LINE=<([^$]*?)>", shown)
        assert found
        return found[1]

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._ours)


def script_of(shell: str, tmp_path: Path) -> Path:
    sh(sys.executable, str(REPOSITORY / "packaging" / "completion.py"), str(tmp_path))
    (script,) = (tmp_path / shell).iterdir()
    return script


def test_the_documented_commands_write_the_packages_scripts(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "install.md").read_text()
    lines = re.findall(r"^(_NDXDP_COMPLETE=(\w+)_source ndxdp) > \S+$", page, re.MULTILINE)
    assert [shell for _, shell in lines] == ["bash", "zsh", "fish"]
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    for line, shell in lines:
        ended = call("sh", "-c", line, env=environment)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.strip() == script_of(shell, tmp_path).read_text().strip()


INSERTED = [
    ("ndxdp pref", "ndxdp prefix "),
    ("ndxdp pause u", f"ndxdp pause {UPLINK} "),
    ("ndxdp attach oth", "ndxdp attach other0 "),
    ("ndxdp prefix del 2001:db8::c", f"ndxdp prefix del {GUEST} "),
    ("ndxdp prefix del 2001:db8:0:", f"ndxdp prefix del {BEHIND} "),
    (f"ndxdp prefix del {UPLINK} 2001:db8::c:", f"ndxdp prefix del {UPLINK} {GUEST} "),
    (f"ndxdp prefix del {BEHIND} 2001:", f"ndxdp prefix del {BEHIND} {GUEST} "),
    ("ndxdp trace --target=2001:db8::d", f"ndxdp trace --target={OTHER_GUEST} "),
    ("ndxdp attach eth0 --mode=nat", "ndxdp attach eth0 --mode=native "),
    ("ndxdp trace --reason no_ru", "ndxdp trace --reason no_rule "),
    ("ndxdp pause nosuch", "ndxdp pause nosuch"),
]

ODD = "zz;id&b"
"""The name of an interface that a shell must quote."""


@pytest.fixture
def odd(two: Network) -> Iterator[None]:
    """Add an interface with an odd name."""
    sh("ip", "link", "add", ODD, "type", "bridge")
    yield
    sh("ip", "link", "delete", ODD)


def need(shell: str) -> None:
    """Skip a test if a shell is not installed."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")


def test_bash_quotes_odd_names(odd: None, tmp_path: Path) -> None:
    need("bash")
    show = """bind -x '"\\C-t": echo "LINE=<$READLINE_LINE>"'"""
    setup = f"{show}\nsource {script_of('bash', tmp_path)}"
    shell = Shell("bash", "--norc", "--noprofile", "-i", setup=setup)
    try:
        assert shell.complete("ndxdp attach z") == r"ndxdp attach zz\;id\&b "
        assert shell.complete(r"ndxdp attach zz\;i") == r"ndxdp attach zz\;id\&b "
    finally:
        shell.close()


def test_bash_inserts_values(two: Network, tmp_path: Path) -> None:
    need("bash")
    script = script_of("bash", tmp_path)
    (tmp_path / "some-config.toml").touch()
    show = """bind -x '"\\C-t": echo "LINE=<$READLINE_LINE>"'"""
    shell = Shell(
        "bash", "--norc", "--noprofile", "-i", setup=f"{show}\nsource {script}\ncd {tmp_path}"
    )
    try:
        for line, expected in INSERTED:
            assert shell.complete(line) == expected
        assert shell.complete("ndxdp check some-c") == "ndxdp check some-config.toml "
        # A user may take the colon out of the characters that break words.
        shell.type("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\necho is''ready\n", "isready")
        line = "ndxdp prefix del 2001:db8::c"
        assert shell.complete(line) == f"ndxdp prefix del {GUEST} "
    finally:
        shell.close()


def test_zsh_inserts_values(odd: None, tmp_path: Path) -> None:
    need("zsh")
    script = script_of("zsh", tmp_path)
    (tmp_path / "some-config.toml").touch()
    setup = (
        "show() { print -r -- \"LINE=<$BUFFER>\" }; zle -N show; bindkey '^T' show\n"
        f"autoload -U compinit; compinit -u -d {tmp_path}/dump; source {script}; cd {tmp_path}"
    )
    shell = Shell("zsh", "-f", "-i", setup=setup)
    try:
        for line, expected in INSERTED:
            if "=" not in line:  # zsh takes `--mode=nat` for one word
                assert shell.complete(line).rstrip() == expected.rstrip()
        assert shell.complete("ndxdp check some-c").rstrip() == "ndxdp check some-config.toml"
        assert shell.complete("ndxdp attach z").rstrip() == r"ndxdp attach zz\;id\&b"
    finally:
        shell.close()


def test_fish_offers_values(two: Network, tmp_path: Path) -> None:
    need("fish")
    script = script_of("fish", tmp_path)
    path = f"{BIN}:{os.environ['PATH']}"
    for line, expected in INSERTED:
        command = f'source {script}; complete -C "{line}"'
        shown = call("fish", "--no-config", "-c", command, env={"PATH": path})
        assert shown.err == ""
        last = expected.split()[-1]
        offers = shown.out.split()
        if line == expected:
            assert offers == []
        elif "=" not in line:
            assert last in offers
