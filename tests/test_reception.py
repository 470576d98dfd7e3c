"""Reception of solicitations: ndxdp restores settings that are switched off while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.ndp.address import solicited_node_group
from ndxdp.rules.address import parse_address
from tests.fixtures.network import (
    BEHIND,
    TARGET,
    UPLINK,
    Network,
    Running,
    allmulti_count,
    done,
    eventually,
    has_allmulti,
    link_state,
    ndxdp,
    sh,
)
from tests.fixtures.segment import Segment
from tests.test_membership import kernel_groups

NDPPD = f"""
proxy {UPLINK} {{
  rule 2001:db8:0:0:f::/80 {{
    static
  }}
}}
"""


@contextlib.contextmanager
def ndppd(tmp_path: Path) -> Iterator[None]:
    """Run ndppd on the uplink: it sets allmulti, and restores the old value at its end."""
    file = tmp_path / "ndppd.conf"
    file.write_text(NDPPD)
    process = subprocess.Popen(["ndppd", "-c", str(file)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: has_allmulti() or process.poll() is not None)
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(10)


def configured(tmp_path: Path, interface: str = UPLINK) -> str:
    path = tmp_path / "ndxdp.toml"
    path.write_text(
        f'[[interface]]\nname = "{interface}"\n[[interface.prefix]]\nprefix = "{BEHIND}"\n'
    )
    return str(path)


def kept(net: Network, tmp_path: Path, how: str) -> Running:
    if how == "config":
        return net.run("-c", configured(tmp_path))
    return net.run("-i", UPLINK, "-n", BEHIND, *(("--keep",) if how == "keep" else ()))


@pytest.mark.parametrize("how", ["config", "keep"])
@pytest.mark.parametrize("first", ["ndppd", "ndxdp"])
def test_ndppd_ends_beside_it(net: Network, tmp_path: Path, how: str, first: str) -> None:
    with contextlib.ExitStack() as stack:
        if first == "ndppd":
            stack.enter_context(ndppd(tmp_path))
        run = kept(net, tmp_path, how)
        if first == "ndxdp":
            stack.enter_context(ndppd(tmp_path))
        assert has_allmulti()
        stack.close()
    eventually(has_allmulti)
    assert run.end()[0] == 0
    assert has_allmulti(), "the program still runs"
    assert net.answers()
    done("detach", UPLINK)
    assert allmulti_count() == 0


@pytest.mark.parametrize("how", ["config", "keep", "run"])
def test_allmulti_is_switched_off(net: Network, tmp_path: Path, how: str) -> None:
    """Switch allmulti on again each time, without a gap, and warn once."""
    run = kept(net, tmp_path, how)
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")
    eventually(lambda: has_allmulti() or how == "run")
    for _ in range(20):
        sh("ip", "link", "set", UPLINK, "allmulticast", "off")
        assert allmulti_count() >= 1
        time.sleep(0.02)
    assert net.answers()
    ended = run.end()
    assert ended.code == 0
    lines = [
        line for line in ended.err.splitlines() if "another process switched off allmulti" in line
    ]
    assert len(lines) == (0 if how == "run" else 1), ended.err
    assert has_allmulti() is (how != "run"), "allmulti stays on for the remaining program"
    ndxdp("-q", "detach", UPLINK)
    assert allmulti_count() == 0


def test_attaching_again_switches_it_on(net: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    sh("ip", "link", "set", UPLINK, "allmulticast", "off")
    done("attach", UPLINK)
    assert has_allmulti()
    done("detach", UPLINK)
    assert allmulti_count() == 0


def test_bridge_that_snoops_again(net: Network, tmp_path: Path) -> None:
    bridge = "br7"
    sh("ip", "link", "add", bridge, "type", "bridge", "mcast_snooping", "1")
    sh("ip", "link", "set", bridge, "up")

    def router() -> int:
        found: int = link_state(bridge)["linkinfo"]["info_data"]["mcast_router"]
        return found

    try:
        run = net.run("-c", configured(tmp_path, bridge))
        assert router() == 2
        sh("ip", "link", "set", bridge, "type", "bridge", "mcast_router", "1")
        eventually(lambda: router() == 2)
        ended = run.end()
        assert ended.code == 0
        assert ended.err.count("another process switched off mcast_router 2") == 1
        done("detach", bridge)
        assert router() == 1
    finally:
        sh("ip", "link", "delete", bridge)


def test_groups_after_an_mtu_that_is_too_small_for_ipv6(wired: Segment, tmp_path: Path) -> None:
    """Join the groups again, which the kernel forgets with such an MTU."""
    group = solicited_node_group(parse_address(TARGET))
    run = Running(("-i", UPLINK, "-n", TARGET))
    try:
        eventually(lambda: group in kernel_groups())
        for _ in range(2):
            sh("ip", "link", "set", UPLINK, "mtu", "1279")
            eventually(lambda: group not in kernel_groups())
            time.sleep(0.3)
            sh("ip", "link", "set", UPLINK, "mtu", "1500")
            sh("ip", "-6", "address", "add", "2001:db8::2/64", "dev", UPLINK, "nodad")
            eventually(lambda: group in kernel_groups())
        assert run.end()[0] == 0
    finally:
        run.close()
