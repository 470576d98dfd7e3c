"""Interfaces by patterns of names: real links that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import socket
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ndxdp.daemon.sd_notify import Notifier
from ndxdp.netlink.link_monitor import Changes, LinkMonitor
from ndxdp.netlink.link_names import NamedLink, present_links
from ndxdp.netlink.links import NO_MAC
from ndxdp.netlink.rtnetlink import Rtnetlink
from tests.fixtures import network
from tests.fixtures.fake_engine import Fake, container
from tests.fixtures.network import (
    BEHIND,
    FILES,
    PINS,
    REPOSITORY,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    leftovers,
    ndxdp,
    sh,
)
from tests.fixtures.stillness import Stillness, spec

OTHER = "2001:db8:0:0:d::/80"

# ---- real links ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """End the daemons of a test that has failed."""
    yield
    while Daemon.every:
        Daemon.every.pop().running.close()


@contextlib.contextmanager
def links_removed() -> Iterator[None]:
    """Delete the taps of this namespace at the end."""
    try:
        yield
    finally:
        for each in present_links().values():
            if each.name.startswith(("tap", "guest", "tun")):
                call("ip", "link", "delete", each.name)


@pytest.fixture
def taps(privacy: None) -> Iterator[None]:
    """Delete the test's taps, and fail if their state is left."""
    with links_removed():
        yield
    for directory in (PINS, FILES):
        assert not directory.exists(), list(directory.rglob("*"))


def add_tap(name: str, mode: str = "tap") -> None:
    sh("ip", "tuntap", "add", name, "mode", mode)
    sh("ip", "link", "set", name, "up")


def rename(name: str, new: str) -> None:
    sh("ip", "link", "set", name, "down")
    sh("ip", "link", "set", name, "name", new)
    sh("ip", "link", "set", new, "up")


def table(name: str, *prefixes: str, mode: str = "tc", more: str = "") -> str:
    head = f'[[interface]]\nname = "{name}"\nmode = "{mode}"\n{more}\n'
    return head + "".join(f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in prefixes)


class Daemon:
    """`run -c` with a file that is rewritten, and what it reports."""

    every: ClassVar[list[Daemon]] = []

    def __init__(self, path: Path, text: str) -> None:
        self._path = path / "ndxdp.toml"
        self._path.write_text(text)
        self.running = Running(("-c", str(self._path)), wait=False)
        self.every.append(self)
        eventually(self._reports, within=20)

    def _reports(self) -> list[dict[str, Any]]:
        return [
            found
            for path in FILES.glob("report-*.json")
            if (found := json.loads(path.read_text()))["pid"] == self.running.process.pid
        ]

    def interfaces(self) -> dict[str, dict[str, Any]]:
        (report,) = eventually(self._reports)
        return {each["interface"]: each for each in report["interfaces"]}

    def answers_on(self, *names: str) -> bool:
        """Return True if the daemon answers on these interfaces, and knows no other ones."""
        found = self.interfaces()
        return set(found) == set(names) and all(each["answered"] for each in found.values())

    def reload(self, text: str) -> network.Done:
        self._path.write_text(text)
        return ndxdp("reload", "-c", str(self._path))

    def end(self, *, detached: bool = True) -> list[str]:
        """End the daemon, and detach what it leaves; return its log."""
        log = self.running.end_cleanly().splitlines()
        if detached:
            ndxdp("-q", "detach", "--all")
        return log


def state_of(name: str) -> list[str]:
    """Return the directories of an interface."""
    return [str(path) for root in (PINS, FILES) for path in root.glob(f"*/{name}")]


def has_rule(name: str, prefix: str) -> bool:
    listed = ndxdp("prefix", "list", "-i", name, "--json")
    return listed.code == 0 and prefix in listed.out


