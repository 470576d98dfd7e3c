"""The directories of pins, files and locks: other users, missing mounts, network namespaces."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.files import access
from ndxdp.kernel import abi
from ndxdp.store import tree_lock
from ndxdp.store.directories import FileTree, PinTree
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    BPFFS,
    FILES,
    HOST_MAC,
    NDXDP,
    PATIENCE,
    PINS,
    REPOSITORY,
    ROUTER,
    TARGET,
    UPLINK,
    Done,
    Network,
    call,
    done,
    eventually,
    leftovers,
    ndxdp,
    rules,
    sh,
    snapshot,
    status,
)
from tests.test_bad_input import CANNOT, OTHER, all_unchanged, refused, unchanged

NOBODY, GROUP = 65534, 4711
OTHER_MAC = "02:00:00:00:00:0e"
DEADLINE = 10
"""Seconds for which a process may keep a lock while others wait."""


def user(group: int = NOBODY) -> tuple[str, ...]:
    """Run a command as a user without any right, in a group."""
    return (
        *("setpriv", f"--reuid={NOBODY}", f"--regid={group}", "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all"),
    )


def private(preparation: str, *command: str) -> tuple[str, ...]:
    """Run a command after a shell command in a mount namespace of its own."""
    return ("unshare", "--mount", "sh", "-c", f'{preparation} && exec "$@"', "sh", *command)


def paths(*roots: Path) -> list[str]:
    """Return everything below some directories, themselves included."""
    found = []
    for root in roots:
        for where, _, names in os.walk(root):
            found += [where, *(os.path.join(where, name) for name in names)]
    return found


_LOCKS_ALL = """
import fcntl, os, sys
how = fcntl.LOCK_EX if sys.argv[1] == "wait" else fcntl.LOCK_EX | fcntl.LOCK_NB
locked = []
for path in sys.argv[2:]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.flock(fd, how)
        locked.append(path)
    except OSError:
        pass
