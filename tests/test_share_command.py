"""`ndxdp share`: kernels behind this host share its prefix, without a configuration file."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from lab.nodes import LINK
from lab.shared_prefix import GUESTS, INTERNET_ADDRESS, LAN0, LAN1, PREFIX, TUNNEL
from tests.fixtures.network import (
    FILES,
    NDXDP,
    PINS,
    Network,
    Running,
    call,
    done,
    eventually,
    ndxdp,
    sh,
)
from tests.fixtures.prometheus import Samples, parsed
from tests.fixtures.shared_link import AT_HOST, SharedHost, shared_link
from tests.test_completion import offered

WORDS = (LINK, LAN0, "br-*", "wg*")
BEHIND_TUNNEL = IPv6Address("2001:db8:1::77")


@pytest.fixture
def site(privacy: None, tmp_path: Path) -> Iterator[SharedHost]:
    """Return the network, without a daemon and without clients."""
    with shared_link(tmp_path) as made:
        yield made


@pytest.fixture
def sharing(site: SharedHost) -> Iterator[Running]:
    """Start the command on the host, and wait for its first line."""
    running = Running(WORDS, [*AT_HOST, *NDXDP], verb="share")
    yield running
    running.close()


def shown(site: SharedHost) -> dict[str, list[str]]:
    """Return the lines of `ndxdp hosts`, by address."""
    listed = site.ndxdp("hosts")
    assert (listed.code, listed.err) == (0, "")
    return {line.split()[0]: line.split()[1:] for line in listed.out.splitlines()[1:]}


# ---- kernels ------------------------------------------------------------------------------------


def test_a_first_try_without_a_file(site: SharedHost, sharing: Running) -> None:
    """Share a prefix with a LAN, a bridge and a tunnel; leave nothing behind after Ctrl-C."""
    lab = site.lab
    client, guest = lab.client("a0", LAN0), lab.client("g0", GUESTS)
    lab.wait_for_addresses(client, guest)
    tunnelled = lab.tunnel_client("t0", BEHIND_TUNNEL)
    first, second = client.slaac(PREFIX), guest.slaac(PREFIX)
    site.await_routes({first: LAN0, second: GUESTS})
    for node, address in ((client, first), (guest, second), (tunnelled, BEHIND_TUNNEL)):
        eventually(partial(site.reaches, lab.internet, address), within=20)
        assert site.reaches(node, INTERNET_ADDRESS), node.name
    eventually(lambda: str(BEHIND_TUNNEL) in shown(site), within=20)
    listed = shown(site)
    assert listed[str(first)][:2] == [LAN0, client.mac]
    assert listed[str(second)][:2] == [GUESTS, guest.mac]
    assert listed[str(BEHIND_TUNNEL)][:2] == [TUNNEL, "-"]
    assert "-" not in listed[str(first)]

    status = site.ndxdp("status")
    assert (status.code, status.err) == (0, "")
    assert f"\nshare {LINK}  hosts " in status.out
    assert "WARNING" not in status.out
    (share,) = site.ndxdp("status", "--json").json()["shares"]
    assert share["running"]
    assert {each["interface"]: each["kind"] for each in share["links"]} == {
        LINK: "upstream",
        LAN0: "neighbors",
        GUESTS: "neighbors",
        TUNNEL: "routes",
    }
    assert [each["prefix"] for each in share["prefixes"]] == [str(PREFIX)]

    def measured(name: str) -> Samples:
        return parsed(site.ndxdp("metrics").out)[f"ndxdp_share_{name}"]

    eventually(lambda: measured("learned_total")[LINK,] >= 2, within=10)
    eventually(lambda: measured("advertisements_relayed_total")[LINK,] >= 2, within=10)
    assert measured("hosts") == {(LAN0, LINK): 1, (GUESTS, LINK): 1, (TUNNEL, LINK): 1}
    assert (measured("routers"), measured("prefixes")) == ({(LINK,): 1}, {(LINK,): 1})
    assert set(measured("link_working").values()) == {1}
    explained = site.ndxdp("explain", LINK, str(first))
    assert f"host     {first} on {LAN0}, {client.mac}, learned " in explained.out

    assert site.ndxdp("hosts", "forget", str(second)).code == 0
    assert second not in site.routes()
    eventually(lambda: second not in site.state().hosts)

    ended = sharing.end(signal.SIGINT)
    assert (ended.code, "Traceback" in ended.err) == (0, False), ended
    out = sharing.ready + ended.out
    ready = dict(re.findall(r"^ready: (\S+) (.*)$", out, re.MULTILINE))
    assert ready.keys() == {LINK, LAN0, GUESTS, TUNNEL}
    assert "answers in" in ready[LAN0]
    assert ready[TUNNEL] == "is shared: its hosts are those that the kernel has routes for"
    assert re.search(rf"^ndxdp: .*learned {first} on {LAN0} \({client.mac}\)$", ended.err, re.M)
    assert re.search(rf"^ndxdp: .*forgot {second} on {GUESTS}$", ended.err, re.M)
    assert site.routes() == {}
    assert not FILES.exists()
    assert not PINS.exists() or not list(PINS.rglob("*/eth0"))
    assert "ndxdp is attached to no interface" in site.ndxdp("status").out


def test_prefixes_and_limits_of_the_command_line(site: SharedHost) -> None:
    """Share a prefix that is named, without relaying, with room for one host, in tc mode."""
    lab = site.lab
    words = (LINK, LAN0, "-p", str(PREFIX), "--no-relay", "--max-hosts", "1", "--mode", "tc")
    running = Running(words, [*AT_HOST, *NDXDP], verb="share")
    try:
        first, second = lab.client("a0", LAN0), lab.client("b0", LAN0)
        for node in (first, second):
            node.ip(f"address add {node.slaac(PREFIX)}/64 dev {LINK}")
        site.await_count("refused", "limit", within=15)
        report = site.report()
        assert (report["relay"], report["max_hosts"], len(report["hosts"])) == (False, 1, 1)
        assert report["counters"]["relayed"] == 0
        status = site.ndxdp("status")
        assert "there are 1 hosts, as many as max_hosts allows" in status.out
        states = [each["mode"] for each in site.ndxdp("status", "--json").json()["interfaces"]]
        assert states == ["tc", "tc"]
    finally:
        running.close()


def test_a_killed_share_is_shown_and_continued(site: SharedHost, sharing: Running) -> None:
    """Show what a killed daemon has left; the next one knows since when a host is known."""
    client = site.lab.client("a0", LAN0)
    site.lab.wait_for_addresses(client)
    address = client.slaac(PREFIX)
    site.await_routes({address: LAN0})
    eventually(lambda: address in site.state().hosts)

    def since() -> object:
        listed = {each["address"]: each for each in site.ndxdp("hosts", "--json").json()}
        return listed[str(address)]["since"]

    first = since()
    assert first is not None
    sharing.kill()
    status = site.ndxdp("status")
    assert "the daemon of this share does not run" in status.out
    assert "the routes to 1 of them stay" in status.out
    assert since() == first
    metrics = parsed(site.ndxdp("metrics").out)
    assert metrics["ndxdp_share_running"] == {(LINK,): 0}
    time.sleep(1.1)  # the time of another start would differ
    again = Running(WORDS, [*AT_HOST, *NDXDP], verb="share")
    try:
        eventually(lambda: site.report()["pid"] != sharing.process.pid)
        eventually(lambda: address in site.state().hosts)
        assert since() == first
        assert "WARNING" not in site.ndxdp("status").out
    finally:
        ended = again.end(signal.SIGINT)
    assert ended.code == 0
    assert site.routes() == {}
    assert not FILES.exists()


# ---- what is missing ----------------------------------------------------------------------------


def test_what_is_missing_is_said_at_the_start(site: SharedHost) -> None:
    site.lab.host.sysctl("all.forwarding=0", f"{LINK}.accept_ra=1")
    running = Running((LINK, LAN0, "lan7"), [*AT_HOST, *NDXDP], verb="share")
    ended = running.end()
    assert ended.code == 0
    lines = ended.err.splitlines()
    assert f"ndxdp: {LINK}, {LAN0} do not forward, and a share needs forwarding" in lines
    assert any("hint: sysctl -w net.ipv6.conf.all.forwarding=1" in line for line in lines)
    assert any("lan7, downstream in a share, is not here" in line for line in lines)


def test_a_host_that_forwards_and_ignores_advertisements(site: SharedHost) -> None:
    """Warn of accept_ra = 1 with forwarding, unless a default route was configured."""
    warning = "forwards, and its accept_ra is 1: this host ignores its routers"

    def begun() -> str:
        running = Running((LINK, LAN0), [*AT_HOST, *NDXDP], verb="share")
        return running.end_cleanly()

    assert warning not in begun()  # accept_ra is 2
    site.lab.host.sysctl(f"{LINK}.accept_ra=1")
    err = begun()
    assert warning in err
    assert f"hint: sysctl -w net/ipv6/conf/{LINK}/accept_ra=2" in err
    site.lab.host.ip(f"route add default via fe80::1 dev {LINK} metric 2000")
    assert warning not in begun()


def test_an_upstream_without_a_prefix(net: Network) -> None:
    sh("ip", "link", "add", "bare0", "up", "type", "veth", "peer", "name", "bare1")
    sh("ip", "link", "set", "bare1", "up")
    try:
        for words, warned in (((), True), (("-p", "2001:db8:9::/64"), False)):
            running = Running(("bare0", "bare1", *words), verb="share")
            err = running.end_cleanly()
            assert ("bare0 has no on-link prefix yet" in err) is warned
    finally:
        call("ip", "link", "delete", "bare0")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["nosuch0", "up0"], 1, "there is no interface 'nosuch0'"),
        (["up0", "up0"], 2, "up0 is the upstream of this share"),
        (["up0", "lan0", "lan0"], 2, "lan0 is given twice"),
        (["up*", "lan0"], 2, "'up*' is a pattern"),
        (["up0", "a/b"], 2, "'a/b' is no interface name"),
        (["up0", "a\"b'\\\\"], 0, ""),
        (["up0"], 2, "DOWNSTREAM"),
        (["up0", "lan0", "-p", "fe80::/64"], 2, "fe80::/64 is link-local"),
        (["up0", "lan0", "-p", "2001:db8::1"], 2, "is one address"),
        (["up0", "lan0", "-p", "nonsense"], 2, "nonsense"),
        (["up0", "lan0", "-p", "2001:db8::/64", "-p", "2001:db8::/48"], 2, "contains"),
        (["up0", "lan0", "-p", "advertised"], 2, "'advertised' cannot be combined"),
        (["up0", "lan0", "--max-hosts", "0"], 2, "max-hosts"),
        (["up0", "lan0", "--expire", "nan"], 2, "expire"),
        (["up0", *(f"interface{n:03}" for n in range(20))], 2, "take more than 127 bytes"),
    ],
)
def test_bad_words(net: Network, words: list[str], code: int, error: str) -> None:
    ended = ndxdp("share", "--dry-run", *words) if code != 1 else ndxdp("share", *words)
    assert ended.code == code, ended
    assert error in ended.err
    assert "share:" not in ended.err
    assert "line " not in ended.err
    assert ("hint: " in ended.err) == (code != 0)


def test_an_interface_that_another_daemon_has(net: Network) -> None:
    running = net.run("up0", "-n", "2001:db8:0:0:c::/80")
    ended = ndxdp("share", "up0", "lan0")
    assert ended.code == 1
    assert "up0 is locked by a running `ndxdp run`" in ended.err
    running.end_cleanly()


def test_a_dry_run_changes_nothing(site: SharedHost) -> None:
    ended = site.ndxdp("share", LINK, LAN0, "wg*", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert f"{LINK}  would be attached" in ended.out
    assert "wg*  matches no interface now" in ended.out
    assert f"{LINK}  would be shared with {LAN0}, wg*" in ended.out
    assert site.ndxdp("status", "--json").json()["interfaces"] == []
    assert site.routes() == {}


def test_completion_offers_the_interfaces_of_the_host(net: Network) -> None:
    for line in ("share u", "share up0 u"):
        assert "up0" in offered(line)
    assert json.loads(done("hosts", "--json")) == []
    assert LAN1 not in offered("share ")
