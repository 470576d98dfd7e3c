"""Deprecated addresses: what is restored, addresses of router advertisements, and doctor."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.upstream.deprecate import LABEL
from tests.fixtures.deprecated import (
    ADDRESSES,
    ALL,
    NO_MAC,
    ONE,
    THREE,
    TWO,
    VENET,
    deprecated,
    reload,
    venet,
    write,
)
from tests.fixtures.network import (
    FILES,
    HOST,
    UPLINK,
    Network,
    done,
    eventually,
    ndxdp,
    sh,
    status,
)
from tests.fixtures.tap import ARPHRD_VOID, tun


def lifetime(text: str, interface: str = VENET) -> int:
    """Return the preferred lifetime of an address in seconds, as `ip` shows it."""
    (link,) = json.loads(sh("ip", "-j", "-6", "address", "show", "dev", interface, "to", text))
    (found,) = (each for each in link["addr_info"] if each.get("local") == text)
    return int(found["preferred_life_time"])


def labelled(interface: str = UPLINK) -> set[str]:
    """Return the addresses with the label that keeps the kernel from choosing them."""
    lines = [line.split() for line in sh("ip", "addrlabel", "list").splitlines()]
    ours = (line for line in lines if line[-3:] == [interface, "label", str(LABEL)])
    return {line[1].removesuffix("/128") for line in ours}


# ---- restoring -----------------------------------------------------------------------------------


LEAST = 3600
KINDS = {"venet": VENET, "ethernet": UPLINK}


@contextlib.contextmanager
def host(interface: str) -> Iterator[None]:
    """Yield an interface with ONE, TWO with a finite lifetime, and THREE, already deprecated."""
    with contextlib.ExitStack() as stack:
        if interface == VENET:
            stack.enter_context(tun(VENET, ARPHRD_VOID))
            sh("ip", "link", "set", VENET, "up")
        for text, how in (
            (ONE, "preferred_lft 0"),
            (TWO, f"valid_lft {2 * LEAST} preferred_lft {LEAST}"),
            (THREE, "preferred_lft 0"),
        ):
            sh(*f"ip -6 address add {text}/128 dev {interface} nodad {how}".split())
        yield


def was_changed(interface: str) -> bool:
    return {TWO, THREE} <= deprecated(interface) and ONE not in deprecated(interface)


def is_restored(interface: str) -> bool:
    return (
        {ONE, THREE} <= deprecated(interface)
        and TWO not in deprecated(interface)
        and LEAST - 60 <= lifetime(TWO, interface) <= LEAST
        and labelled(interface) == set()
        and not (FILES / "addresses").exists()
    )


@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_removing_the_section_restores(restored_net: Network, file: Path, interface: str) -> None:
    with host(interface):
        write(file, (interface, ADDRESSES), ("up9", ""))
        running = restored_net.run("-c", str(file))
        eventually(lambda: was_changed(interface))
        eventually(lambda: labelled(interface) == {TWO})  # no manager renews THREE's lifetimes
        write(file, (interface, ""), ("up9", ""))
        reload(running)
        eventually(lambda: is_restored(interface))
        output = running.end().err
        assert f"{interface}: {TWO} is preferred again, as before ndxdp changed it" in output
        assert f"{interface}: {ONE} is deprecated again, as before ndxdp changed it" in output


@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_removing_the_interface_restores(restored_net: Network, file: Path, interface: str) -> None:
    with host(interface):
        running = restored_net.run("-c", str(write(file, (interface, ADDRESSES), ("up9", ""))))
        eventually(lambda: was_changed(interface))
        write(file, ("up9", ""))
        reload(running)
        eventually(lambda: is_restored(interface))
        assert running.end().code == 0


@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_other_patterns_restore_the_rest(restored_net: Network, file: Path, interface: str) -> None:
    with host(interface):
        running = restored_net.run("-c", str(write(file, (interface, ADDRESSES))))
        eventually(lambda: was_changed(interface))
        write(file, (interface, f'[interface.addresses]\ndeprecate = ["{ONE}"]\n'))
        reload(running)
        eventually(lambda: {ONE, THREE} <= deprecated(interface))
        eventually(lambda: TWO not in deprecated(interface))
        assert running.end().code == 0


@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_the_end_restores_where_it_detaches(
    restored_net: Network, file: Path, interface: str
) -> None:
    with host(interface):
        running = restored_net.run(
            "-c", str(write(file, (interface, f'on_stop = "detach"\n{ADDRESSES}')))
        )
        eventually(lambda: was_changed(interface))
        assert running.end().code == 0
        assert is_restored(interface)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_the_next_daemon_or_detach_restores(
    restored_net: Network, file: Path, interface: str, number: int
) -> None:
    """Keep changed addresses when the daemon ends; the next daemon or `detach` restores them."""
    with host(interface):
        write(file, (interface, ADDRESSES))
        restored_net.run("-c", str(file)).end(number)
        running = restored_net.run("-c", str(file))
        eventually(lambda: was_changed(interface))
        running.end(number)
        assert was_changed(interface)
        if interface == UPLINK:
            write(file, (interface, ""))
            running = restored_net.run("-c", str(file))
            eventually(lambda: is_restored(interface))
            assert running.end().code == 0
        else:
            done("detach", interface)
            assert is_restored(interface)


def test_detach_all(restored_net: Network, file: Path) -> None:
    with host(VENET):
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES), (UPLINK, ADDRESSES))))
        eventually(lambda: was_changed(VENET) and HOST in deprecated(UPLINK))
        assert running.end().code == 0
        done("detach", "--all")
        assert is_restored(VENET)
        assert deprecated(UPLINK) == set()


def test_lifetimes_that_were_set_since_stay(restored_net: Network, file: Path) -> None:
    with host(VENET):
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        eventually(lambda: was_changed(VENET))
        assert running.end().code == 0
        how = "valid_lft 1000 preferred_lft 500"
        sh(*f"ip -6 address change {TWO}/128 dev {VENET} {how}".split())
        done("detach", VENET)
        assert 440 < lifetime(TWO) <= 500


def test_a_directory_that_may_not_be_written(restored_net: Network, file: Path) -> None:
    """Keep the addresses without a writable directory, and log that they cannot be restored."""
    with host(VENET):
        FILES.write_text("in the way")
        try:
            running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
            eventually(lambda: was_changed(VENET))
            assert "cannot save the former lifetimes of addresses" in running.end().err
        finally:
            FILES.unlink()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"changed": {"x": 1}}', '{"changed": 7}'])
def test_a_damaged_file(restored_net: Network, file: Path, text: str) -> None:
    with host(VENET):
        (FILES / "addresses").mkdir(parents=True)
        (FILES / "addresses" / VENET).write_text(text)
        done("status")
        running = restored_net.run("-c", str(write(file, (VENET, ADDRESSES))))
        eventually(lambda: was_changed(VENET))
        assert running.end().code == 0
        done("detach", VENET)
        assert is_restored(VENET)


# ---- addresses from router advertisements --------------------------------------------------------


RADVD = """
interface eth0 {
    AdvSendAdvert on;
    MinRtrAdvInterval 3;
    MaxRtrAdvInterval 4;
    prefix 2001:db8:9::/64 { AdvPreferredLifetime 1000; AdvValidLifetime 2000; };
};
"""


@contextlib.contextmanager
def radvd(net: Network, folder: Path) -> Iterator[None]:
    """Run a real radvd at the router, which advertises a prefix every 3 to 4 seconds."""
    (folder / "radvd.conf").write_text(RADVD)
    assert net.at_router("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1").code == 0
    process = subprocess.Popen(
        [
            *("nsenter", "--net=/run/netns/router", "radvd", "--nodaemon"),
            *("-C", str(folder / "radvd.conf"), "-p", str(folder / "radvd.pid"), "-m", "stderr"),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


class Watch:
    """The output of `ip monitor address`: each change of an address."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "monitor"
        with self._path.open("w") as file:
            command = ["ip", "-o", "-6", "monitor", "address"]
            self._process = subprocess.Popen(command, stdout=file)

    def times(self, text: str, *, preferred: bool) -> int:
        """Return how often an address was reported as preferred, or as deprecated."""
        lines = [line for line in self._path.read_text().splitlines() if f" {text}/" in line]
        return sum((" deprecated " not in line) is preferred for line in lines)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def test_router_advertisements(restored_net: Network, file: Path, tmp_path: Path) -> None:
    """Keep the kernel from choosing an address that each router advertisement makes preferred."""
    sh("sysctl", "-qw", f"net.ipv6.conf.{UPLINK}.accept_ra=2")
    with contextlib.ExitStack() as stack:
        stack.enter_context(radvd(restored_net, tmp_path))

        def slaac() -> set[str]:
            shown = json.loads(sh("ip", "-j", "-6", "address", "show", "dev", UPLINK))
            found = (each["local"] for each in shown[0]["addr_info"])
            return {str(text) for text in found if text.startswith("2001:db8:9:")}

        sh("ip", "link", "set", UPLINK, "addrgenmode", "eui64")
        (text,) = eventually(slaac, within=20)
        write(file, (UPLINK, '[interface.addresses]\ndeprecate = ["2001:db8:9::/64"]\n'))
        running = restored_net.run("-c", str(file))
        eventually(lambda: deprecated(UPLINK) == {text})
        eventually(lambda: labelled() == {text})
        watch = Watch(tmp_path)
        stack.callback(watch.close)
        eventually(lambda: watch.times(text, preferred=True) >= 3, within=40)
        eventually(lambda: deprecated(UPLINK) == {text})
        # At the moment of an advertisement the address is preferred; then only the label counts.
        running.process.send_signal(signal.SIGSTOP)
        eventually(lambda: deprecated(UPLINK) == set(), within=20)
        towards = json.loads(sh("ip", "-j", "-6", "route", "get", "2001:db8:9::7"))
        assert towards[0]["prefsrc"] == HOST
        running.process.send_signal(signal.SIGCONT)
        eventually(lambda: deprecated(UPLINK) == {text})
        before = status()["attached"]
        output = running.end().err
        assert before
        assert output.count(f"{text} is deprecated now") == 1
        assert output.count(f"{text} is deprecated again: router advertisements or a") == 1
        assert output.count(text) == 2
        done("detach", UPLINK)
        assert deprecated(UPLINK) == set()
        assert labelled() == set()
        assert 900 < lifetime(text, UPLINK) <= 1000