print(*locked, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def locking(*places: str, by: tuple[str, ...] = ()) -> Iterator[tuple[int, list[str]]]:
    """Let a process lock the accessible ones of these places; yield its pid and its locks.

    Root waits for a lock that ndxdp has at that moment, such as a daemon that has just started.
    Another user takes what is free: he may open files that the daemon keeps locked.
    """
    process = subprocess.Popen(
        [*by, sys.executable, "-c", _LOCKS_ALL, "try" if by else "wait", *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline().split()
    finally:
        process.communicate()


def changed_mac(net: Network, mac: str) -> None:
    """Change the interface's MAC, and wait until an answer has it."""
    sh("ip", "link", "set", UPLINK, "address", mac)
    eventually(lambda: net.ask(TARGET, wait=0.2) == (mac, TARGET))


# ---- locks ---------------------------------------------------------------------------------------


@pytest.fixture
def for_a_group(net: Network) -> Iterator[None]:
    """Let a group read the pins, as docs/monitoring.md describes."""
    before = BPFFS.stat()
    sh("chgrp", str(GROUP), str(BPFFS))
    sh("chmod", "710", str(BPFFS))
    sh("install", "-d", "-m", "2755", "-g", str(GROUP), str(PINS))
    yield
    os.chown(BPFFS, before.st_uid, before.st_gid)
    BPFFS.chmod(before.st_mode & 0o7777)


@pytest.mark.parametrize("mode", ["userspace", "tc"])
@pytest.mark.parametrize("group", [NOBODY, GROUP])
@pytest.mark.usefixtures("for_a_group")
def test_another_user_cannot_stall_the_daemon(
    net: Network, tmp_path: Path, mode: str, group: int
) -> None:
    """Follow changes and end, although a user locks everything that he can open."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\n'
        f'[[interface.prefix]]\nprefix = "{BEHIND}"\n'
        '[interface.addresses]\ndeprecate = ["2001:db8::2"]\n'
    )
    run = net.run("-c", str(file))

    def kept_addresses() -> Any:
        return ndxdp("status", "--json").json()["addresses"]

    eventually(lambda: any(each["deprecated"] for each in kept_addresses()))
    kept = kept_addresses()
    assert kept[0]["running"]
    places = paths(PINS, FILES)
    assert f"{FILES}/addresses/{UPLINK}.lock" in places
    with locking(*places, by=user(group)) as (_, locked):
        assert str(FILES) in locked  # otherwise the test shows nothing
        done("prefix", "add", OTHER)
        changed_mac(net, OTHER_MAC)
        assert status()["held_by"] == "run"
        assert ndxdp("status", "--json").json()["addresses"] == kept
        assert run.end().code == 0
        if mode == "tc":
            assert status()["held_by"] == "pins"
            done("attach", UPLINK)
        done("detach", UPLINK)
    assert leftovers() == []


@pytest.mark.usefixtures("for_a_group")
def test_a_reader_sees_that_a_process_uses_the_interface(net: Network) -> None:
    run = net.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    result = call(*user(GROUP), *NDXDP, "status", UPLINK, "--json").json()["interfaces"][0]
    assert result["held_by"] == "run"
    assert run.end().code == 0


def test_a_lock_that_root_keeps(attached: Network) -> None:
    """Give up writing and name the process that has the lock; reading does not wait."""
    with locking(str(PINS / "lock")) as (pid, locked):
        assert locked
        began = time.monotonic()
        assert status()["attached"]
        assert BEHIND in rules()
        assert network.explain(TARGET)["reason"] == "answered"
        assert "ndxdp_attached" in done("metrics")
        assert time.monotonic() - began < DEADLINE * PATIENCE
        unchanged(
            lambda: ndxdp("prefix", "add", OTHER),
            CANNOT,
            f"{PINS} has been locked for 10 s by process {pid} ({sys.executable} -c",
        )
    done("prefix", "add", OTHER)


def problem() -> str:
    """Return the problem that the daemon reports for the interface."""
    (daemon,) = ndxdp("status", "--json").json()["daemons"]
    return str(daemon["interfaces"][0]["problem"])


def test_a_daemon_ends_though_root_keeps_the_lock(net: Network, tmp_path: Path) -> None:
    """Wait for the lock once, not for each change, and report the problem."""
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\n'
        f'[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    )
    run = net.run("-c", str(file))
    with locking(str(PINS / "lock")) as (pid, locked):
        assert locked
        sh("ip", "link", "set", UPLINK, "address", OTHER_MAC)
        eventually(lambda: f"by process {pid}" in problem(), within=DEADLINE + 20)
        began = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(within=2 * DEADLINE).code in (0, CANNOT)
        assert time.monotonic() - began < DEADLINE * PATIENCE  # otherwise it has waited once more
    run = net.run("-c", str(file))
    assert net.ask(TARGET) == (OTHER_MAC, TARGET)
    with locking(str(PINS / "lock")) as (_, locked):
        assert locked
        sh("ip", "link", "set", UPLINK, "address", HOST_MAC)
        time.sleep(1)
    eventually(net.answers, within=DEADLINE + 20)  # it tries again
    assert run.end().code == 0
    done("detach", UPLINK)


def test_a_wait_for_a_lock_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once after a failed wait, until the lock was free again."""
    monkeypatch.setattr(tree_lock, "_DEADLINE", 3.0)
    tree, other = FileTree(tmp_path), FileTree(tmp_path)
    with other.lock.exclusive():
        with pytest.raises(NdxdpError, match=f"by process {os.getpid()} "), tree.lock.exclusive():
            pass
        began = time.monotonic()
        with pytest.raises(NdxdpError), tree.lock.exclusive():
            pass
        assert time.monotonic() - began < 2
    with tree.lock.exclusive():
        pass
    assert not tmp_path.exists()


def test_a_lock_that_changes_hands_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wait for a lock that several processes use in turn, however long that takes."""
    monkeypatch.setattr(tree_lock, "_DEADLINE", 1.0)
    script = (
        "import sys, time; from pathlib import Path; from ndxdp.store.directories import FileTree\n"
        "with FileTree(Path(sys.argv[1])).lock.exclusive():\n"
        "    print(); time.sleep(0.4)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path)]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE, cwd=REPOSITORY) for _ in range(8)]
    assert others[0].stdout
    others[0].stdout.readline()
    with FileTree(tmp_path).lock.exclusive():
        pass
    for each in others:
        each.communicate()
        assert each.returncode == 0


def test_explanations_side_by_side(attached: Network) -> None:
    """Explain without a lock; each of several processes gets its own verdict."""
    done("prefix", "add", "--answer", "never", OTHER)
    script = (
        "import sys; from ndxdp.ndp.message import solicit\n"
        "from ndxdp.rules.address import parse_address\n"
        "from ndxdp.store import explanation; from ndxdp.store.directories import Trees\n"
        "tree, target = Trees().pins, parse_address(sys.argv[1])\n"
        "asking = bytes.fromhex('020000000001')\n"
        "def frame(own): return solicit(asking, target,"
        " source=parse_address('fe80::1'), sllao=asking)\n"
        "for _ in range(100):\n"
        f"    print(explanation.explain(tree, '{UPLINK}', frame).verdict.reason.label)"
    )
    asked = {TARGET: "answered", OTHER: "denied"}
    running = {
        target: subprocess.Popen(
            [sys.executable, "-c", script, target],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for target in asked
    }
    for target, process in running.items():
        out, _ = process.communicate(timeout=60 * PATIENCE)
        assert out.splitlines() == [asked[target]] * 100


# ---- directories of other users -----------------------------------------------------------------


def as_nobody(*command: str) -> None:
    result = call(*user(), *command)
    assert result.code == 0, result


def test_a_directory_that_another_user_made_first(net: Network) -> None:
    """Refuse a foreign directory on a world-writable BPF file system, as `mount -t bpf` makes."""
    assert BPFFS.stat().st_mode & 0o1777 == 0o1777
    as_nobody("mkdir", "-p", str(PINS / f"v{abi.VERSION}" / UPLINK))
    refusal = f"{PINS} belongs to user {NOBODY}"
    commands = [
        ("attach", UPLINK, "--mode", "tc", "-n", BEHIND),
        ("run", "-i", UPLINK, "--mode", "tc"),
        ("run", "-i", UPLINK, "--keep"),
        ("detach", UPLINK),
        ("status",),
        ("status", UPLINK),
        ("explain", TARGET, "-i", UPLINK),
        ("prefix", "add", OTHER, "-i", UPLINK),
        ("prefix", "list", "-i", UPLINK),
        ("pause", UPLINK),
        ("metrics",),
    ]
    all_unchanged(ndxdp, commands, CANNOT, refusal)
    with locking(str(PINS / f"v{abi.VERSION}" / UPLINK), by=user()):
        run = net.run("-i", UPLINK, "-n", BEHIND)
        assert f"answers in userspace mode (native, tc: {refusal}" in run.ready
        assert net.answers()
        assert run.end().code == 0
    assert PINS.joinpath(f"v{abi.VERSION}", UPLINK).is_dir()
    as_nobody("rm", "-r", str(PINS))


def test_a_directory_that_others_may_write_to(attached: Network) -> None:
    PINS.chmod(0o775)
    words = ("prefix", "add", OTHER)
    unchanged(lambda: ndxdp(*words), CANNOT, f"{PINS} can be changed by others than its owner")
    assert f"chmod go-w {PINS}" in ndxdp(*words).err
    PINS.chmod(0o755)
    done(*words)


def test_a_run_directory_of_another_user(net: Network) -> None:
    """Refuse a run directory of another user, who could place a link for root's commands."""
    sticky = Path("/run/sticky")
    sticky.mkdir()
    sticky.chmod(0o1777)
    place = sticky / "ndxdp"
    words = ("--run-directory", str(place))
    refusal = f"{place} belongs to user {NOBODY}"
    try:
        as_nobody("mkdir", "-p", str(place / f"v{abi.VERSION}" / UPLINK))
        for each in (
            ("status",),
            ("status", UPLINK),
            ("metrics",),
            ("prefix", "add", OTHER, "-i", UPLINK),
            ("detach", UPLINK),
        ):
            refused(ndxdp(*words, *each), CANNOT, refusal)
        serving = (*words, "-q", "run", "-i", UPLINK, "--mode", "userspace")
        refused(ndxdp(*serving), CANNOT, refusal)
        as_nobody("rm", "-r", str(place))
        as_nobody("ln", "-s", "/run/theirs", str(place))
        refused(ndxdp(*serving), CANNOT, refusal)
        as_nobody("rm", str(place))
        run = net.run("-i", UPLINK, "--mode", "userspace", command=(*NDXDP, *words))
        assert run.end().code == 0
    finally:
        call("rm", "-r", str(sticky))


def test_a_lock_that_another_user_made_first(tmp_path: Path) -> None:
    """Refuse a foreign lock in a sticky directory that is itself the run directory."""
    root = Path("/run/sticky")
    root.mkdir()
    root.chmod(0o1777)
    try:
        as_nobody("mkdir", str(root / "lock"))
        with (
            pytest.raises(ModeUnavailable, match="lock belongs to user"),
            FileTree(root).lock.exclusive(),
        ):
            pass
    finally:
        call("rm", "-r", str(root))


def test_a_link_that_leads_there(tmp_path: Path) -> None:
    """Check the owner of each link on the path, and of its target."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    link = tmp_path / "link"
    link.symlink_to(theirs)
    access.refuse_untrusted(link / "ndxdp")
    os.lchown(link, NOBODY, NOBODY)
    with pytest.raises(ModeUnavailable, match="link belongs to"):
        access.refuse_untrusted(link / "ndxdp")
    os.lchown(link, 0, 0)
    os.chown(theirs, NOBODY, NOBODY)
    with pytest.raises(ModeUnavailable, match="theirs belongs to"):
        access.refuse_untrusted(link / "ndxdp")


def test_lifetimes_that_another_user_wrote(net: Network) -> None:
    sh("install", "-d", "-o", str(NOBODY), str(FILES / "addresses"))
    path = FILES / "addresses" / UPLINK
    path.write_text('{"changed": {"2001:db8::2": {"until": null, "deprecated": true}}}')
    assert ndxdp("status", "--json").json()["addresses"] == []
    refused(ndxdp("detach", UPLINK), CANNOT, f"{path.parent} belongs to user {NOBODY}")
    os.chown(path.parent, 0, 0)
    done("detach", UPLINK)


@pytest.mark.usefixtures("for_a_group")
def test_directories_of_a_former_version(net: Network) -> None:
    """Close old directories to all who could lock them; the group can still read them."""
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    (directory,) = PINS.glob(f"v*/{UPLINK}")
    (PINS / "lock").rmdir()
    directory.chmod(0o2755)
    before = network.program_id()
    done("prefix", "add", OTHER)
    assert directory.stat().st_mode & 0o7777 == 0o2710
    assert network.program_id() == before
    assert net.answers()
    done("attach", UPLINK)
    shown = call(*user(GROUP), *NDXDP, "status", UPLINK, "--json").json()["interfaces"][0]
    assert shown["attached"]
    assert shown["rules"]["by_source"]["manual"] == 2
    done("detach", UPLINK)


# ---- no BPF file system, or none to write to -----------------------------------------------------


@pytest.mark.parametrize(
    ("preparation", "reason"),
    [
        (f"mount -t tmpfs none {BPFFS}", f"there is no BPF file system at {BPFFS}"),
        (f"mount -t tmpfs -o ro none {BPFFS}", f"there is no BPF file system at {BPFFS}"),
        (f"mount -t tmpfs none {BPFFS.parent}", f"there is no BPF file system at {BPFFS}"),
        (
            f"mkdir -p {PINS}/lock && mount -o remount,bind,ro {BPFFS}",
            f"cannot write to {PINS}/v{abi.VERSION}: its file system is read-only",
        ),
    ],
    ids=["tmpfs", "read-only tmpfs", "nothing", "read-only"],
)
def test_nothing_can_be_pinned(net: Network, preparation: str, reason: str) -> None:
    """Answer from userspace with a reason; other commands do not recommend to be root."""
    run = net.run("-i", UPLINK, "-n", BEHIND, command=private(preparation, *NDXDP))
    assert f"answers in userspace mode (native, tc: {reason}" in run.ready
    assert net.answers()
    assert run.end().code == 0
    refusal = call(*private(preparation, *NDXDP, "attach", UPLINK))
    refused(refusal, CANNOT, reason)
    assert "root" not in refusal.err
    call("rm", "-r", str(PINS))


def test_a_pin_is_no_file_system(attached: Network) -> None:
    (path,) = PINS.glob(f"v*/{UPLINK}/settings")
    with pytest.raises(ModeUnavailable, match="there is no BPF file system"):
        PinTree(path).check()
    PinTree(PINS).check()  # a directory within one is


# ---- no libbpf -----------------------------------------------------------------------------------


def without_libbpf(*words: str) -> tuple[str, ...]:
    """Run ndxdp where libbpf cannot be loaded."""
    listed = sh("ldconfig", "-p")
    found = set(re.findall(r"libbpf\.so\S* .*=> (\S+)", listed))
    assert found
    hide = " && ".join(f"mount --bind /dev/null {os.path.realpath(path)}" for path in found)
    return private(hide, *NDXDP, *words)


def test_userspace_without_libbpf(net: Network, tmp_path: Path) -> None:
    reason = "libbpf.so.1 is not installed"
    run = net.run("-i", UPLINK, "-n", BEHIND, command=without_libbpf())
    assert "answers in userspace mode" in run.ready
    assert f"tc: {reason})" in run.ready
    assert net.answers()

    def without(*words: str) -> str:
        result = call(*without_libbpf(*words))
        assert (result.code, result.err) == (0, ""), result
        return result.out

    without("prefix", "add", OTHER)
    assert net.answers(OTHER)
    assert OTHER in without("prefix", "list")
    assert "answered" in without("explain", OTHER)
    without("prefix", "del", OTHER)
    without("pause", UPLINK)
    without("resume", UPLINK)
    assert f"not       tc: {reason}" in without("status")
    assert f'ndxdp_attached{{interface="{UPLINK}"}} 1.0' in without("metrics")
    assert run.end().code == 0

    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[[interface]]\nname = "{UPLINK}"\n[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    )
    assert "good" in without("check", "-c", str(file))
    run = net.run("-c", str(file), command=without_libbpf())
    assert "answers in userspace mode" in run.ready
    assert run.end().code == 0
    for words in (("attach", UPLINK), ("run", "-i", UPLINK, "--mode", "tc")):
        refused(call(*without_libbpf(*words)), CANNOT, reason)
    assert leftovers() == []


# ---- two network namespaces that share a BPF file system -----------------------------------------

_ELSEWHERE = "belongs to an interface of another network namespace"


@pytest.fixture
def namesake(net: Network) -> Network:
    """Add an interface of the same name and ifindex to the router's namespace."""
    ifindex = network.link_state()["ifindex"]
    link = ("link", "add", UPLINK, "index", str(ifindex), "up", "type", "bridge")
    result = net.at_router("ip", *link)
    assert result.code == 0, result
    return net


CHANGING = [
    ("attach", UPLINK, "--mode", "tc", "-n", OTHER),
    ("attach", UPLINK, "--mode", "generic"),
    ("run", "-i", UPLINK),
    ("run", "-i", UPLINK, "--mode", "tc", "--keep"),
    ("run", "-i", UPLINK, "--mode", "userspace"),
    ("detach", UPLINK),
    ("detach", "--all"),
    ("prefix", "add", OTHER),
    ("prefix", "del", BEHIND, "-i", UPLINK, "--source", "manual"),
    ("pause", UPLINK),
    ("explain", TARGET),
]


def there(net: Network, *words: str) -> Done:
    return net.at_router("timeout", "20", *NDXDP, *words)


@pytest.mark.parametrize("how", ["attach", "run", "keep", "userspace"])
def test_an_interface_of_another_namespace(namesake: Network, how: str) -> None:
    """Mistake no foreign instance for an own one, and change nothing of it."""
    net = namesake
    mode = "userspace" if how == "userspace" else "tc"
    words = ("-i", UPLINK, "--mode", mode, "-n", BEHIND)
    if how == "attach":
        done("attach", *words[1:])
        run = None
    else:
        run = net.run(*words, *(("--keep",) if how == "keep" else ()))
    all_unchanged(lambda *words: there(net, *words), CHANGING, CANNOT, _ELSEWHERE)
    assert net.answers()
    shown = there(net, "status", UPLINK, "--json").json()["interfaces"][0]
    assert shown["attached"]
    assert there(net, "prefix", "list").code == 0
    if run:
        assert run.end().code == 0
    if how != "userspace":
        done("detach", UPLINK) if how != "run" else None
    assert leftovers() == []


def test_a_rename_in_another_namespace(namesake: Network) -> None:
    """Recognize that the ifindex belongs to another interface in this namespace."""
    net = namesake
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
    for words in (
        ("ip", "link", "set", UPLINK, "down"),
        ("ip", "link", "set", UPLINK, "name", "x0"),
    ):
        assert net.at_router(*words).code == 0
    assert net.at_router("ip", "link", "set", "x0", "up").code == 0
    before = snapshot()
    run = net.run("-i", "x0", "--mode", "userspace", command=_at_router())
    assert run.end().code == 0
    assert snapshot() == before
    assert net.answers()
    done("detach", UPLINK)


def _at_router() -> tuple[str, ...]:
    return ("nsenter", f"--net=/run/netns/{ROUTER}", *NDXDP)
