"""Answers of routers to solicitations, and doctor's conclusions."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from lab.capture import packet_socket
from ndxdp.doctor import probe
from ndxdp.rules.address import parse_mac
from ndxdp.rules.prefix import parse_prefix
from tests.fixtures.doctor import bad, conf, findings, follow, found_one, lose, mends
from tests.fixtures.network import (
    BEHIND,
    GATEWAY,
    HOST_LINK_LOCAL,
    NDXDP,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    ROUTER_MAC,
    TARGET,
    UPLINK,
    Network,
    call,
    done,
    eventually,
    ndxdp,
    remove_instance,
    sh,
)
from tests.fixtures.segment import Segment, segment
from tests.test_doctor_arrival import switch_drops

RS = b"\x85"
PROBE = ("--probe", "--watch", "0")
"""Options that probe only; test_doctor_arrival.py tests watching."""
HOPS = 255


def advertisement(*options: Any, hops: int = HOPS, **fields: Any) -> bytes:
    head = Ether(src=ROUTER_MAC, dst="33:33:00:00:00:01")
    packet = head / IPv6(src=ROUTER_LINK_LOCAL, dst="ff02::1", hlim=hops) / ICMPv6ND_RA(**fields)
    for option in options:
        packet = packet / option
    return bytes(packet)


@contextlib.contextmanager
def router(*frames: bytes) -> Iterator[list[bytes]]:
    """Answer each router solicitation with these frames; yield the solicitations."""
    stop = threading.Event()
    solicitations: list[bytes] = []
    with packet_socket(ROUTER, ROUTER_LINK) as packets:
        packets.settimeout(0.05)

        def answer() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    frame = packets.recv(65536)
                    # The router's own kernel may solicit, too.
                    ours = frame[6:12] != parse_mac(ROUTER_MAC)
                    if ours and frame[12:14] == b"\x86\xdd" and frame[54:55] == RS:
                        solicitations.append(frame)
                        for each in frames:
                            packets.send(each)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield solicitations
        finally:
            stop.set()
            thread.join()


@pytest.fixture
def host(net: Network) -> Iterator[Network]:
    conf("forwarding", 1, "all")
    yield net
    conf("forwarding", 0, "all")


def probe_findings() -> list[str]:
    return [each["what"] for each in findings(*PROBE) if each["check"] == "probe"]


def test_a_router_and_its_prefixes(host: Network) -> None:
    frame = advertisement(
        ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC),
        ICMPv6NDOptMTU(mtu=1400),
        ICMPv6NDOptPrefixInfo(prefix="2001:db8::", prefixlen=64, L=1, A=0, validlifetime=7200),
        ICMPv6NDOptPrefixInfo(prefix="2001:db8:5::", prefixlen=64, L=0, A=1),
        routerlifetime=1800,
        M=1,
    )
    done("attach", UPLINK, "--mode", "tc", "-n", BEHIND, "-n", "2001:db8:9::/64")
    try:
        with router(frame) as solicitations:
            found = probe_findings()
        assert len(solicitations) == 1
        assert found == [
            f"the gateway {GATEWAY} answers with {ROUTER_MAC}",
            f"router {ROUTER_LINK_LOCAL}: default for 1800 s, MTU 1400, addresses by DHCPv6",
            f"router {ROUTER_LINK_LOCAL}: 2001:db8::/64 on-link, for 7200 s",
            f"router {ROUTER_LINK_LOCAL}: 2001:db8:5::/64 not on-link, autonomous, for ever",
            f"{BEHIND} is in 2001:db8::/64, which is on-link: the router solicits",
            "2001:db8:9::/64 is in no advertised on-link prefix: if it is routed to this host,"
            " no responder is needed",
        ]
        assert bad(*PROBE) == []
    finally:
        remove_instance()


def test_solicitations_are_as_rfc_4861_wants_them(host: Network) -> None:
    with router(advertisement(routerlifetime=0)) as solicitations:
        assert f"router {ROUTER_LINK_LOCAL}: not a default router" in probe_findings()
    (frame,) = solicitations
    packet = Ether(frame)
    assert (packet[IPv6].src, packet[IPv6].dst) == (HOST_LINK_LOCAL, "ff02::2")
    assert packet[IPv6].hlim == HOPS
    assert frame[62:64] == b"\x01\x01"  # SLLAO
    assert frame[64:70] == frame[6:12]


def test_no_router_answers(host: Network) -> None:
    sh("ip", "-6", "route", "replace", "default", "via", "2001:db8::77", "dev", UPLINK)
    with router() as solicitations:
        found = probe_findings()
    assert found == [
        "the gateway 2001:db8::77 answered none of 3 solicitations",
        f"no router answered 3 solicitations on {UPLINK}",
    ]
    assert len(solicitations) == 3


def test_the_wrong_gateway(host: Network) -> None:
    sh("ip", "-6", "route", "replace", "default", "via", "2001:db8::77", "dev", UPLINK)

    def findings_of_loss() -> list[dict[str, str]]:
        # Where the kernel's table, one for all namespaces, is full, it forgets a failed entry.
        lose("2001:db8::77")
        return bad(*PROBE)

    with router():
        (found,) = eventually(findings_of_loss, within=60)
        assert found["check"] == "gateway"
        assert found["what"].startswith("the gateway 2001:db8::77 does not answer")
        assert "compare the gateway and the link with your provider's instructions" in found["why"]
    with router(advertisement(routerlifetime=1800)):
        (found,) = eventually(findings_of_loss, within=60)
        assert found["cure"] == (
            f"ip -6 route replace default via {ROUTER_LINK_LOCAL} dev {UPLINK}"
        )
        follow(found["cure"])
        assert bad(*PROBE) == []
    sh("ping", "-c1", "-W2", GATEWAY)


@pytest.fixture
def behind_a_switch(privacy: None) -> Iterator[Segment]:
    with segment() as made:
        made.behind(TARGET)
        yield made
        remove_instance()


def test_a_gateway_that_answers_containers_only(behind_a_switch: Segment) -> None:
    """Recommend a source if the gateway ignores the host's addresses, which the switch drops."""
    switch_drops(f"ip6 saddr != {BEHIND}")
    done("attach", UPLINK, "--mode", "tc", "-n", TARGET)
    lose(GATEWAY)
    found = found_one("gateway", f"the gateway {GATEWAY} does not answer", *PROBE)
    follow(found["cure"])
    assert bad() == []
    assert found["why"].startswith(
        f"the gateway answers {TARGET}, but ignores the address from which the kernel"
    )
    assert f'source = "{TARGET}"' in found["why"]
    assert behind_a_switch.entry()[1] == ROUTER_MAC


