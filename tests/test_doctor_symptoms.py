"""Each page of a symptom ends with doctor's output for that symptom, which the test provokes."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.capture import packet_socket
from ndxdp.ndp.message import solicit
from ndxdp.rules.address import parse_address, parse_mac
from tests.fixtures.doctor import advertise, conf, default_route, ip, lose
from tests.fixtures.engine import Engine
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_LINK_LOCAL,
    PINS,
    REPOSITORY,
    ROUTER,
    ROUTER_LINK,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Running,
    done,
    eventually,
    ndxdp,
    network,
    remove_instance,
    sh,
    status,
)
from tests.fixtures.segment import BRIDGE, SWITCH, at, segment
from tests.fixtures.tap import ARPHRD_VOID, tun
from tests.test_company_hooks import tcx
from tests.test_doctor_arrival import attach, switch_drops, traffic

FOLDER = REPOSITORY / "docs" / "symptoms"
PAGES = {page.stem: page for page in sorted(FOLDER.glob("*.md"))}

Options = tuple[str, ...]
"""Options of `ndxdp doctor`, after the interface's name if it is not UPLINK."""

FORWARDING = "add table inet guard; add chain inet guard {0} {{ type filter hook {0} priority 0; }}"


@contextlib.contextmanager
def host() -> Iterator[None]:
    """Yield a host that forwards, and the router."""
    with network():
        conf("forwarding", 1, "all")
        try:
            yield
        finally:
            conf("forwarding", 0, "all")
            sh("nft", "flush", "ruleset")
            remove_instance()


@contextlib.contextmanager
def switched() -> Iterator[None]:
    """Yield both on the two ports of a switch, with an address behind the host."""
    with segment() as made:
        made.behind(TARGET)
        at(ROUTER, "sysctl", "-qw", "net.ipv6.neigh.eth0.retrans_time_ms=300")
        try:
            yield
        finally:
            remove_instance()


@contextlib.contextmanager
def drops_after_minutes() -> Iterator[Options]:
    with host():
        conf("proxy_ndp", 1)
        ip(f"-6 neighbour add proxy {TARGET} dev {UPLINK}")
        yield ()


@contextlib.contextmanager
def advertised() -> Iterator[None]:
    with host():
        sh("ip", "-6", "route", "delete", "default")
        conf("forwarding", 0, "all")
        advertise()
        eventually(lambda: "proto ra" in default_route())
        yield


@contextlib.contextmanager
def default_route_disappears() -> Iterator[Options]:
    with advertised():
        conf("forwarding", 1, "all")
        yield ()


@contextlib.contextmanager
def default_route_expires() -> Iterator[Options]:
    with advertised():
        conf("accept_ra", 2)
        conf("forwarding", 1, "all")
        conf("accept_ra", 1)
        conf("accept_ra", 2, "all")
        try:
            yield ()
        finally:
            conf("accept_ra", 1, "all")


@contextlib.contextmanager
def one_vps_not_the_other() -> Iterator[Options]:
    with switched():
        attach("--na-source", "link-local")
        switch_drops(f"ip6 saddr != {BEHIND}")
        with traffic():
            yield "--watch", "1.5"


@contextlib.contextmanager
def docker(engine: Engine, subnet: str, address: str | None) -> Iterator[Options]:
    with host():
        engine.make_network("six", subnet)
        engine.run("web", "six", address=address)
        try:
            yield "--docker-socket", str(engine.socket)
        finally:
            engine.clear()


@contextlib.contextmanager
def no_forwarding() -> Iterator[Options]:
    with host():
        conf("forwarding", 0, "all")
        yield ()


@contextlib.contextmanager
def ping_works_from_the_host() -> Iterator[Options]:
    with host():
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        sh("ip6tables", "-P", "FORWARD", "DROP")
        yield ()


@contextlib.contextmanager
def second_uplink() -> Iterator[Options]:
    with host():
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        ip("link add other0 type veth peer name far0")
        try:
            sh("ip", "link", "set", "other0", "up")
            ip("-6 route delete default")
            ip("-6 route add default via fe80::77 dev other0")
            sh("nft", FORWARDING.format("prerouting"))
            sh("nft", "add rule inet guard prerouting fib saddr . iif oif missing drop")
            yield ()
        finally:
            sh("ip", "link", "delete", "other0")


