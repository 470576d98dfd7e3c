"""The virtio-net driver of virtual servers: `auto`, and each mode.

For the virtual machine of lab/vm.py: only it has such NICs. `make test-kernels` runs these tests on
each kernel. eth0 becomes this host's NIC, eth1 the router's; a hub joins them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest

from ndxdp.kernel import bpf_programs
from tests.fixtures import network
from tests.fixtures.network import (
    BEHIND,
    HOST,
    HOST_LINK_LOCAL,
    ROUTER,
    ROUTER_LINK_LOCAL,
    TARGET,
    Network,
    call,
    done,
    eventually,
    leftovers,
    ndxdp,
    sh,
    status,
)
from tests.test_bad_input import refused

NIC, NIC_MAC, FAR = "eth0", "02:00:00:00:ee:01", "eth1"
OUTSIDE = os.environ.get("NDXDP_VM_NETNS", "only in the virtual machine")


@pytest.fixture
def nic(net: Network) -> Iterator[Network]:
    """Yield the two NICs, up, with addresses."""
    for name in (NIC, FAR):
        sh("nsenter", f"--net={OUTSIDE}", "ip", "link", "set", name, "netns", str(os.getpid()))
    near = f"""
        link set {NIC} addrgenmode none up
        address add {HOST_LINK_LOCAL}/64 dev {NIC} nodad
        address add {HOST}/64 dev {NIC} nodad
    """
    far = f"""
        link set {FAR} addrgenmode none up
        address add {ROUTER_LINK_LOCAL}/64 dev {FAR} nodad
    """
    try:
        sh("ip", "link", "set", FAR, "netns", ROUTER)
        sh("ip", "-6", "-batch", "-", stdin=near)
        sh("nsenter", f"--net=/run/netns/{ROUTER}", "ip", "-6", "-batch", "-", stdin=far)
        eventually(lambda: "LOWER_UP" in network.link_state(NIC)["flags"])
        yield net
        assert leftovers(NIC) == []
    finally:
        net.at_router("ip", "link", "set", FAR, "netns", OUTSIDE)
        for name in (NIC, FAR):
            call("ip", "link", "set", name, "netns", OUTSIDE)


def answers(nic: Network, mac: str = NIC_MAC) -> bool:
    return nic.ask(TARGET, link=FAR) == (mac, TARGET)


def test_driver(nic: Network) -> None:
    output = sh("ethtool", "-i", NIC)
    assert re.match(r"driver: virtio_net$", output, re.MULTILINE), output


def test_auto(nic: Network, record_property: Callable[[str, object], None]) -> None:
    """Answer on the NIC, and give the kernel's own reason for each refused mode in `status`."""
    done("attach", NIC, "-n", BEHIND)
    shown = status(NIC)
    record_property("auto", shown["mode"])
    for step in shown["steps_down"]:
        record_property("not", f"{step['mode']}: {step['why']}")
    assert answers(nic)
    assert shown["mode"] in ("native", "tc")
    assert [step["mode"] for step in shown["steps_down"]] == (
        [] if shown["mode"] == "native" else ["native"]
    )
    assert status(NIC)["reasons"]["answered"] == 1
    with nic.solicited_continuously(link=FAR) as missed:
        done("attach", NIC)  # a renewal, which loses no answer
    assert missed == []
    done("detach", NIC)
    assert nic.ask(TARGET, link=FAR, wait=0.3) is None


@pytest.mark.parametrize("mode", ["native", "generic", "tc", "userspace"])
def test_mode(nic: Network, mode: str, record_property: Callable[[str, object], None]) -> None:
    """Answer in each mode, and leave nothing behind."""
    run = nic.run(NIC, "--mode", mode, "-n", BEHIND)
    record_property("mode", mode)
    assert answers(nic)
    assert run.end().code == 0


@pytest.mark.parametrize("mode", ["native", "generic"], ids=["driver", "skb"])
def test_a_kernel_without_xdp_fragments(nic: Network, mode: str) -> None:
    """Refuse XDP on a kernel without fragments in XDP, and name the kernel that introduced them."""
    result = ndxdp("attach", NIC, "--mode", mode, "-n", BEHIND)
    if bpf_programs.xdp_has_frags():
        assert result == (0, "", "")
        done("detach", NIC)
    else:
        refused(result, 1, "the kernel has no XDP for frames in several pieces", "5.18")
