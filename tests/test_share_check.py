"""`ndxdp check` of [[share]]: each share in words, and what keeps it from working on this host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.network import REPOSITORY, call, ndxdp, sh

SHARE = '[[share]]\nupstream = "{}"\ndownstream = [{}]\n'

WORDS = (
    "prefixes: those that its routers advertise; relays router advertisements; hosts: at most"
    " 4096, 1024 of one MAC; forgets a host after 600 s"
)


@pytest.fixture
def host(privacy: None) -> Iterator[None]:
    """Return a host that forwards between eth0, lan0, lan1 and wg0, all of them up."""
    made = []
    try:
        for name in ("eth0", "lan0", "lan1"):
            sh("ip", "link", "add", name, "type", "veth", "peer", "name", f"p-{name}")
            made.append(name)
            sh("ip", "link", "set", f"p-{name}", "up")
        sh("ip", "tuntap", "add", "wg0", "mode", "tun")
        made.append("wg0")
        for name in made:
            sh("sysctl", "-qw", f"net.ipv6.conf.{name}.forwarding=1")
            sh("ip", "link", "set", name, "up")
        yield
    finally:
        for name in made:
            call("ip", "link", "delete", name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ndxdp.toml"


def warnings(file: Path, text: str) -> list[tuple[str, str]]:
    """Return the warnings about a file that is good."""
    file.write_text(text)
    found = ndxdp("check", str(file), "--json").json()
    assert found["good"] is True
    return [(each["message"], each["hint"]) for each in found["warnings"]]


def test_a_share_alone_is_a_good_file(host: None, file: Path) -> None:
    file.write_text(SHARE.format("eth0", '"lan*", "wg0"'))
    shown = ndxdp("check", str(file))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == (
        f"{file}: good\neth0  shared with lan*, wg0; {WORDS}; here now: lan0, lan1, wg0\n"
    )


def test_a_share_beside_interfaces(host: None, file: Path) -> None:
    table = '[[interface]]\nname = "lan0"\nmode = "tc"\n'
    file.write_text(table + SHARE.format("eth0", '"lan0"'))
    shown = ndxdp("check", str(file))
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == (
        f"{file}: good\nlan0  tc mode; rules: 0\neth0  shared with lan0; {WORDS}; here now: lan0\n"
    )
    data = ndxdp("check", str(file), "--json").json()
    assert [each["interface"] for each in data["interfaces"]] == ["lan0"]
    (share,) = data["shares"]
    assert share == {
        "upstream": "eth0",
        "downstream": ["lan0"],
        "prefixes": [],
        "router_advertisements": "relay",
        "max_hosts": 4096,
        "max_hosts_per_mac": 1024,
        "expire": 600.0,
        "summary": f"shared with lan0; {WORDS}; here now: lan0".split("; "),
        "here": ["lan0"],
    }


def test_the_page_shows_what_check_prints(host: None, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    section = page.partition("\n## [[share]]\n")[2]
    example, shown = re.findall(r"^```(?:toml|text)\n(.*?)^```$", section, re.M | re.S)[:2]
    sh("ip", "link", "add", "br-6f1c", "type", "bridge")
    sh("ip", "link", "delete", "lan1")
    try:
        sh("sysctl", "-qw", "net.ipv6.conf.br-6f1c.forwarding=1")
        (tmp_path / "ndxdp.toml").write_text(example)
        found = ndxdp("check", str(tmp_path / "ndxdp.toml"))
    finally:
        sh("ip", "link", "delete", "br-6f1c")
    assert (found.code, found.err) == (0, "")
    assert found.out.replace(f"{tmp_path}/", "") == shown


def test_an_interface_that_is_not_here(host: None, file: Path) -> None:
    assert warnings(file, SHARE.format("eth9", '"lan0", "lan9", "br-*"')) == [
        ("eth9, upstream in a share, is not here: the daemon waits for it", "see: ip -br link"),
        ("lan9, downstream in a share, is not here: the daemon waits for it", "see: ip -br link"),
    ]
    assert "here now: lan0\n" in ndxdp("check", str(file)).out
    assert warnings(file, SHARE.format("eth0", '"br-*"')) == []
    assert "here now: no downstream interface\n" in ndxdp("check", str(file)).out


def test_an_alternative_name(host: None, file: Path) -> None:
    sh("ip", "link", "property", "add", "dev", "lan0", "altname", "inside")
    assert warnings(file, SHARE.format("eth0", '"inside"')) == [
        (
            "inside, downstream in a share, is an alternative name of lan0",
            "write lan0: a share needs the interface's own name",
        )
    ]


def test_links_without_a_mac(host: None, file: Path) -> None:
    """A tunnel may be downstream, where it has no Neighbor Discovery, but not upstream."""
    ((message, _),) = warnings(file, SHARE.format("eth0", '"lo"'))
    assert message == "lo, downstream in a share, is the loopback interface"
    assert warnings(file, SHARE.format("eth0", '"wg0"')) == []
    own = '[[interface]]\nname = "wg0"\n'
    assert warnings(file, own + SHARE.format("eth0", '"wg0"')) == []
    prefix = '[[interface.prefix]]\nprefix = "2001:db8::/80"\n'
    ((message, _),) = warnings(file, own + prefix + SHARE.format("eth0", '"wg0"'))
    assert message.startswith("wg0 has no MAC address: `run` refuses its [[interface.prefix]]")
    found = warnings(file, SHARE.format("wg0", '"lan0"'))
    assert "wg0 has no MAC address, so no router solicits there" in [each for each, _ in found]


def test_a_port_of_a_bridge(host: None, file: Path) -> None:
    sh("ip", "link", "add", "br0", "type", "bridge")
    try:
        sh("ip", "link", "set", "lan0", "master", "br0")
        assert warnings(file, SHARE.format("eth0", '"lan0"')) == [
            ("lan0, downstream in a share, is a port of br0", "write br0")
        ]
    finally:
        sh("ip", "link", "delete", "br0")


def test_a_link_that_is_down_or_has_no_link_local_address(host: None, file: Path) -> None:
    sh("ip", "link", "set", "lan0", "down")
    assert warnings(file, SHARE.format("eth0", '"lan0"')) == [
        ("lan0, downstream in a share, is down", "ip link set dev lan0 up")
    ]
    sh("ip", "-6", "address", "flush", "dev", "eth0")
    ((message, hint),) = warnings(file, SHARE.format("eth0", '"lan1"'))
    assert message == (
        "eth0, upstream in a share, has no link-local address, so that the daemon cannot solicit"
        " there"
    )
    assert hint.startswith("see: ip -6 addr show dev eth0")


def test_interfaces_that_do_not_forward(host: None, file: Path) -> None:
    text = SHARE.format("eth0", '"lan*"')
    sh("sysctl", "-qw", "net.ipv6.conf.lan1.forwarding=0")
    assert warnings(file, text) == [
        (
            "lan1 does not forward, and a share needs forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1 net/ipv6/conf/eth0/accept_ra=2",
        )
    ]
    sh("sysctl", "-qw", "net.ipv6.conf.eth0.forwarding=0", "net.ipv6.conf.eth0.accept_ra=2")
    assert warnings(file, text) == [
        (
            "eth0, lan1 do not forward, and a share needs forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        )
    ]


def test_a_prefix_that_is_not_on_link_upstream(host: None, file: Path) -> None:
    text = SHARE.format("eth0", '"lan0"') + 'prefixes = ["2001:db8:1::/64", "fd00:1::/80"]\n'
    sh("ip", "-6", "address", "add", "fd00:1::2/64", "dev", "eth0")
    ((message, hint),) = warnings(file, text)
    assert message == (
        "2001:db8:1::/64 is not on-link on eth0, so hosts behind this host do not reach its hosts"
        " there"
    )
    sh(*hint.split())
    assert warnings(file, text) == []


def test_the_cure_is_one(host: None, file: Path) -> None:
    """The command of the hint is accepted, and nothing is left to warn of."""
    sh("sysctl", "-qw", "net.ipv6.conf.eth0.forwarding=0", "net.ipv6.conf.eth0.accept_ra=1")
    text = SHARE.format("eth0", '"lan0"')
    ((_, hint),) = warnings(file, text)
    before = sh("sysctl", "-n", "net.ipv6.conf.all.forwarding").strip()
    try:
        sh(*hint.split())
        assert warnings(file, text) == []
        assert sh("sysctl", "-n", "net.ipv6.conf.eth0.accept_ra").strip() == "2"
    finally:
        sh("sysctl", "-qw", f"net.ipv6.conf.all.forwarding={before}")


def test_a_dry_run_shows_the_shares(host: None, file: Path) -> None:
    file.write_text(SHARE.format("eth0", '"lan0", "wg0", "br-*"'))
    shown = ndxdp("run", "-c", str(file), "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    names = ("eth0  ", "lan0  ", "wg0  ", "br-*  ")
    lines = [line for line in shown.out.splitlines() if line.startswith(names)]
    assert [line.split()[0] for line in lines] == ["eth0", "lan0", "wg0", "br-*", "eth0"]
    assert "would be attached" in lines[0]
    assert "would be attached" in lines[1]
    assert lines[2] == "wg0  would not be attached to: it has no MAC address"
    assert lines[3] == "br-*  matches no interface now"
    assert lines[4] == f"eth0  would be shared with lan0, wg0, br-*; {WORDS}"