@contextlib.contextmanager
def gateway_failed() -> Iterator[Options]:
    with switched():
        switch_drops(f"ip6 saddr != {BEHIND}")
        done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
        lose(GATEWAY)
        yield "--probe", "--watch", "0"


@contextlib.contextmanager
def since_ndppd_was_stopped() -> Iterator[Options]:
    with host():
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        sh("ip", "link", "set", UPLINK, "allmulticast", "off")
        yield ()


@contextlib.contextmanager
def switch_that_snoops() -> Iterator[Options]:
    with segment(snooping=True) as made:
        made.behind(TARGET)
        words = ("-i", UPLINK, "--mode", "tc", "--join", "never", "-n", TARGET)
        with contextlib.closing(Running(words)):
            eventually(lambda: status()["multicast"] is not None)  # the daemon hears queries
            # The switch asks at once when it becomes the querier.
            for on in "01":
                at(SWITCH, "ip", "link", "set", BRIDGE, "type", "bridge", "mcast_querier", on)
            eventually(lambda: status()["multicast"]["querier"])
            yield ()
    remove_instance()


@contextlib.contextmanager
def firewall_blocks_icmpv6() -> Iterator[Options]:
    with host():
        sh("nft", FORWARDING.format("input"))
        sh("nft", "add rule inet guard input ct state established,related accept")
        sh("nft", "add rule inet guard input tcp dport 22 accept")
        sh("nft", "add rule inet guard input drop")
        yield ()


@contextlib.contextmanager
def do_i_need_a_responder() -> Iterator[Options]:
    with switched():
        attach()
        (pin,) = PINS.glob(f"v*/{UPLINK}/group_counters")
        before = time.time() - 120
        os.utime(pin, (before, before))
        at(ROUTER, "ip", "-6", "route", "add", BEHIND, "via", HOST_LINK_LOCAL, "dev", "eth0")
        with traffic():
            yield "--watch", "1"


@contextlib.contextmanager
def neighbour_table_overflow() -> Iterator[Options]:
    with host():
        shown = sh("ip", "-s", "ntable", "show", "name", "ndisc_cache")
        most = int(re.findall(r"thresh3 (\d+)", shown)[0])
        done("attach", UPLINK, "--mode", "tc")
        many = "".join(f"2001:db8::c:0:1:{number:x}\n" for number in range(1, most + 2))
        done("prefix", "add", "--file", "-", stdin=many)
        # All namespaces share the table: it may still have entries of other tests.
        eventually(lambda: not any("entries of" in line for line in doctor_lines(())), within=60)
        yield ()


@contextlib.contextmanager
def anyip_not_reachable() -> Iterator[Options]:
    prefix = "2001:db8:0:0:a::/80"
    with host():
        conf("forwarding", 0, "all")
        done("attach", UPLINK, "--mode", "tc", "-n", prefix)
        # The page has two blocks: without the route, and with it.
        page = PAGES["anyip-not-reachable"]
        assert steady(blocks(page)[0]) in steady(doctor_lines(()))
        sh("ip", "-6", "route", "add", "local", prefix, "dev", "lo")
        try:
            yield ()
        finally:
            sh("ip", "-6", "route", "delete", "local", prefix, "dev", "lo")


@contextlib.contextmanager
def slaac_eui64_address() -> Iterator[Options]:
    with host():
        conf("accept_ra", 2)
        sh("sysctl", "-qw", f"net.ipv6.conf.{UPLINK}.stable_secret=2001:db8::5ec")
        conf("addr_gen_mode", 2)
        advertise()
        eventually(lambda: "stable-privacy" in sh("ip", "-6", "address", "show", "dev", UPLINK))
        yield ()


@contextlib.contextmanager
def priority_tags() -> Iterator[Options]:
    with host():
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        with packet_socket(ROUTER, ROUTER_LINK) as packets:
            for _ in range(3):
                packets.send(tagged_solicitation())
        yield ()


def tagged_solicitation() -> bytes:
    """Return the router's solicitation, with priority 6 and VLAN 0."""
    router, mac = parse_address(GATEWAY), parse_mac(ROUTER_MAC)
    untagged = solicit(mac, parse_address(TARGET), source=router, sllao=mac)
    return untagged[:12] + bytes.fromhex("8100c000") + untagged[12:]


