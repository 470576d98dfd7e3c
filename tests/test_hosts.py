"""`ndxdp hosts`: the kernel's routes are the list, the reports say since when and who."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from ndxdp.netlink.host_routes import PROTOCOL
from ndxdp.netlink.netns import netns
from ndxdp.runtime import share_report
from ndxdp.runtime.share_report import SharedHost, SharedLink, SharedPrefix, ShareReport
from tests.fixtures.network import FILES, UPLINK, Network, call, done, ndxdp, sh
from tests.test_completion import offered

FIRST, SECOND, THIRD = "2001:db8::10", "2001:db8::9", "2001:db8::1:0"
INNER, OTHER, TUNNEL = "lan2", "lan10", "tun0"
PEER = "2001:db8::88"
MAC = "02:00:00:00:00:10"


def learn(address: str, interface: str) -> None:
    """Add a route as a daemon does."""
    sh("ip", "-6", "route", "add", address, "dev", interface, "proto", str(PROTOCOL))


def routes() -> set[str]:
    """Return the addresses that have a route of ndxdp's, by `ip`."""
    shown = json.loads(sh("ip", "-j", "-6", "route", "show", "proto", str(PROTOCOL)) or "[]")
    return {each["dst"] for each in shown}


@pytest.fixture
def inner(net: Network) -> Iterator[Network]:
    """Add two downstream links with three learned hosts, and a tunnel."""
    for name in (INNER, OTHER):
        sh("ip", "link", "add", name, "up", "type", "veth", "peer", "name", f"{name}-end")
        sh("ip", "link", "set", f"{name}-end", "up")
    sh("ip", "tuntap", "add", TUNNEL, "mode", "tun")
    sh("ip", "link", "set", TUNNEL, "up")
    learn(FIRST, INNER)
    learn(SECOND, INNER)
    learn(THIRD, OTHER)
    for prefix in (PEER, "2001:db8:1::88", "2001:db8::f:0/112"):  # outside, and no single address
        sh("ip", "-6", "route", "add", prefix, "dev", TUNNEL)
    yield net
    for name in (INNER, OTHER, TUNNEL):
        call("ip", "link", "delete", name)
    share_report.remove(FILES, netns(), "up0")


def report() -> ShareReport:
    """Write and return the report of a share with the links of `inner`."""
    now = time.time()
    made = ShareReport(
        "up0",
        netns(),
        1,
        now,
        [
            SharedLink("up0", "upstream"),
            SharedLink(INNER, "neighbors"),
            SharedLink(OTHER, "neighbors"),
            SharedLink(TUNNEL, "routes"),
        ],
        [SharedPrefix("2001:db8::/64")],
        [],
        True,
        4096,
        [
            SharedHost(FIRST, INNER, MAC, now - 600, now - 15),
            SharedHost("2001:db8::77", INNER, MAC, now - 600, now - 15),  # its route has gone
        ],
        {},
        {},
        {},
    )
    share_report.write(FILES, made)
    return made


def rows(*words: str) -> list[list[str]]:
    """Return the cells of the list."""
    return [line.split() for line in done("hosts", *words).splitlines()]


def test_without_a_daemon_the_list_is_what_the_kernel_has(inner: Network) -> None:
    sh("ip", "-6", "route", "add", "2001:db8::99", "dev", INNER)  # not of ndxdp
    sh("ip", "-6", "route", "add", "2001:db8:1::/64", "dev", INNER, "proto", str(PROTOCOL))
    sh("ip", "neigh", "add", SECOND, "lladdr", MAC, "dev", INNER)
    assert rows()[1:] == [
        [SECOND, INNER, MAC, "-", "-"],
        [FIRST, INNER, "-", "-", "-"],
        [THIRD, OTHER, "-", "-", "-"],
    ]
    assert json.loads(done("hosts", "--json"))[0] == {
        "address": SECOND,
        "interface": INNER,
        "upstream": None,
        "mac": MAC,
        "since": None,
        "seen": None,
        "learned": True,
    }


def test_the_report_adds_since_and_seen_and_mac(inner: Network) -> None:
    made = report()
    assert rows()[1:] == [
        [SECOND, INNER, "-", "-", "-"],
        [FIRST, INNER, MAC, "10", "min", "ago", *rows()[2][6:]],
        [THIRD, OTHER, "-", "-", "-"],
        [PEER, TUNNEL, "-", "-", "-"],
    ]
    by_address = {each["address"]: each for each in json.loads(done("hosts", "list", "--json"))}
    first = by_address[FIRST]
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.hosts[0].since))
    assert (first["upstream"], first["since"]) == ("up0", since)
    assert by_address[SECOND]["upstream"] == "up0"
    assert not by_address[PEER]["learned"]


