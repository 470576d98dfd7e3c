"""Hosts that take over from each other: paused answering, and the announcements on resuming."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.upstream.announce import Kind
from tests.fixtures.announcing import ADDRESS, NEIGHBOUR
from tests.fixtures.network import (
    BEHIND,
    HOST_MAC,
    NDXDP,
    ROUTER,
    ROUTER_LINK,
    TARGET,
    UPLINK,
    Network,
    Running,
    call,
    done,
    eventually,
    ndxdp,
    rules,
    sh,
    status,
)
from tests.fixtures.segment import HOST_PORT, SWITCH, Segment, at, ip
from tests.test_interruptions import ANNOUNCE, Listener, announced, daemon

STANDBY, STANDBY_LINK, STANDBY_MAC = "standby", "up1", "02:00:00:00:00:03"


# ---- announcements on resuming -------------------------------------------------------------------


def pause(number: int = 1) -> None:
    """Pause, add another address, and wait until the daemon has noticed both.

    The daemon joins the group of a new address after it has read whether answering is paused.

    Args:
        number: The number that is added to the prefix of BEHIND.
    """
    done("pause", UPLINK)
    done("prefix", "add", f"2001:db8::c:0:1:{number:x}")
    group = f"ff0200000000000000000001ff01{number:04x}"
    eventually(lambda: group in Path("/proc/net/igmp6").read_text())


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_resuming_announces(wired: Segment, tmp_path: Path, mode: str) -> None:
    with daemon(tmp_path, head=f'mode = "{mode}"') as (_, listener):
        announced(listener)
        for number in (1, 2):
            pause(number)
            done("resume", UPLINK)
            announced(listener)
        done("resume", UPLINK)
        time.sleep(0.5)
        assert listener.count() == 0, "it was not paused"


def test_nothing_is_announced_while_paused(wired: Segment, tmp_path: Path) -> None:
    """Announce nothing while paused: no repetition, no new address, no new link or MAC."""
    with daemon(tmp_path, f"{ANNOUNCE}\ninterval = 1") as (_, listener):
        eventually(lambda: listener.count() == 1)
        pause()
        listener.forget()
        ip(SWITCH, f"link set {HOST_PORT} down\nlink set {HOST_PORT} up")
        sh("ip", "link", "set", UPLINK, "address", "02:00:00:00:00:0a")
        time.sleep(2)
        assert listener.count() == 0
        assert sum(listener.counts.values()) == 0
        done("resume", UPLINK)
        eventually(lambda: listener.count() >= 3)


def test_paused_it_does_not_solicit_the_gateway_from_an_address(
    wired: Segment, tmp_path: Path
) -> None:
    """Do not solicit from an address while paused: this would draw the address's packets here."""
    keys = f'[interface.gateway]\nsource = "{ADDRESS}"\ninterval = 1'
    with daemon(tmp_path, keys, head="paused = true") as (_, listener):
        time.sleep(1.5)
        assert listener.count(Kind.SOLICIT) == 0
        done("resume", UPLINK)
        eventually(lambda: listener.count(Kind.SOLICIT) >= 1)


# ---- starting paused ----------------------------------------------------------------------------


def begun(net: Network, *words: str) -> Running:
    run = net.run(*words)
    assert "is paused" in run.ready
    assert status()["paused"] is True
    assert net.silent()
    return run


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_run_paused(net: Network, mode: str) -> None:
    run = begun(net, "-i", UPLINK, "-n", BEHIND, "--paused", "--mode", mode)
    done("resume", UPLINK)
    assert net.answers()
    assert run.end()[0] == 0


def test_attach_paused(net: Network) -> None:
    """Keep the paused or resumed state when renewing."""
    done("attach", UPLINK, "-n", BEHIND, "--paused")
    assert status()["paused"] is True
    assert net.silent()
    done("attach", UPLINK)
    assert status()["paused"] is True
    done("resume", UPLINK)
    done("attach", UPLINK, "--paused")
    assert status()["paused"] is False
    assert net.answers()
    done("detach", UPLINK)


def configured(tmp_path: Path, *, paused: bool, mode: str = "auto") -> str:
    path = tmp_path / "ndxdp.toml"
    keys = f'name = "{UPLINK}"\nmode = "{mode}"\npaused = {str(paused).lower()}'
    path.write_text(f'[[interface]]\n{keys}\n[[interface.prefix]]\nprefix = "{BEHIND}"\n')
    return str(path)


