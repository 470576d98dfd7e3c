"""Failures: retried after a pause, without use of a CPU, separately for each interface."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.programs import build_xdp_pass
from ndxdp.store.directories import Trees
from tests.fixtures.network import (
    BEHIND,
    NDXDP,
    REPOSITORY,
    TARGET,
    UPLINK,
    Network,
    Running,
    connect,
    done,
    eventually,
    ndxdp,
    rules,
    sh,
    status,
    tc_ids,
    xdp_ids,
)

SECOND = "up1"
OTHER = "2001:db8:0:0:d::/80"
SHOWN = 6.0  # seconds for which a failing daemon is observed


def config(path: Path, *interfaces: str, prefixes: tuple[str, ...] = (BEHIND,)) -> str:
    r"""Write a configuration; `name\nkey = value` adds keys to an interface."""
    tables = "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)
    named = (each.partition("\n") for each in interfaces)
    path.write_text(
        "".join(f'[[interface]]\nname = "{name}"\n{more}\n{tables}' for name, _, more in named)
    )
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ndxdp.toml"


@pytest.fixture
def second() -> Iterator[str]:
    """Add a second interface, which receives no solicitations."""
    sh("ip", "link", "add", SECOND, "type", "veth", "peer", "name", f"{SECOND}p")
    sh("ip", "link", "set", SECOND, "up")
    yield SECOND
    ndxdp("-q", "detach", SECOND)
    sh("ip", "link", "delete", SECOND)


class Daemon:
    """`ndxdp run -c`, ready or not; a thread reads its log."""

    def __init__(self, *arguments: str, top: tuple[str, ...] = (), wait: bool = False) -> None:
        self.lines: list[str] = []
        self.running = Running(arguments, [*NDXDP, *top], wait=wait)
        self.process = self.running.process
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.removeprefix("ndxdp: ").strip())

    def logged(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]

    def cpu(self) -> float:
        """Return the seconds of CPU used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(10)
        self._reader.join()
        return code


@contextlib.contextmanager
def daemon(*arguments: str, top: tuple[str, ...] = (), wait: bool = False) -> Iterator[Daemon]:
    """Run a daemon, end it with the block, and detach."""
    made = Daemon(*arguments, top=top, wait=wait)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.end()
        ndxdp("-q", *top, "detach", UPLINK)


@contextlib.contextmanager
def links_that_come_and_go() -> Iterator[None]:
    """Cause bursts of messages about other links and addresses."""
    stop = threading.Event()

    def burst() -> None:
        while not stop.is_set():
            sh("ip", "link", "add", "noise", "type", "veth", "peer", "name", "noise1")
            sh("ip", "link", "set", "noise", "up")
            sh("ip", "link", "delete", "noise")

    thread = threading.Thread(target=burst)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def are_calm(failing: dict[str, Daemon]) -> None:
    """Check that each daemon logs its failure once, and uses no CPU until it retries.

    Args:
        failing: The daemons, by words of the expected log line.
    """
    before = {}
    for words, each in failing.items():
        eventually(lambda each=each, words=words: each.logged(words), within=20)  # type: ignore[misc]
        before[words] = each.cpu(), len(each.lines)
    with links_that_come_and_go():
        time.sleep(SHOWN)
    for words, each in failing.items():
        cpu, lines = before[words]
        assert each.cpu() - cpu < 0.1 * SHOWN, (words, each.lines)
        assert len(each.logged(words)) == 1, each.lines
        assert len(each.lines) <= lines + 1, each.lines


# ---- causes of failure --------------------------------------------------------------------------


@contextlib.contextmanager
def foreign_program(name: str) -> Iterator[None]:
    sh("ip", "link", "set", "dev", name, "xdp", "obj", str(build_xdp_pass()), "sec", "xdp")
    try:
        yield
    finally:
        ndxdp("-q", "detach", name)
        sh("ip", "link", "set", "dev", name, "xdp", "off")


@contextlib.contextmanager
def read_only(kind: str, where: Path) -> Iterator[str]:
    """Mount an empty file system that is read-only."""
    where.mkdir()
    sh("mount", "-t", kind, "-o", "mode=0700", kind, str(where))
    try:
        sh("mount", "-o", "remount,ro", str(where))
        yield str(where)
    finally:
        sh("umount", str(where))


