"""`auto` where VLAN tags do not reach XDP, and on VLAN interfaces and bonds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import links, vlan_offload
from ndxdp.session import modes
from tests.fixtures import features, network
from tests.fixtures.auto import CANNOT, Tap, needs, steps_down, tapped, without_driver
from tests.fixtures.network import (
    BEHIND,
    HOST,
    HOST_MAC,
    ROUTER,
    ROUTER_LINK,
    ROUTER_LINK_LOCAL,
    TARGET,
    UPLINK,
    Network,
    call,
    counts,
    done,
    eventually,
    leftovers,
    ndxdp,
    sh,
    status,
)
from tests.test_bad_input import refused

VLAN, VLAN_ID = f"{UPLINK}.100", 100
ROUTER_VLAN = f"{ROUTER_LINK}.100"

# ---- a tap, which runs XDP in its driver ---------------------------------------------------------


@pytest.fixture(params=["blocking", "nonblocking"])
def tap(net: Network, request: pytest.FixtureRequest) -> Iterator[Tap]:
    with tapped(request.param == "blocking") as made:
        yield made


# ---- VLAN tags that XDP does not see -------------------------------------------------------------


# As net/8021q/vlanproc.c prints it.
_VLAN_CONFIG = """\
VLAN Dev name	 | VLAN ID
Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD
eth0.100       | 100  | eth0
guests         | 7  | eth0
eth0.100.5     | 5  | eth0.100
eth01.3        | 3  | eth01
"""


@pytest.mark.parametrize(
    ("parent", "found"),
    [
        ("eth0", ["eth0.100", "guests"]),
        ("eth0.100", ["eth0.100.5"]),
        ("eth01", ["eth01.3"]),
        ("eth", []),
        ("guests", []),
    ],
)
def test_vlans_on(tmp_path: Path, parent: str, found: list[str]) -> None:
    config = tmp_path / "config"
    config.write_text(_VLAN_CONFIG)
    assert vlan_offload.vlans_on(parent, config) == found


def test_vlans_of_a_kernel_without_them(tmp_path: Path) -> None:
    assert vlan_offload.vlans_on("eth0", tmp_path / "config") == []


def test_strips_tags(net: Network) -> None:
    for setting in ("off", "on", "off"):
        sh("ethtool", "-K", UPLINK, "rxvlan", setting)
        assert vlan_offload.strips_tags(UPLINK) is (setting == "on")
    assert vlan_offload.strips_tags("lo") is False
    assert vlan_offload.strips_tags("nowhere0") is False
    assert vlan_offload.hidden_vlans(UPLINK, "") == []


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["", "veth"])
def test_hidden_vlans_rule_xdp_out(monkeypatch: pytest.MonkeyPatch, named: bool, kind: str) -> None:
    """Refuse XDP, even on request, if its answers to VLAN solicitations would lack the tag."""
    monkeypatch.setattr(vlan_offload, "hidden_vlans", lambda name, kind: [f"{name}.100", "…"])
    link = links.Link(7, "eth0", bytes(6), kind, True, True, False)
    for mode in (Mode.NATIVE, Mode.GENERIC):
        with pytest.raises(ModeUnavailable) as caught:
            modes.check(link, mode, named=named)
        assert "eth0.100" in caught.value.message
        # A veth receives such frames with any setting.
        assert ("ethtool -K eth0 rxvlan off" in caught.value.hint) == (kind != "veth")
        assert "tc" in caught.value.hint
    modes.check(link, Mode.TC, named=named)


# ---- real VLAN interfaces and bonds, where the kernel has them -----------------------------------


@pytest.fixture
def vlan(net: Network) -> Iterator[Network]:
    """Create a VLAN on the link, with an interface at either end; the router's has addresses."""
    needs("link", UPLINK, "type", "vlan", "id", "5")
    commands = f"""
        link add link {UPLINK} name {VLAN} type vlan id {VLAN_ID}
        link set {VLAN} addrgenmode none up
    """
    sh("ip", "-6", "-batch", "-", stdin=commands)
    far = f"""
        link add link {ROUTER_LINK} name {ROUTER_VLAN} type vlan id {VLAN_ID}
        link set {ROUTER_VLAN} addrgenmode none up
        address add {ROUTER_LINK_LOCAL}/64 dev {ROUTER_VLAN} nodad
    """
    sh("nsenter", f"--net=/run/netns/{ROUTER}", "ip", "-6", "-batch", "-", stdin=far)
    yield net
    assert leftovers(VLAN) == []