@pytest.mark.parametrize("mode", ["native", "tc", "userspace"])
def test_an_interface_comes_goes_and_comes_again(net: Network, mode: str, tmp_path: Path) -> None:
    """Answer as soon as the interface is there; nothing of its predecessor remains."""
    net.pass_at_router()
    sh("ip", "link", "delete", UPLINK)
    daemon = Daemon(tmp_path, table("up[0-9]", BEHIND, mode=mode, more="paused = false"))
    assert daemon.answers_on()
    for number in range(2):
        network.connect()
        net.pass_at_router()
        eventually(lambda: daemon.answers_on(UPLINK), within=20)
        assert net.answers()
        found = network.status()
        assert (found["mode"], found["reasons"]["answered"]) == (mode, 1), number
        assert not has_rule(UPLINK, OTHER)
        done("prefix", "add", "-i", UPLINK, OTHER)
        sh("ip", "link", "delete", UPLINK)
        eventually(lambda: not state_of(UPLINK))
        assert daemon.answers_on()
    network.connect()
    log = daemon.end()
    assert not any("waiting" in line or "Error" in line for line in log), log


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_a_rename_is_followed(taps: None, mode: str, tmp_path: Path) -> None:
    """Into the pattern, within it, there and back, and out of it."""
    add_tap("guest0")
    daemon = Daemon(tmp_path, table("tap*", BEHIND, mode=mode))
    before = "guest0"
    for name in ("tap0", "tap1", "tap0", "guest0", "tap0"):
        rename(before, name)
        if name.startswith("tap"):
            eventually(lambda: daemon.answers_on(name))  # noqa: B023
            assert has_rule(name, BEHIND)
        else:
            eventually(lambda: not state_of("tap0"))
            assert leftovers(name) == []
            assert daemon.answers_on()
        before = name
    # Faster than the daemon can follow.
    for name in ("tap1", "tap2", "tap0"):
        rename(before, name)
        before = name
    eventually(lambda: daemon.answers_on("tap0"))
    eventually(lambda: not state_of("tap1") and not state_of("tap2"))
    log = daemon.end()
    assert not any("former name" in line for line in log), log


def test_a_name_and_an_alternative_name_win(taps: None, tmp_path: Path) -> None:
    for name in ("tap0", "tap1", "tap2"):
        add_tap(name)
    sh("ip", "link", "property", "add", "dev", "tap1", "altname", "wan")
    text = table("tap*", BEHIND) + table("tap0", OTHER) + table("wan", OTHER)
    daemon = Daemon(tmp_path, text)
    eventually(lambda: daemon.answers_on("tap0", "tap1", "tap2"))
    assert [has_rule(name, OTHER) for name in ("tap0", "tap1", "tap2")] == [True, True, False]
    # Without its alternative name, tap1 is an instance of the pattern; the uplink of wan waits.
    assert daemon.reload(table("tap*", BEHIND) + table("tap0", OTHER)).code == 0
    assert daemon.answers_on("tap0", "tap1", "tap2")
    assert [has_rule(name, OTHER) for name in ("tap0", "tap1", "tap2")] == [True, False, False]
    assert daemon.reload(text).code == 0
    assert daemon.answers_on("tap0", "tap1", "tap2")
    assert [has_rule(name, OTHER) for name in ("tap0", "tap1", "tap2")] == [True, True, False]
    # The name counts until the uplink ends.
    sh("ip", "link", "property", "del", "dev", "tap1", "altname", "wan")
    sh("ip", "link", "property", "add", "dev", "tap2", "altname", "lan")
    rename("tap2", "tap3")
    eventually(lambda: daemon.answers_on("tap0", "tap1", "tap3"))
    assert [has_rule(name, OTHER) for name in ("tap0", "tap1", "tap3")] == [True, True, False]
    assert daemon.reload(table("tap*", BEHIND)).code == 0
    assert daemon.answers_on("tap0", "tap1", "tap3")
    assert not any(has_rule(name, OTHER) for name in ("tap0", "tap1", "tap3"))
    log = daemon.end()
    assert not any("names of one interface" in line for line in log), log


def test_a_broad_pattern_leaves_alone_what_has_no_mac(taps: None, tmp_path: Path) -> None:
    add_tap("tun0", "tun")
    daemon = Daemon(tmp_path, table("*", BEHIND))
    add_tap("tap0")
    add_tap("tun1", "tun")
    eventually(lambda: daemon.answers_on("tap0"))
    sh("ip", "link", "set", "tun1", "down")
    eventually(lambda: daemon.answers_on("tap0"))
    assert daemon.reload(table("*", OTHER)) == (0, "", "")
    assert has_rule("tap0", OTHER)
    log = daemon.end()
    for name in ("lo", "tun0", "tun1"):
        assert len([line for line in log if f"{name} matches '*', and is left alone" in line]) == 1
    assert not any("tun" in line for line in log if "left alone" not in line), log