def test_failing_starts_are_calm(net: Network, file: Path, tmp_path: Path, second: str) -> None:
    """Retry calmly with a foreign program, without BPF or a run directory, or with two daemons."""
    native = config(file, f'{second}p\nmode = "native"')
    tc = config(tmp_path / "tc", f'{UPLINK}\nmode = "tc"')
    auto = config(tmp_path / "auto", UPLINK)
    two = config(tmp_path / "two", UPLINK, second)
    with (
        foreign_program(f"{second}p"),
        read_only("bpf", tmp_path / "bpf") as bpffs,
        read_only("tmpfs", tmp_path / "run") as run_directory,
        daemon("-c", config(tmp_path / "one", second), wait=True) as first,
        daemon("-c", native) as beside,
        daemon("-c", tc, top=("--bpffs", str(tmp_path))) as without,
        daemon("-c", auto, top=("--bpffs", bpffs, "--run-directory", run_directory)) as nowhere,
        daemon("-c", two) as another,
    ):
        ended = ndxdp("run", "-c", str(tmp_path / "one"))
        assert ended.code == 1
        assert ended.err.startswith(f"ndxdp: {second} is locked by a running `ndxdp run`")
        failing = {
            "already runs an XDP program": beside,
            "there is no BPF file system at": without,
            "its file system is read-only": nowhere,
            f"{second} is locked by a running `ndxdp run`": another,
        }
        are_calm(failing)
        assert net.answers()  # `another` answers if it can
        assert first.end() == 0
        eventually(lambda: held(second), within=60)
        for each in failing.values():
            assert each.end() == 0


def test_rules_without_room_are_calm(net: Network, file: Path) -> None:
    """Keep the old rules at a reload without room, and apply a smaller file at once."""
    sized = f"{UPLINK}\nmax_addresses = 10"
    with daemon("-c", config(file, sized), wait=True) as failing:
        config(file, sized, prefixes=(BEHIND, *(f"2001:db8::d:{n}" for n in range(1, 30))))
        failing.process.send_signal(signal.SIGHUP)
        are_calm({"cannot reload: ": failing})
        assert net.answers()
        config(file, sized, prefixes=(BEHIND, OTHER))
        failing.process.send_signal(signal.SIGHUP)
        eventually(lambda: OTHER in rules())


def test_a_new_interface_is_tried_at_once(net: Network, file: Path) -> None:
    """End the pause early if the failed interface is replaced by another one."""
    with (
        foreign_program(UPLINK),
        daemon("-c", config(file, f'{UPLINK}\nmode = "native"')) as failing,
    ):
        eventually(lambda: failing.logged("already runs"), within=20)
        sh("ip", "link", "delete", UPLINK)
        connect()
        eventually(xdp_ids, within=3)


# ---- rules of others ----------------------------------------------------------------------------


def test_the_service_takes_over_from_attach(net: Network, file: Path) -> None:
    """Take over equal rules of `attach` in the service, and leave others alone."""
    done("attach", UPLINK, "-n", BEHIND, "-n", OTHER)
    with net.solicited_continuously() as missed:
        service = net.run("-c", config(file, UPLINK))
        eventually(lambda: rules()[BEHIND]["source"] == "config")
        assert rules()[OTHER]["source"] == "manual"
        assert service.end()[:2] == (0, "")
    assert missed == []
    assert net.answers()
    config(file, f'{UPLINK}\non_stop = "detach"')
    service = net.run("-c", str(file))
    assert rules()[OTHER]["source"] == "manual"
    assert service.end()[:2] == (0, "")


def test_another_rule_of_the_prefix_stays(net: Network, file: Path) -> None:
    """Yield to another rule for the prefix, log that, and apply the rest of the configuration."""
    done("attach", UPLINK, "-n", BEHIND, "--except", OTHER)
    with daemon("-c", config(file, UPLINK, prefixes=(BEHIND, OTHER)), wait=True) as service:
        eventually(lambda: service.logged(f"{OTHER} has a rule by 'manual' already"))
        assert rules()[OTHER]["answer"] == "never"
        assert rules()[BEHIND]["source"] == "config"
        assert net.answers()


def test_takes_over_for_userspace(net: Network, file: Path) -> None:
    """Change to a mode that was configured while no daemon ran."""
    first = net.run("-c", config(file, f'{UPLINK}\nmode = "tc"'))
    done("prefix", "add", OTHER)
    assert first.end()[:2] == (0, "")
    config(file, f'{UPLINK}\nmode = "userspace"')
    with net.solicited_continuously() as missed, daemon("-c", str(file), wait=True) as service:
        assert "userspace" in service.running.ready
        eventually(lambda: status()["mode"] == "userspace" and tc_ids() == [])
        assert rules()[OTHER]["source"] == "manual"
        time.sleep(0.2)
        assert missed == []


# ---- one interface's own ------------------------------------------------------------------------

LIMITED = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {0}));"