def test_hidden_vlan(vlan: Network) -> None:
    vlan.pass_at_router()  # so that answers of native mode would arrive
    sh("ethtool", "-K", UPLINK, "rxvlan", "on")
    assert vlan_offload.hidden_vlans(UPLINK, "") == [VLAN]
    hidden = f"{UPLINK} takes the VLAN tags off before XDP sees them, and has {VLAN} on top"

    for mode in ("native", "generic"):
        for words in (("attach", UPLINK), ("run", "-i", UPLINK)):
            refusal = ndxdp(*words, "--mode", mode, "-n", BEHIND)
            refused(refusal, CANNOT, hidden)
            assert leftovers() == []
    done("attach", UPLINK, "-n", BEHIND)
    assert (status()["mode"], steps_down()) == ("tc", {"native": hidden})
    assert vlan.answers()
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    assert counts() == {"answered": 1}
    done("detach", UPLINK)


def test_tags_that_stay_in_the_frames_hide_nothing(vlan: Network) -> None:
    sh("ethtool", "-K", UPLINK, "rxvlan", "off")
    assert vlan_offload.hidden_vlans(UPLINK, "") == []
    assert vlan_offload.hidden_vlans(UPLINK, "veth") == [VLAN], "its peer may keep them outside"


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_vlan_that_comes_later(net: Network, mode: str) -> None:
    """Warn in `status` if a VLAN that makes the attached mode wrong is created later."""
    needs("link", UPLINK, "type", "vlan", "id", str(VLAN_ID))
    net.pass_at_router()
    assert ndxdp("attach", UPLINK, "--mode", mode, "-n", BEHIND).code == 0
    assert status()["warnings"] == []
    sh("ip", "link", "add", "link", UPLINK, "name", VLAN, "type", "vlan", "id", str(VLAN_ID))
    (warning,) = status()["warnings"]
    assert VLAN in warning
    assert "tc" in warning
    assert any("  WARNING   " in line for line in done("status").splitlines())
    done("detach", UPLINK)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_tags_that_a_veths_peer_keeps_outside(vlan: Network, mode: str) -> None:
    """Answer no VLAN solicitation untagged, even if the veth's peer hides the tags from XDP."""
    vlan.pass_at_router()
    sh("ethtool", "-K", UPLINK, "rxvlan", "off")
    assert vlan.at_router("ethtool", "-K", ROUTER_LINK, "txvlan", "on").code == 0
    attached = ndxdp("attach", UPLINK, "--mode", mode, "-n", BEHIND).code == 0
    answer = vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3)
    if attached:
        answered = counts().get("answered", 0)
        done("detach", UPLINK)
        assert (answer, answered) == (None, 0)


@features.needs("xdp")
def test_vlan_on_a_tap(net: Network, tap: Tap) -> None:
    """Choose native mode on a tap, whose driver keeps tags in frames; ignore tagged frames."""
    name = f"{Tap.name}.100"
    needs("link", Tap.name, "type", "vlan", "id", "5")
    sh("ip", "link", "add", "link", Tap.name, "name", name, "type", "vlan", "id", "100")
    sh("ip", "link", "set", name, "addrgenmode", "none", "up")
    assert not vlan_offload.strips_tags(Tap.name)
    done("attach", Tap.name, "-n", BEHIND)
    assert (status(Tap.name)["mode"], steps_down(Tap.name)) == ("native", {})
    assert tap.ask(TARGET) == (HOST_MAC, TARGET)
    assert tap.ask(TARGET, tag=bytes.fromhex("81000064"), wait=0.3) is None
    done("detach", Tap.name)