def test_addresses_are_kept_without_a_mac(taps: None, tmp_path: Path) -> None:
    """A table without rules deprecates the addresses of interfaces that have no MAC."""
    more = '[interface.addresses]\ndeprecate = ["2001:db8:7::/64"]\n'
    daemon = Daemon(tmp_path, f'[[interface]]\nname = "tun*"\n{more}')
    add_tap("tun0", "tun")
    sh("ip", "address", "add", "2001:db8:7::7/64", "dev", "tun0", "nodad")
    show = ("ip", "-6", "-o", "address", "show", "dev", "tun0")
    eventually(lambda: "deprecated" in sh(*show))
    assert daemon.interfaces()["tun0"]["unanswered"] == NO_MAC
    sh("ip", "link", "delete", "tun0")
    eventually(lambda: not daemon.interfaces() and not (FILES / "addresses").exists())
    daemon.end()


def test_a_reload_adds_changes_and_removes_patterns(taps: None, tmp_path: Path) -> None:
    for name in ("tap0", "tap10", "guest0"):
        add_tap(name)
    daemon = Daemon(tmp_path, table("eth*", BEHIND))
    assert daemon.answers_on()
    steps: list[tuple[str, dict[str, str]]] = [
        (table("tap*", BEHIND), {"tap0": BEHIND, "tap10": BEHIND}),
        (table("tap*", OTHER), {"tap0": OTHER, "tap10": OTHER}),
        (table("tap1*", BEHIND) + table("*", OTHER), {"tap0": OTHER, "tap10": BEHIND}),
        (table("*[0-9]", BEHIND) + table("tap0", OTHER), {"tap0": OTHER, "tap10": BEHIND}),
        (table("tap0", OTHER), {"tap0": OTHER}),
        (table("tap?", OTHER, mode="userspace"), {"tap0": OTHER}),
        (table("gue*", BEHIND), {}),
        (table("*", BEHIND, more='loader = "none"'), {}),
    ]
    for text, expected in steps:
        guest = {"guest0": BEHIND if "*[0" in text or "gue" in text else OTHER}
        reloaded = daemon.reload(text)
        if "none" in text:
            assert (reloaded.code, "loader" in reloaded.err) == (1, True)
            guest, expected = {"guest0": BEHIND}, {}
        else:
            assert reloaded == (0, "", "")
        if "*[" in text or '"*"' in text or "gue" in text:
            expected = expected | guest
        assert daemon.answers_on(*expected), text
        assert {
            name: prefix
            for name in ("tap0", "tap10", "guest0")
            for prefix in (BEHIND, OTHER)
            if has_rule(name, prefix)
        } == expected
    daemon.end()


def test_a_reload_that_an_instance_refuses_changes_nothing(taps: None, tmp_path: Path) -> None:
    for name in ("tap0", "tap1"):
        add_tap(name)
    few = 'max_addresses = 10\n[[interface.prefix]]\nfile = "list"\n'
    (tmp_path / "list").write_text("".join(f"2001:db8:5::{n:x}\n" for n in range(1, 6)))
    daemon = Daemon(tmp_path, table("tap*", BEHIND, more=few))
    eventually(lambda: daemon.answers_on("tap0", "tap1"))
    done("prefix", "add", "-i", "tap1", *(f"2001:db8:6::{n:x}" for n in range(4)))
    (tmp_path / "list").write_text("".join(f"2001:db8:5::{n:x}\n" for n in range(1, 9)))
    refused = daemon.reload(table("tap*", OTHER, more=few))
    assert refused.code == 1
    assert "cannot reload: tap1: " in refused.err
    assert all(has_rule(name, BEHIND) for name in ("tap0", "tap1"))
    add_tap("tap2")
    eventually(lambda: daemon.answers_on("tap0", "tap1", "tap2"))
    assert has_rule("tap2", BEHIND)
    daemon.end()


