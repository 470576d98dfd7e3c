"""Userspace mode: changes of the interface and of the files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ndxdp.ndp.address import solicited_node_group
from ndxdp.rules.address import parse_address
from tests.fixtures.network import (
    BEHIND,
    FILES,
    HOST_MAC,
    NDXDP,
    TARGET,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    leftovers,
    ndxdp,
    rules,
    sh,
    status,
)
from tests.fixtures.serving import (
    ANOTHER,
    CANNOT,
    OTHER,
    USERSPACE,
    counts,
    directory,
    send,
    serve,
    solicitation,
)
from tests.test_bad_input import refused


def settled() -> None:
    """Wait until a run has done everything; it joins the group of an exact address, OTHER, last."""
    group = solicited_node_group(parse_address(OTHER)).hex()
    eventually(lambda: group in Path("/proc/thread-self/net/igmp6").read_text())


def survived(run: Running) -> str:
    """End a run, which must end cleanly and leave nothing; return its stderr."""
    ended = run.end_cleanly()
    assert leftovers() == []
    return ended


# ---- changes of the interface --------------------------------------------------------------------


def test_down_and_up(net: Network) -> None:
    run = serve(net)
    sh("ip", "link", "set", UPLINK, "down")
    eventually(lambda: status()["socket"]["errors"])
    assert run.process.poll() is None
    assert done("prefix", "add", OTHER) == ""
    sh("ip", "link", "set", UPLINK, "up")
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET))
    assert net.answers(OTHER)
    # The kernel has removed the addresses with the link, so they are no holes any more.
    assert {rule["source"] for rule in rules().values()} == {"run", "manual"}
    assert "errors " in done("status")
    assert survived(run) == ""


def test_down_in_the_middle_of_a_flood(net: Network) -> None:
    run = serve(net)
    for state in ("down", "up") * 3:
        with contextlib.suppress(OSError):  # the far end has no carrier
            send([solicitation()] * 50)
        sh("ip", "link", "set", UPLINK, state)
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET))
    found = counts()
    assert set(found) <= {"answered", "send_failed"}
    assert survived(run) == ""


def test_the_interface_is_renamed(net: Network) -> None:
    """Wait while the interface has another name, until it has its own again."""
    run = serve(net)
    sh("ip", "link", "set", UPLINK, "down")
    sh("ip", "link", "set", UPLINK, "name", "renamed0")
    try:
        assert run.next_warning()
        sh("ip", "link", "set", "renamed0", "up")
        assert net.silent()
        sh("ip", "link", "set", "renamed0", "down")
    finally:
        sh("ip", "link", "set", "renamed0", "name", UPLINK)
    sh("ip", "link", "set", UPLINK, "up")
    eventually(lambda: net.ask(TARGET, wait=0.2) == (HOST_MAC, TARGET), within=10)
    survived(run)


# ---- changes of the files ------------------------------------------------------------------------


ARRAYS = ("settings", "reasons", "groups", "group_counters", "userspace")
TABLES = ("rules",)


def truncate(path: Path) -> None:
    os.truncate(path, 3)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garble(path: Path) -> None:
    """Overwrite a file with nonsense of the same size."""
    size = path.stat().st_size
    with path.open("r+b") as file:  # a process that has mapped the file sees the change
        file.write(b"\xa5" * size)


def replace(path: Path) -> None:
    """Replace a file by another one; processes that have it open keep the old one."""
    fresh = path.with_name("fresh")
    fresh.write_bytes(b"no map of ndxdp")
    fresh.rename(path)


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    (name, damage) for name in (*ARRAYS, *TABLES) for damage in (truncate, empty, replace)
]
"""Damage to files. A removed file is restored at once: see tests/test_removed.py."""


@pytest.mark.parametrize(
    ("name", "damage"), DAMAGES, ids=[f"{name}, {damage.__name__}" for name, damage in DAMAGES]
)
def test_damaged_files(net: Network, name: str, damage: Callable[[Path], None]) -> None:
    """Report damaged files in a sentence; the running process continues with its rules."""
    run = serve(net, "-n", OTHER)
    assert net.answers()
    settled()  # otherwise it would write the damaged file again
    damage(directory() / name)
    for words in (
        ("status",),
        ("status", "--json"),
        ("prefix", "list"),
        ("prefix", "add", ANOTHER),
        ("prefix", "del", "--source", "run", OTHER),
        ("explain", TARGET),
    ):
        result = ndxdp(*words)
        assert result.code == CANNOT, words
        assert "Traceback" not in result.err, result.err
        lines = result.err.splitlines()
        assert len(lines) == 2, result.err
        assert lines[1].startswith("  hint: ")
    assert net.answers()
    assert net.answers(OTHER)
    assert run.process.poll() is None
    assert "Traceback" not in run.end().err
    call(*NDXDP, "detach", UPLINK)
    assert leftovers() == []


@pytest.mark.parametrize("name", [*ARRAYS, *TABLES])
def test_files_of_nonsense(net: Network, name: str) -> None:
    """Survive files with nonsense of the right size, whether a command notices or not."""
    run = serve(net, "-n", OTHER)
    assert net.answers()
    garble(directory() / name)
    for words in (("status",), ("prefix", "list"), ("explain", TARGET), ("prefix", "add", ANOTHER)):
        result = ndxdp(*words)
        assert result.code in (0, CANNOT), (words, result.err)
        assert "Traceback" not in result.err, result.err
    net.ask(TARGET, wait=0.2)
    assert run.process.poll() is None
    ended = run.end()
    assert "Traceback" not in ended.err, ended.err
    call(*NDXDP, "detach", UPLINK)
    assert leftovers() == []


@pytest.mark.parametrize("asked", [True, False], ids=["asked before", "not yet asked"])
def test_all_files_are_removed(net: Network, asked: bool) -> None:
    """Continue with the same rules if the files are removed, and end normally."""
    run = serve(net)
    assert not asked or net.answers()
    shutil.rmtree(FILES)
    assert net.answers()
    # The process may have published its report again since.
    assert done("status").rstrip() in (
        "ndxdp is attached to no interface",
        f"{UPLINK}  answering, but its state cannot be read",
    )
    refused(ndxdp("prefix", "add", OTHER), CANNOT, "attached to no interface")
    sh("ip", "address", "add", "2001:db8::c:0:0:22/128", "dev", UPLINK, "nodad")
    assert net.answers()
    result = run.end()
    assert (result.code, "Traceback" in result.err) == (0, False), result.err
    assert not FILES.exists()


@contextlib.contextmanager
def small_file_system(where: Path, size: str) -> Iterator[Path]:
    sh("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where))
    try:
        yield where / "ndxdp"
    finally:
        sh("umount", str(where))


def test_a_file_system_that_is_too_small(net: Network, tmp_path: Path) -> None:
    with small_file_system(tmp_path, "8k") as own:
        refusal = call(*NDXDP, "--run-directory", str(own), "run", *USERSPACE, "-n", BEHIND)
        refused(refusal, CANNOT, "No space left")
        assert not own.exists()


def test_a_file_system_that_is_full(net: Network, tmp_path: Path) -> None:
    """Continue on a full file system; a command without room changes nothing, and reports that."""
    with small_file_system(tmp_path, "4m") as own:
        command = (*NDXDP, "--run-directory", str(own))
        run = net.run(*USERSPACE, "-n", BEHIND, command=command)
        filling = tmp_path / "filling"
        with contextlib.suppress(OSError), filling.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        before = call(*command, "prefix", "list")
        # The last page of the file has room for a few rules.
        many = "".join(f"2001:db8:0:0:e:{n:x}::/96\n" for n in range(1000))
        refused(call(*command, "prefix", "add", OTHER, "--file", "-", stdin=many), CANNOT)
        assert call(*command, "prefix", "list") == before
        assert net.answers()
        assert net.silent(OTHER)
        filling.unlink()
        assert call(*command, "prefix", "add", OTHER) == (0, "", "")
        assert net.answers(OTHER)
        assert run.end() == (0, "", "")
        assert not own.exists()


@pytest.mark.parametrize("where", ["/proc/ndxdp", "/sys/ndxdp", "/dev/null/ndxdp"])
def test_a_run_directory_that_cannot_be(net: Network, where: str) -> None:
    # `timeout` ends a command that would retry for ever.
    command = ("timeout", "-s", "KILL", "10", *NDXDP, "--run-directory", where)
    # `-q` omits the warning that there is no place for a report.
    refusal = call(*command, "run", "-q", *USERSPACE, "-n", BEHIND)
    refused(refusal, CANNOT, where)