def test_a_list_of_one_interface_or_one_share(inner: Network) -> None:
    assert [each[0] for each in rows(INNER)[1:]] == [SECOND, FIRST]
    assert [each[0] for each in rows("list", OTHER)[1:]] == [THIRD]
    assert done("hosts", "up0") == "no host has been learned on up0\n"
    report()
    assert [each[0] for each in rows("up0")[1:]] == [SECOND, FIRST, THIRD, PEER]


@pytest.mark.parametrize("words", [("nosuch0",), ("list", "nosuch0"), ("2001:db8::1",)])
def test_a_list_of_no_interface(inner: Network, words: tuple[str, ...]) -> None:
    ended = ndxdp("hosts", *words)
    assert (ended.code, ended.out) == (1, "")
    assert f"there is no interface '{words[-1]}'" in ended.err


def test_options_before_a_command(net: Network) -> None:
    assert done("hosts", "--json", UPLINK) == "[]\n"
    ended = ndxdp("hosts", "-v", "list")  # as with `ndxdp prefix -v list`
    assert (ended.code, "-v" in ended.err) == (2, True)


def test_no_host(net: Network) -> None:
    assert done("hosts") == "no host has been learned\n"
    assert json.loads(done("hosts", "--json")) == []


def test_a_damaged_report_changes_nothing(inner: Network) -> None:
    made = report()
    share_report.path_of(FILES, made.netns, "up0").write_text("{")
    assert len(rows()) == 4


# ---- forget -------------------------------------------------------------------------------------


def test_forget_removes_the_routes(inner: Network) -> None:
    assert done("hosts", "forget", FIRST, "2001:DB8:0::1:0") == ""
    assert routes() == {SECOND}


def test_forget_all(inner: Network) -> None:
    done("hosts", "forget", INNER, "--all")
    assert routes() == {THIRD}
    report()  # with a host of the tunnel, which is nobody's to forget
    done("hosts", "forget", "--all")
    assert routes() == set()
    done("hosts", "forget", "--all")


def test_a_dry_run_says_what_would_be_forgotten(inner: Network) -> None:
    assert done("hosts", "forget", "--dry-run", FIRST) == f"- {FIRST} on {INNER}\n"
    assert len(routes()) == 3
    assert (
        done("hosts", "forget", "--dry-run", "--missing-ok", "2001:db8::4")
        == "nothing would be forgotten\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ([FIRST, "2001:db8::4"], 1, "ndxdp: 2001:db8::4 is no learned host"),
        (["2001:db8::4", "2001:db8::5"], 1, "2001:db8::4, 2001:db8::5 are no learned hosts"),
        ([INNER, THIRD], 1, f"{THIRD} is no learned host on {INNER}"),
        (["2001:db8::88"], 1, "the route to 2001:db8::88 is not ndxdp's"),
        ([], 2, "no address is given"),
        (["--all", FIRST], 2, "--all and addresses cannot be combined"),
        ([INNER], 2, f"no address is given for the interface '{INNER}'"),
        (["192.0.2.1"], 2, "'192.0.2.1' is an IPv4 address"),
        ([FIRST, OTHER], 2, f"the interface '{OTHER}' is named behind another word"),
        (["2001:db8::/64"], 2, "'2001:db8::/64' is not an IPv6 address"),
    ],
)
def test_an_error_changes_nothing(inner: Network, words: list[str], code: int, error: str) -> None:
    report()
    ended = ndxdp("hosts", "forget", *words)
    assert ended.code == code
    assert error in ended.err
    assert "hint: " in ended.err
    assert len(routes()) == 3


def test_a_missing_host_may_be_accepted(inner: Network) -> None:
    done("hosts", "forget", "--missing-ok", FIRST, "2001:db8::4")
    assert routes() == {SECOND, THIRD}


def test_forget_without_privileges(inner: Network) -> None:
    dropped = ("capsh", "--drop=cap_net_admin", "--", "-c")
    listed = call(*dropped, ".venv/bin/python -m ndxdp hosts")
    assert (listed.code, listed.err) == (0, "")
    assert len(listed.out.splitlines()) == 4
    ended = call(*dropped, f".venv/bin/python -m ndxdp hosts forget {FIRST}")
    assert (ended.code, "not permitted" in ended.err, "hint: " in ended.err) == (1, True, True)
    assert len(routes()) == 3


# ---- completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hosts f", ["forget"]),
        ("hosts forget 2001", [FIRST, SECOND, THIRD]),
        (f"hosts forget {FIRST} 2001", [SECOND, THIRD]),
        (f"hosts forget {OTHER} 2001", [THIRD]),
        ("hosts forget lan2", [INNER, f"{INNER}-end"]),
        ("hosts list lan10", [OTHER, f"{OTHER}-end"]),
        ("hosts lan10", [OTHER, f"{OTHER}-end"]),
        ("hosts --js", ["--json"]),
    ],
)
def test_completion(inner: Network, line: str, expected: list[str]) -> None:
    assert sorted(offered(line)) == sorted(expected)
