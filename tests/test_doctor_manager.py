"""Who configures an interface is told by the state files of each, as they write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from ndxdp.doctor import forwarding, manager
from ndxdp.doctor.manager import Manager
from ndxdp.wire.fib import DefaultRoute

# What systemd 252 writes for a configured interface (sd-network's state, link_save()).
NETWORKD = """\
# This is private data. Do not parse.
ADMIN_STATE=configured
OPER_STATE=routable
CARRIER_STATE=carrier
ADDRESS_STATE=routable
IPV4_ADDRESS_STATE=routable
IPV6_ADDRESS_STATE=routable
IPV6_ONLINE_STATE=online
ONLINE_STATE=online
REQUIRED_FOR_ONLINE=yes
REQUIRED_OPER_STATE_FOR_ONLINE=degraded:routable
REQUIRED_FAMILY_FOR_ONLINE=any
ACTIVATION_POLICY=up
NETWORK_FILE={file}
NETWORK_FILE_DROPINS=""
DNS=
NTP=
SIP=
DOMAINS=
"""

UNMANAGED = """\
# This is private data. Do not parse.
ADMIN_STATE=unmanaged
OPER_STATE=routable
"""

# NetworkManager 1.42, nm_config_device_state_write().
NETWORK_MANAGER = """\
[device]
managed={managed}
perm-hw-addr-fake=52:54:00:12:34:56
connection-uuid=5b7a3c1e-6c1d-4d0e-9a0b-1f2e3d4c5b6a
nm-owned=0
route-metric-default-aspired=100
route-metric-default-effective=100
root-path=
"""

CONNECTION = """\
[connection]
id=Wired
uuid=5b7a3c1e-6c1d-4d0e-9a0b-1f2e3d4c5b6a
type=ethernet
interface-name=eth0

[ipv6]
addr-gen-mode=default
method=manual
"""

CLOUD_INIT = """\
# This file is generated from information provided by the datasource.  Changes
# to it will not persist across an instance reboot.  To disable cloud-init's
# network configuration capabilities, write a file
# /etc/cloud/cloud.cfg.d/99-disable-network-config.cfg with the following:
# network: {config: disabled}
"""

INTERFACES = """\
auto lo
iface lo inet loopback

auto eth0
iface eth0 inet dhcp
iface eth0 inet6 static
    address 2001:db8::2/64
    gateway fe80::1
"""

NETPLAN = """\
network:
    version: 2
    ethernets:
        eth0:
            dhcp4: true