def test_daemon_that_restarts_does_not_silence_a_master(net: Network, tmp_path: Path) -> None:
    path = configured(tmp_path, paused=True)
    run = begun(net, "-c", path)
    assert run.end()[0] == 0
    run = begun(net, "-c", path)
    done("resume", UPLINK)
    for number in (signal.SIGTERM, signal.SIGKILL):
        with net.solicited_continuously() as missed:
            run.process.send_signal(number)
            run.process.wait(10)
            run = net.run("-c", path)
        assert missed == []
        assert "answers in" in run.ready
        assert status()["paused"] is False
    assert run.end()[0] == 0
    done("detach", UPLINK)
    run = begun(net, "-c", path)
    assert run.end()[0] == 0
    done("detach", UPLINK)


def test_reload_neither_pauses_nor_resumes(net: Network, tmp_path: Path) -> None:
    run = begun(net, "-c", configured(tmp_path, paused=True))

    def reload(*, paused: bool, mode: str = "auto") -> None:
        configured(tmp_path, paused=paused, mode=mode)
        more = "2001:db8:0:0:d::/80" if paused else "2001:db8:0:0:e::/80"
        path = tmp_path / "ndxdp.toml"
        path.write_text(f'{path.read_text()}[[interface.prefix]]\nprefix = "{more}"\n')
        run.process.send_signal(signal.SIGHUP)
        eventually(lambda: more in rules())
        eventually(lambda: mode in ("auto", status()["mode"]))

    reload(paused=False)
    assert status()["paused"] is True
    done("resume", UPLINK)
    for mode in ("auto", "userspace", "tc"):
        reload(paused=True, mode=mode)
        assert status()["paused"] is False
        reload(paused=False, mode=mode)
    assert net.answers(TARGET)
    assert run.end()[0] == 0
    done("detach", UPLINK)


# ---- two hosts -----------------------------------------------------------------------------------


@contextlib.contextmanager
def standby(tmp_path: Path) -> Iterator[list[str]]:
    """Add a second host with the same address behind it; yield the command prefix for it."""
    directory = tmp_path / "standby"
    sh("ip", "netns", "add", STANDBY)
    try:
        far = f"peer name {STANDBY_LINK} address {STANDBY_MAC} netns {STANDBY}"
        ip(SWITCH, f"link add to-standby type veth {far}\nlink set to-standby master br0 up")
        ip(
            STANDBY,
            f"""
            link set lo up
            link set {STANDBY_LINK} addrgenmode none
            link set {STANDBY_LINK} up
            address add fe80::3/64 dev {STANDBY_LINK} nodad
            address add 2001:db8::3/64 dev {STANDBY_LINK} nodad
            route add default via 2001:db8::1
            """,
        )
        enter = ("nsenter", f"--net=/run/netns/{STANDBY}")
        yield [*enter, *NDXDP, "--run-directory", str(directory)]
    finally:
        call("ip", "netns", "delete", STANDBY)


def is_at(mac: str) -> bool:
    """Return True if the router has this MAC for ADDRESS."""
    return mac in at(ROUTER, *NEIGHBOUR).out


def test_failover_and_back(wired: Segment, tmp_path: Path) -> None:
    """Fail over as keepalived's script does; the router follows at once."""
    words = ("-n", ADDRESS, "--announce", "--paused", "--mode", "userspace")
    with standby(tmp_path) as there, packet_socket(ROUTER, ROUTER_LINK) as wire:
        hosts = {
            HOST_MAC: Running(("-i", UPLINK, *words)),
            STANDBY_MAC: Running(("-i", STANDBY_LINK, *words), there),
        }
        switches = {HOST_MAC: ([*NDXDP], UPLINK), STANDBY_MAC: (there, STANDBY_LINK)}

        def switch(mac: str, word: str) -> None:
            command, link = switches[mac]
            assert call(*command, word, link).code == 0

        try:
            time.sleep(0.5)
            listener = Listener(wire)
            assert listener.count() == 0, "neither logs anything"
            for mac in (HOST_MAC, STANDBY_MAC, HOST_MAC):
                for other in set(switches) - {mac}:
                    switch(other, "pause")
                switch(mac, "resume")
                eventually(partial(is_at, mac))
                time.sleep(0.3)
                assert is_at(mac)
            for run in hosts.values():
                assert run.end()[0] == 0
        finally:
            for run in hosts.values():
                run.close()
    assert ndxdp("status", "--json").json()["interfaces"] == []