def test_containers_are_answered_for_on_each_instance(
    taps: None, fake: Fake, tmp_path: Path
) -> None:
    """The engine is watched from the start, also while no interface matches."""
    fake.containers = [container(32, "six", kind="a")]
    more = '[[interface.docker]]\ncontainer_label = "kind"'
    daemon = Daemon(tmp_path, f'[docker]\nsocket = "{fake.path}"\n' + table("tap*", more=more))
    eventually(lambda: fake.lists() > 0)
    for name in ("tap0", "tap1"):
        add_tap(name)
        eventually(lambda: has_rule(name, "2001:db8::20"))  # noqa: B023
    fake.containers.append(container(34, kind="a"))
    fake.send_event_of(34)
    eventually(lambda: all(has_rule(name, "2001:db8::22") for name in ("tap0", "tap1")))
    assert fake.requests.count("/version") == 1
    daemon.end()


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_what_an_interface_left_while_no_daemon_ran(taps: None, mode: str, tmp_path: Path) -> None:
    """Remove it if a pattern matches; follow a rename; keep what another pattern is for."""
    names = ("tap0", "tap1", "tap2", "guest0")
    for name in names:
        add_tap(name)
    text = table("tap*", BEHIND, mode=mode)
    daemon = Daemon(tmp_path, text + table("guest0", BEHIND, mode=mode))
    eventually(lambda: daemon.answers_on(*names))
    daemon.running.kill()
    sh("ip", "link", "delete", "tap0")
    sh("ip", "link", "delete", "guest0")
    rename("tap1", "guest1")
    assert state_of("tap0")
    daemon = Daemon(tmp_path, text)
    eventually(lambda: daemon.answers_on("tap2") and not state_of("tap0") and not state_of("tap1"))
    assert leftovers("guest1") == []
    assert state_of("guest0"), "no pattern matches it"
    daemon.end(detached=False)
    ndxdp("-q", "detach", "--all")
    for path in state_of("guest0"):  # of a daemon that was killed
        sh("rm", "-r", path)


def test_a_program_outlives_the_daemon(net: Network, tmp_path: Path) -> None:
    """With on_stop = "keep" instances answer on, and with "detach" they do not."""
    for on_stop, kept in (("keep", True), ("detach", False)):
        daemon = Daemon(tmp_path, table("up*", BEHIND, more=f'on_stop = "{on_stop}"'))
        eventually(lambda: daemon.answers_on(UPLINK))  # noqa: B023
        daemon.end(detached=False)
        assert net.answers() if kept else net.silent()