# ---- doctor --------------------------------------------------------------------------------------


def test_doctor_examines_it(restored_net: Network) -> None:
    with venet():
        for words in ((), (VENET,)):
            result = ndxdp("doctor", *words, "--json")
            assert result.err == ""
            data = json.loads(result.out)
            (found,) = data["interfaces"]
            assert found["interface"] == VENET
            assert {each["check"] for each in found["findings"]} >= {"link", "source"}
            whats = [each["what"] for each in found["findings"]]
            assert f"ndxdp has nothing to answer on {VENET}: {NO_MAC}" in whats
            assert any("towards the Internet the host sends from 2001:db8:" in w for w in whats)
            assert not {"reception", "program", "listeners"} & {
                each["check"] for each in found["findings"]
            }
            assert data["exit_code"] == 0, found


def test_doctor_finds_faults_there(restored_net: Network) -> None:
    with venet():
        sh("ip", "-6", "route", "delete", "default")
        result = ndxdp("doctor", VENET)
        assert result.code == 2
        assert f"there is no IPv6 default route by {VENET}" in result.out
        assert f"$ ip -6 route add default dev {VENET}" in result.out
        sh("ip", "-6", "route", "add", "default", "dev", VENET)
        for text in ALL:
            sh(*f"ip -6 address change {text}/128 dev {VENET} preferred_lft 0".split())
        sh("ip", "-6", "address", "delete", f"{HOST}/64", "dev", UPLINK)
        result = ndxdp("doctor", VENET)
        assert result.code in (1, 2)
        assert "which is deprecated" in result.out
        sh("ip", "link", "set", VENET, "down")
        result = ndxdp("doctor", VENET)
        assert result.code == 2
        assert f"{VENET} is down" in result.out


def test_doctor_of_an_interface_with_a_gateway(restored_net: Network) -> None:
    """Report that a gateway needs no MAC, as on a tunnel whose far end has an address."""
    with venet(None):
        sh("ip", "-6", "route", "delete", "default")
        sh(*f"ip -6 route add default via fe80::77 dev {VENET}".split())
        result = ndxdp("doctor", VENET, "--probe")
        assert f"note:     gateway fe80::77: needs no MAC on {VENET}" in result.out
        assert "not seen: cannot check solicitations and their answers" in result.out
        assert result.code == 0


def test_a_firewall_against_neighbor_discovery_does_not_matter_there(restored_net: Network) -> None:
    with venet():
        sh("nft", "add table inet guard")
        sh("nft", "add chain inet guard input { type filter hook input priority 0; policy drop; }")
        try:
            assert ndxdp("doctor", VENET).code == 0
        finally:
            sh("nft", "flush", "ruleset")