"""

DROP_IN = (
    "mkdir -p /etc/systemd/network/{0}.d && printf '[Network]\\nIPv6AcceptRA=yes\\n' >"
    " /etc/systemd/network/{0}.d/accept-ra.conf"
    " && networkctl reload && networkctl reconfigure eth0"
)
BY_NETPLAN = "netplan set ethernets.eth0.accept-ra=true && netplan apply"
BY_NMCLI = (
    "nmcli connection modify uuid 5b7a3c1e-6c1d-4d0e-9a0b-1f2e3d4c5b6a ipv6.method auto"
    " && nmcli device reapply eth0"
)

STATE = "run/systemd/netif/links/2"
OF_NETPLAN = "/run/systemd/network/10-netplan-eth0.network"
DEVICE = "run/NetworkManager/devices/2"
KEYFILE = "etc/NetworkManager/system-connections/Wired.nmconnection"

CASES: dict[str, tuple[Mapping[str, str], Manager | None]] = {
    "nobody": ({}, None),
    "another interface": ({"run/systemd/netif/links/3": NETWORKD.format(file="/x")}, None),
    "networkd": (
        {STATE: NETWORKD.format(file="/etc/systemd/network/10-eth0.network")},
        Manager(
            "systemd-networkd",
            "/etc/systemd/network/10-eth0.network",
            "",
            DROP_IN.format("10-eth0.network"),
        ),
    ),
    "networkd runs, but leaves it": ({STATE: UNMANAGED}, None),
    "networkd by cloud-init": (
        {
            STATE: NETWORKD.format(file="/etc/systemd/network/10-cloud-init-eth0.network"),
        },
        Manager(
            "systemd-networkd",
            "/etc/systemd/network/10-cloud-init-eth0.network",
            "cloud-init",
            DROP_IN.format("10-cloud-init-eth0.network"),
        ),
    ),
    "netplan": (
        {STATE: NETWORKD.format(file=OF_NETPLAN), "etc/netplan/01.yaml": NETPLAN},
        Manager("systemd-networkd", OF_NETPLAN, "netplan", BY_NETPLAN),
    ),
    "netplan by cloud-init": (
        {
            STATE: NETWORKD.format(file=OF_NETPLAN),
            "etc/netplan/50-cloud-init.yaml": CLOUD_INIT + NETPLAN,
        },
        Manager("systemd-networkd", OF_NETPLAN, "cloud-init through netplan", BY_NETPLAN),
    ),
    "NetworkManager": (
        {DEVICE: NETWORK_MANAGER.format(managed="true"), KEYFILE: CONNECTION},
        Manager("NetworkManager", f"/{KEYFILE}", "", BY_NMCLI),
    ),
    "NetworkManager, file not to be seen": (
        {DEVICE: NETWORK_MANAGER.format(managed="true")},
        Manager("NetworkManager", "", "", BY_NMCLI),
    ),
    "NetworkManager leaves it": ({DEVICE: NETWORK_MANAGER.format(managed="false")}, None),
    "NetworkManager by netplan": (
        {
            DEVICE: NETWORK_MANAGER.format(managed="true"),
            "run/NetworkManager/system-connections/netplan-eth0.nmconnection": CONNECTION,
        },
        Manager(
            "NetworkManager",
            "/run/NetworkManager/system-connections/netplan-eth0.nmconnection",
            "netplan",
            BY_NETPLAN,
        ),
    ),
    "not a state": ({DEVICE: "managed\x00=[["}, None),
    "ifupdown": (
        {"run/network/ifstate": "lo=lo\neth0=eth0\n", "etc/network/interfaces": INTERFACES},
        Manager("ifupdown", "/etc/network/interfaces"),
    ),
    "ifupdown by cloud-init": (
        {
            "run/network/ifstate.eth0": "eth0=eth0\n",
            "etc/network/interfaces": "source /etc/network/interfaces.d/*\n",
            "etc/network/interfaces.d/50-cloud-init": CLOUD_INIT + INTERFACES,
        },
        Manager("ifupdown", "/etc/network/interfaces.d/50-cloud-init", "cloud-init"),
    ),
    "ifupdown, another interface": (
        {"run/network/ifstate": "lo=lo\n", "etc/network/interfaces": INTERFACES},
        None,
    ),
}


@pytest.mark.parametrize(("files", "expected"), CASES.values(), ids=CASES)
def test_manager(tmp_path: Path, files: Mapping[str, str], expected: Manager | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = manager.gather("eth0", 2, tmp_path)
    assert found == expected
    said = [finding.what for finding in manager.judge("eth0", found)]
    if expected is None:
        assert said == []
    else:
        assert len(said) == 1
        assert said[0].startswith(f"{expected.name} configures eth0")
        assert expected.file in said[0]


def test_its_own_command_where_the_sysctl_would_not_hold() -> None:
    """A networkd that takes no advertisements: the kernel's accept_ra is 0, and stays it."""

    def cure(by: Manager | None, routes: tuple[DefaultRoute, ...] = ()) -> list[str]:
        facts = forwarding.Facts(
            "eth0",
            disabled=False,
            all_forwarding=True,
            forwarding=True,
            force_forwarding=False,
            accept_ra=0,
            all_accept_ra=1,
            defrtr=True,
            pinfo=True,
            autoconf=True,
            routes=routes,
            elsewhere=(),
            at_risk=(),
            has_global=True,
            manager=by,
        )
        return [finding.cure for finding in forwarding.judge(facts)]

    assert cure(None) == ["sysctl -w net.ipv6.conf.eth0.accept_ra=2"]
    assert cure(Manager("systemd-networkd", accept_ra="networkctl")) == ["networkctl"]
    # The manager keeps its routes itself.
    assert cure(None, (DefaultRoute(2, bytes(16), by_ra=True, expires=1700),)) == []