@contextlib.contextmanager
def openvz_wrong_source() -> Iterator[Options]:
    with host(), tun("venet0", ARPHRD_VOID):
        ip("link set venet0 up")
        ip("-6 route delete default")
        ip("-6 route add default dev venet0")
        for address in ("2001:db8:5::1", "2001:db8:5::2"):
            ip(f"-6 address add {address}/128 dev venet0")
        yield ("venet0",)


@contextlib.contextmanager
def another_bpf_program() -> Iterator[Options]:
    with host():
        done("attach", UPLINK, "--mode", "tc", "-n", BEHIND)
        with tcx(called="cil_from_netdev"):
            yield ()


@contextlib.contextmanager
def second_lan() -> Iterator[None]:
    """Yield with a second interface, whose other end has no address."""
    with host():
        ip("link add lan0 type veth peer name far")
        conf("disable_ipv6", 1, "far")
        ip("link set lan0 up")
        ip("link set far up")
        try:
            yield
        finally:
            ip("link delete lan0")


@contextlib.contextmanager
def one_prefix_two_links() -> Iterator[Options]:
    with second_lan():
        ip("address add 2001:db8::e/64 dev lan0 nodad")
        yield ()


@contextlib.contextmanager
def hosts_behind_get_no_address() -> Iterator[Options]:
    with second_lan():
        ip("-6 neighbour add fe80::77 lladdr 02:00:00:00:00:77 dev lan0 nud stale")
        yield ()


SYMPTOMS: dict[str, Callable[[], contextlib.AbstractContextManager[Options]]] = {
    made.__name__.replace("_", "-"): made
    for made in (
        drops_after_minutes,
        default_route_disappears,
        default_route_expires,
        one_vps_not_the_other,
        no_forwarding,
        ping_works_from_the_host,
        second_uplink,
        gateway_failed,
        since_ndppd_was_stopped,
        switch_that_snoops,
        firewall_blocks_icmpv6,
        do_i_need_a_responder,
        neighbour_table_overflow,
        anyip_not_reachable,
        slaac_eui64_address,
        priority_tags,
        openvz_wrong_source,
        another_bpf_program,
        one_prefix_two_links,
        hosts_behind_get_no_address,
    )
}
ENGINES = {
    "containers-not-reachable": (BEHIND, TARGET),
    "docker-network-takes-the-prefix": ("2001:db8::/64", None),
}


def blocks(page: Path) -> list[list[str]]:
    """Return doctor's output as the page shows it."""
    found = re.findall(r"^```text\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        [line.strip() for line in block.replace("eth0", UPLINK).splitlines()] for block in found
    ]


def steady(lines: list[str]) -> str:
    """Replace numbers that change each second, with the machine's tables, or with each program."""
    changing = r"\b\d+ s\b|(?<![:.])\b\d{4,}\b(?!:)|(?<=\(id )\d+"
    return re.sub(changing, "N", "\n".join(lines))


def doctor_lines(options: Options) -> list[str]:
    """Return the lines of doctor's output, on UPLINK unless another interface is named."""
    named = bool(options) and not options[0].startswith("-")
    result = ndxdp("doctor", *(options if named else (UPLINK, *options)))
    assert result.err == ""
    return [line.strip() for line in result.out.splitlines()]


def is_on_page(page: str, options: Options) -> None:
    lines = doctor_lines(options)
    assert steady(blocks(PAGES[page])[-1]) in steady(lines), lines


@pytest.mark.parametrize("page", SYMPTOMS)
def test_doctor_reports_the_symptom(privacy: None, page: str) -> None:
    with SYMPTOMS[page]() as options:
        is_on_page(page, options)


@pytest.mark.parametrize("page", ENGINES)
def test_doctor_reports_the_symptom_of_docker(docker_engine: Engine, page: str) -> None:
    with docker(docker_engine, *ENGINES[page]) as options:
        is_on_page(page, options)


def test_every_page_is_provoked_and_listed() -> None:
    assert set(PAGES) == {*SYMPTOMS, *ENGINES}
    index = (FOLDER.parent / "symptoms.md").read_text()
    assert set(re.findall(r"\(symptoms/([\w-]+)\.md\)", index)) == set(PAGES)
    for page in PAGES.values():
        lines = page.read_text().splitlines()
        assert lines[0].startswith("# ")
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (FOLDER / target).exists(), f"{page.name}: {target}"
