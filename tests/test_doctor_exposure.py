"""The hosts that can reach the exporter, according to the kernel's socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.doctor import bad, conf, found_one, mends, notes
from tests.fixtures.network import BEHIND, HOST, UPLINK, Network, remove_instance, sh

PORT = 9877
FILE = f"""
[metrics]
listen = "{{}}"
ipv6only = {{}}

[[interface]]
name = "{UPLINK}"
mode = "tc"
on_stop = "detach"

[[interface.prefix]]
prefix = "{BEHIND}"
"""


@pytest.fixture
def host(net: Network) -> Iterator[Network]:
    conf("forwarding", 1, "all")
    yield net
    net.close()
    remove_instance()
    conf("forwarding", 0, "all")
    sh("nft", "flush", "ruleset")


def listen(net: Network, folder: Path, where: str, *, only: bool = False) -> None:
    file = folder / "ndxdp.toml"
    file.write_text(FILE.format(where, str(only).lower()))
    net.run("-c", str(file))


def reached(net: Network, address: str = f"[{HOST}]") -> bool:
    script = f"import urllib.request as r; r.urlopen('http://{address}:{PORT}/metrics', timeout=1)"
    return net.at_router("python3", "-c", script).code == 0


def exporter() -> list[str]:
    return [note for note in notes() if note.startswith("metrics at")]


def test_for_this_host_alone(host: Network, tmp_path: Path) -> None:
    listen(host, tmp_path, f"[::1]:{PORT}")
    assert exporter() == [f"metrics at [::1]:{PORT}: only this host can read them"]
    assert bad() == []
    assert not reached(host)


def test_no_exporter(host: Network) -> None:
    host.run("-i", UPLINK, "--mode", "tc", "-n", BEHIND)
    assert exporter() == []
    assert bad() == []


def test_open_to_the_internet(host: Network, tmp_path: Path) -> None:
    listen(host, tmp_path, f"[::]:{PORT}")
    assert reached(host)
    assert [*mends("exporter", f"metrics at [::]:{PORT} is open to the Internet, by IPv6 and IPv4")]
    assert exporter() == [
        f"metrics at [::]:{PORT}, by IPv6 and IPv4:"
        f" the firewall drops connections that come in by {UPLINK}"
    ]
    assert not reached(host)


def test_the_real_scope(host: Network, tmp_path: Path) -> None:
    listen(host, tmp_path, f"[::]:{PORT}", only=True)
    found = found_one("exporter", "is open to the Internet")
    assert found["what"].endswith("by IPv6")


def test_one_address(host: Network, tmp_path: Path) -> None:
    listen(host, tmp_path, f"[{HOST}]:{PORT}")
    found_one("exporter", f"metrics at [{HOST}]:{PORT} is open to the Internet, by IPv6")


def test_ipv4_alone(host: Network, tmp_path: Path) -> None:
    listen(host, tmp_path, f"0.0.0.0:{PORT}")
    assert exporter() == [
        f"metrics at 0.0.0.0:{PORT}, by IPv4: open to clients that the firewall accepts on {UPLINK}"
    ]
    assert bad() == []


@pytest.mark.parametrize(
    "rule",
    [
        f"tcp dport {PORT} drop",
        f"ip6 saddr 2001:db8:77::/64 tcp dport {PORT} accept; tcp dport {PORT} drop",
        f"ct state established accept; icmpv6 type != 1 accept; tcp dport != {PORT} accept; drop",
    ],
)
def test_the_firewall_is_named(host: Network, tmp_path: Path, rule: str) -> None:
    rules = "add table inet guard; add chain inet guard c { type filter hook input priority 0; }"
    for one in rule.split("; "):
        rules += f"; add rule inet guard c {one}"
    sh("nft", rules)
    listen(host, tmp_path, f"[::]:{PORT}", only=True)
    assert bad() == []
    assert not reached(host)