def test_messages_that_were_lost(taps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at all links again, if the kernel dropped messages."""
    monkeypatch.setattr("ndxdp.daemon.uplinks._SEARCH_PAUSE", 0.01)

    async def main() -> None:
        still = Stillness()
        add_tap("tap0")
        still.uplinks.begin([spec("tap*")])
        assert still.present() == {"tap0"}
        sh("ip", "link", "delete", "tap0")
        add_tap("tap1")
        still.uplinks.network_changed(Changes(anything=True, lost=True), frozenset())
        await asyncio.sleep(0.2)
        assert still.present() == {"tap1"}
        await still.end()

    asyncio.run(main())


def test_the_monitor_reports_links(taps: None) -> None:
    with contextlib.closing(LinkMonitor()) as monitor:
        add_tap("tap0")
        add_tap("tun0", "tun")
        sh("ip", "link", "property", "add", "dev", "tap0", "altname", "wan")
        one, other = (socket.if_nametoindex(name) for name in ("tap0", "tun0"))
        changes = monitor.drain()
        assert changes.links[one] == NamedLink(one, "tap0", ("wan",))
        assert changes.links[other] == NamedLink(other, "tun0", has_mac=False)
        found = present_links()
        assert (found[one], found[other]) == (changes.links[one], changes.links[other])
        assert found[1].is_loopback
        # A port that leaves its bridge is not deleted.
        sh("ip", "link", "add", "tapbridge", "type", "bridge")
        sh("ip", "link", "set", "tap0", "master", "tapbridge")
        sh("ip", "link", "set", "tap0", "nomaster")
        assert monitor.drain().links[one] == NamedLink(one, "tap0", ("wan",))
        sh("ip", "link", "delete", "tap0")
        assert monitor.drain().links[one] is None
        assert not changes.lost


def test_links_that_change_while_they_are_listed(
    taps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry that an interrupted dump lacks is in another one; a fresher entry wins."""
    add_tap("tap0")
    whole, answers = present_links(), Rtnetlink._answers
    tries = 0

    def interrupted(self: Rtnetlink, request: bytes) -> tuple[list[bytes], bool]:
        nonlocal tries
        tries += 1
        found, _ = answers(self, request)
        if tries == 5:
            sh("ip", "link", "property", "add", "dev", "tap0", "altname", "wan")
        return found[tries % 2 :: 2], False

    monkeypatch.setattr(Rtnetlink, "_answers", interrupted)
    found = present_links()
    ifindex = socket.if_nametoindex("tap0")
    assert tries > 5
    assert set(found) == set(whole)
    assert found[ifindex].altnames == ("wan",)


def test_taps_that_come_and_go_while_reloads_happen(taps: None, tmp_path: Path) -> None:
    """End with exactly the present interfaces, and leave nothing of the others behind."""
    numbers = random.Random(5)
    texts = [
        table("tap*", BEHIND),
        table("tap1*", OTHER) + table("tap*", BEHIND),
        table("tap[0-4]*", BEHIND),
    ]
    daemon = Daemon(tmp_path, texts[0])
    for number in range(30):
        commands = []
        for _ in range(6):
            name, other = (
                f"{numbers.choice(('tap', 'tap', 'guest'))}{numbers.randrange(16)}"
                for _ in range(2)
            )
            commands += numbers.choice(
                [
                    [f"tuntap add {name} mode tap", f"link set {name} up"],
                    [f"link delete {name}"],
                    [f"link set {name} down", f"link set {name} name {other}"],
                ]
            )
        call("ip", "-force", "-batch", "-", stdin="\n".join(commands) + "\n")
        if number % 10 == 9:
            assert daemon.reload(texts[number // 10 % 3]).code == 0
    present = {each.name for each in present_links().values()}
    wanted = {name for name in present if fnmatchcase(name, "tap[0-4]*")}
    eventually(lambda: daemon.answers_on(*wanted), within=30)
    eventually(lambda: {path.name for path in PINS.glob("*/*")} == wanted)
    log = daemon.end()
    problems = ("cannot", "internal", "trying again", "waiting", "former name", "Error")
    assert not [line for line in log if any(problem in line for problem in problems)]


# ---- what commands show --------------------------------------------------------------------------


def test_the_page_shows_what_check_prints_of_a_pattern(taps: None, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    section = page.partition("### Interfaces that match a pattern")[2]
    example, shown = re.findall(r"^```(?:toml|text)\n(.*?)^```$", section, re.M | re.S)[:2]
    path = tmp_path / "ndxdp.toml"
    path.write_text(example)
    for name in ("tap0", "tap1"):
        add_tap(name)
    assert done("check", "-c", str(path)) == shown.replace("ndxdp.toml", str(path))


def test_check_shows_what_matches_now(taps: None, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        table("tap*", BEHIND) + table("tap1*") + table("tap2") + table("en*") + table("tun*")
    )
    for number in range(12):
        add_tap(f"tap{number}")
    add_tap("tun0", "tun")
    shown = ndxdp("check", "-c", str(path))
    assert shown.code == 0
    assert shown.out == (
        f"{path}: good\n"
        "tap*  tc mode; rules: 1; matches now: tap0, tap1, tap3, tap4, tap5, tap6, tap7, tap8 and 3"
        " more\n"
        "tap1*  tc mode; rules: 0; matches no interface now\n"
        "tap2  tc mode; rules: 0\n"
        "en*  tc mode; rules: 0; matches no interface now\n"
        "tun*  tc mode; rules: 0; matches no interface now; leaves alone: tun0\n"
    )
    assert shown.err == (
        "ndxdp: 'tap1*' matches only interfaces that other tables are for: tap1, tap10, tap11\n"
        "ndxdp:   hint: of several patterns the first one in the file wins\n"
    )
    interfaces = json.loads(ndxdp("check", str(path), "--json").out)["interfaces"]
    matches = {each["interface"]: each["matches"] for each in interfaces}
    assert matches["tap*"] == [f"tap{number}" for number in (0, 1, *range(3, 12))]
    assert (matches["tap1*"], matches["tap2"]) == ([], None)


def test_a_dry_run_names_the_interfaces(taps: None, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(table("tap*", BEHIND) + table("en*", BEHIND) + table("tap1", OTHER))
    for name in ("tap0", "tap1"):
        add_tap(name)
    shown = done("run", "-c", str(path), "--dry-run")
    one, other, last = (shown.index(text) for text in ("tap0", "en*  matches no interface", "tap1"))
    assert one < other < last
    assert BEHIND in shown[one:other]
    assert OTHER in shown[last:]
    assert "tap1" not in shown[one:other]


def test_check_warns_of_broad_rules_on_what_matches(net: Network, tmp_path: Path) -> None:
    path = tmp_path / "ndxdp.toml"
    path.write_text(table("up*", "2001:db8::/64"))
    warned = ndxdp("check", "-c", str(path))
    assert "answers for the other nodes on up0, too: 2001:db8::/64 is on-link" in warned.err
    path.write_text(table("down*", "2001:db8::/64"))
    assert "down* is not here: not checked whether" in ndxdp("check", "-c", str(path)).err


def test_a_second_daemon_is_refused(taps: None, tmp_path: Path) -> None:
    add_tap("tap0")
    add_tap("tun0", "tun")
    daemon = Daemon(tmp_path, table("t*", BEHIND))
    eventually(lambda: daemon.answers_on("tap0"))
    refused = ndxdp("run", "-c", str(tmp_path / "ndxdp.toml"))
    assert refused.code == 1
    assert "tap0 is locked by a running `ndxdp run`" in refused.err
    daemon.end()


def test_status_metrics_and_doctor_name_the_interface(taps: None, tmp_path: Path) -> None:
    text = '[metrics]\nlisten = "[::1]:9893"\n' + table("tap*", BEHIND)
    sh("ip", "link", "set", "lo", "up")
    daemon = Daemon(tmp_path, text)
    assert "attached to no interface" in ndxdp("status").out + ndxdp("status").err
    add_tap("tap7")
    eventually(lambda: daemon.answers_on("tap7"))
    assert done("status").startswith("tap7  tc")
    exposition = ndxdp("metrics").out
    assert 'interface="tap7"' in exposition
    assert "tap*" not in exposition
    assert "tap7" in ndxdp("doctor").out
    assert json.loads(done("explain", "2001:db8::c:0:0:99", "--json"))["reason"] == "answered"
    done("pause", "tap7")
    assert json.loads(done("status", "--json"))["interfaces"][0]["paused"] is True
    sh("ip", "link", "delete", "tap7")
    eventually(lambda: not state_of("tap7"))
    add_tap("tap7")
    eventually(lambda: daemon.answers_on("tap7"))
    assert json.loads(done("status", "--json"))["interfaces"][0]["paused"] is False
    daemon.end()


def test_a_long_start_asks_systemd_for_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        Notifier().starting()
        assert received.recv(4096) == b"EXTEND_TIMEOUT_USEC=90000000"


def test_an_interface_that_vanishes_while_it_is_attached(taps: None, tmp_path: Path) -> None:
    """READY comes nevertheless, and the daemon ends at SIGTERM."""
    for number in range(20):
        add_tap(f"tap{number}")
    daemon = Daemon(tmp_path, table("tap*", BEHIND))
    eventually(daemon.interfaces)
    for number in range(20):
        sh("ip", "link", "delete", f"tap{number}")
    eventually(lambda: not daemon.interfaces() and not any(PINS.glob("*/*")), within=20)
    ended = daemon.running.end(signal.SIGTERM)
    assert (ended.code, "Error" in ended.err) == (0, False), ended