@pytest.mark.parametrize("mode", ["auto", "userspace"])
@pytest.mark.parametrize("rxvlan", ["on", "off"])
def test_vlan_interface(vlan: Network, mode: str, rxvlan: str) -> None:
    """Answer the VLAN's solicitations, tagged, on the VLAN's own interface."""
    sh("ethtool", "-K", UPLINK, "rxvlan", rxvlan)
    run = vlan.run("-i", VLAN, "--mode", mode, "-n", BEHIND)
    assert vlan.ask(TARGET, link=ROUTER_VLAN) == (HOST_MAC, TARGET)
    assert vlan.silent()  # without a tag
    shown = status(VLAN)
    assert shown["reasons"]["answered"] == sum(shown["reasons"].values()) == 1
    if mode == "auto":
        assert shown["mode"] == "tc"
        assert list(steps_down(VLAN)) == ["native"]
        assert steps_down(VLAN)["native"].startswith(without_driver(VLAN))
    assert run.end() == (0, "", "")


@pytest.mark.parametrize("mode", ["tc", "userspace"])
@pytest.mark.parametrize("rxvlan", ["on", "off"])
def test_tagged_solicitations_are_left_alone(vlan: Network, mode: str, rxvlan: str) -> None:
    """Ignore tagged solicitations on the parent: they belong to the VLAN's interface."""
    sh("ethtool", "-K", UPLINK, "rxvlan", rxvlan)
    run = vlan.run("-i", UPLINK, "--mode", mode, "-n", BEHIND)
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    assert vlan.answers()
    assert vlan.ask(TARGET, link=ROUTER_VLAN, wait=0.3) is None
    shown = status()["reasons"]
    assert shown["answered"] == sum(shown.values()) == 1
    assert run.end() == (0, "", "")


def test_vlan_and_parent_side_by_side(vlan: Network) -> None:
    done("attach", UPLINK, "-n", BEHIND)
    run = vlan.run("-i", VLAN, "-n", BEHIND)
    with vlan.advertisements() as frames:
        assert vlan.answers()
        assert vlan.ask(TARGET, link=ROUTER_VLAN) == (HOST_MAC, TARGET)
    assert len(frames) == 2
    for name in (UPLINK, VLAN):
        assert status(name)["reasons"]["answered"] == 1
    assert run.end() == (0, "", "")
    done("detach", UPLINK)


@pytest.fixture
def bond(net: Network) -> Iterator[str]:
    """Create a bond with the uplink as its only member, whose MAC it has."""
    name = "bond7"
    needs("type", "bond")
    commands = f"""
        link set {UPLINK} down
        link add {name} type bond mode active-backup miimon 10
        link set {UPLINK} master {name}
        link set {name} addrgenmode none up
        address add {HOST}/64 dev {name} nodad
    """
    try:
        sh("ip", "-6", "-batch", "-", stdin=commands)
        eventually(lambda: "LOWER_UP" in network.link_state(name)["flags"])
        yield name
        assert leftovers(name) == []
    finally:
        call("ip", "link", "delete", name)


def test_bond(net: Network, bond: str) -> None:
    """Choose tc on a bond: native answers would be lost unless each member runs XDP."""
    done("attach", bond, "-n", BEHIND)
    assert (status(bond)["mode"], steps_down(bond)) == (
        "tc",
        {"native": "XDP on a bond depends on each of its members"},
    )
    assert net.answers()
    done("detach", bond)


def test_bond_from_userspace(net: Network, bond: str) -> None:
    run = net.run("-i", bond, "--mode", "userspace", "-n", BEHIND, "-n", HOST)
    assert net.answers()
    assert net.ask(HOST) == (HOST_MAC, HOST)  # answered by the kernel
    assert status(bond)["reasons"]["denied"] == 1
    assert run.end() == (0, "", "")