def test_a_gateway_that_answers_again(host: Network) -> None:
    """Recommend to write a neighbour entry that the kernel gave up, once the gateway answers."""
    sh("nft", "add table inet guard; add chain inet guard c { type filter hook input priority 0; }")
    sh("nft", "add rule inet guard c icmpv6 type nd-neighbor-advert drop")
    lose(GATEWAY)
    sh("nft", "flush", "ruleset")
    with router():
        found = mends("gateway", f"the gateway {GATEWAY} does not answer", *PROBE)
    assert f"lladdr {ROUTER_MAC}" in found["cure"]


def test_a_remote_sender_is_no_router(host: Network) -> None:
    with router(advertisement(routerlifetime=1800, hops=254)):
        assert f"no router answered 3 solicitations on {UPLINK}" in probe_findings()


def test_without_the_capability(host: Network) -> None:
    without = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    result = call(*without, "python3", "-c", "import socket; socket.socket(10, 3, 58)")
    assert result.code == 1  # the process has no such capability
    result = call(*without, *NDXDP, "doctor", UPLINK, "--json", "--probe")
    found = json.loads(result.out)["interfaces"][0]["findings"]
    whats = [each["what"] for each in found if each["check"] == "probe"]
    assert whats == ["cannot solicit routers: Operation not permitted"]


def test_without_probe_nothing_is_sent(host: Network) -> None:
    with router() as solicitations:
        assert ndxdp("doctor", UPLINK).code == 0
    assert solicitations == []


HEAD = bytes((134, 0, 0, 0, 64, 0x40)) + (1800).to_bytes(2, "big") + bytes(8)


@pytest.mark.parametrize(
    "options", [b"\x05", b"\x05\x00", b"\x05\x02" + bytes(6), b"\x03\x04" + bytes(29)]
)
def test_a_broken_advertisement(options: bytes) -> None:
    with pytest.raises(ValueError, match="malformed option"):
        probe.parse("fe80::1", HEAD + options)


def test_an_advertisement() -> None:
    prefix = b"\x03\x04\x38\x80" + b"\xff" * 4 + bytes(8) + parse_prefix("2001:db8:aa::/56").address
    parsed = probe.parse("fe80::1", HEAD + b"\x63\x01" + bytes(6) + prefix)
    assert parsed == probe.Router(
        "fe80::1",
        1800,
        managed=False,
        other=True,
        mtu=0,
        prefixes=(probe.Offered(parse_prefix("2001:db8:aa::/56"), True, False, 0xFFFFFFFF, 0),),
    )