def test_descriptors_run_out(net: Network, file: Path) -> None:
    """Keep the interfaces that have their descriptors, and log the actual error."""
    names = [f"many{n}" for n in range(6)]
    for name in names:
        sh("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        sh("ip", "link", "set", name, "up")
    limited = LIMITED.format(70) + "os.execv(sys.argv[1], sys.argv[1:])"
    try:
        path = config(file, UPLINK, *names)
        run = Running(("-c", path), [sys.executable, "-c", limited, *NDXDP])
        try:
            eventually(net.answers, within=20)
            time.sleep(2)
            assert run.process.poll() is None
            ended = run.end()
            assert ended.code == 0
            assert "cannot open more files" in ended.err
            assert "verifier" not in ended.err
            assert "incomplete" not in ended.err
            assert "Traceback" not in ended.err
            assert len(ended.err.splitlines()) < 2 * len(names)
        finally:
            run.close()
    finally:
        ndxdp("-q", "detach", "--all")
        for name in names:
            sh("ip", "link", "delete", name)


def test_the_soft_limit_is_raised(net: Network, file: Path) -> None:
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096));"
    limited += "os.execv(sys.argv[1], sys.argv[1:])"
    run = net.run("-c", config(file, UPLINK), command=[sys.executable, "-c", limited, *NDXDP])
    limits = Path(f"/proc/{run.process.pid}/limits").read_text()
    assert re.search(r"Max open files +4096 +4096", limits)
    assert run.end()[0] == 0
    done("detach", UPLINK)


def test_an_alternative_name_is_resolved(net: Network, file: Path) -> None:
    """Resolve an alternative name whenever the interface appears, also in commands."""
    path = config(file, "wan")
    with daemon("-c", path) as service:
        eventually(lambda: service.logged("there is no interface 'wan'; waiting for it"), within=20)
        alternative()
        eventually(lambda: service.logged(f"wan is another name of {UPLINK}"))
        eventually(net.answers, within=10)
        assert status()["interface"] == UPLINK
        for command in (("status",), ("explain", TARGET, "-i"), ("pause",), ("resume",)):
            done(*command, "wan")
        done("prefix", "add", OTHER, "-i", "wan")
        config(file, "wan", prefixes=(BEHIND, "2001:db8:0:0:e::/80"))
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "2001:db8:0:0:e::/80" in rules())
        again = ndxdp("run", "-c", path)
        assert (again.code, "locked by a running" in again.err) == (1, True)
        sh("ip", "link", "delete", UPLINK)
        connect()
        alternative()
        eventually(net.answers, within=10)
        config(file, "wan", UPLINK)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: service.logged(f"{UPLINK} and wan are names of one interface"))
        assert net.answers()
        assert service.end() == 0
    alternative("wan0")
    done("attach", "wan0", "-n", BEHIND)
    assert net.answers()
    assert status()["interface"] == UPLINK
    done("detach", "wan0")
    run = net.run("-i", "wan0", "-n", BEHIND)
    assert run.ready.startswith(f"ready: {UPLINK} answers")
    assert run.end().code == 0


def alternative(name: str = "wan") -> None:
    sh("ip", "link", "property", "add", "dev", UPLINK, "altname", name)


BROKEN = f"""
import sys
from ndxdp.cli.main import main
from ndxdp.daemon import reconcile
real = reconcile.apply_host
def broken(session, link, link_local):
    if session.interface == {SECOND!r}:
        raise RuntimeError("of a kind that nobody expects")
    real(session, link, link_local)
reconcile.apply_host = broken
main()
"""


def test_an_unexpected_error_is_one_interfaces_own(net: Network, file: Path, second: str) -> None:
    run = Running(("-c", config(file, second, UPLINK)), [sys.executable, "-c", BROKEN], wait=False)
    try:
        eventually(lambda: net.ask("2001:db8::c:0:0:99", wait=0.2), within=20)
        time.sleep(1)
        assert net.answers()
        ended = run.end()
        assert ended.code == 0
        wanted = f"{SECOND} is not in step: internal error: RuntimeError: of a kind that nobody"
        assert ended.err.count(wanted) == 1
        assert "Traceback" not in ended.err
    finally:
        run.close()
        done("detach", UPLINK)


@pytest.mark.parametrize("closed", ["", "<&- >&- 2>&-"])
def test_continues_without_a_reader_of_its_output(net: Network, file: Path, closed: str) -> None:
    """Continue if standard output and error are closed, or pipes without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    command = " ".join([*NDXDP, "-v", "run", "-c", config(file, UPLINK), closed])
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}"], stdout=writing, stderr=writing, cwd=REPOSITORY
    )
    os.close(writing)
    try:
        eventually(net.answers, within=20)
        sh("ip", "link", "delete", UPLINK)
        connect()
        eventually(net.answers, within=20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        ndxdp("-q", "detach", UPLINK)


def held(interface: str) -> bool:
    trees = Trees()
    return trees.pins.path(interface).is_dir() and trees.pins.is_locked(interface)
