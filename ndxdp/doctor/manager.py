"""The program that configures an interface, and its command where a sysctl would not last.

The state below /run shows which program manages an interface; an installed one may not.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor.finding import Finding, note


@dataclass(frozen=True, slots=True)
class Manager:
    """Program that configures an interface.

    Attributes:
        name: The name of the program.
        file: The file with the interface's configuration; "" if not known.
        above: The program that wrote the file (netplan, cloud-init); "" for the administrator.
        accept_ra: The command that makes it accept router advertisements; "" where the kernel's
            sysctl decides.
    """

    name: str
    file: str = ""
    above: str = ""
    accept_ra: str = ""


def gather(interface: str, ifindex: int, root: Path = Path("/")) -> Manager | None:
    """Find the program that configures an interface; None if there is none.

    Args:
        interface: The name of the interface.
        ifindex: Its index.
        root: The root of the file system to read.
    """
    return (
        _networkd(interface, ifindex, root)
        or _network_manager(interface, ifindex, root)
        or _ifupdown(interface, root)
    )


def judge(interface: str, manager: Manager | None) -> list[Finding]:
    """Return a note about the program that configures the interface; none if there is none."""
    if manager is None:
        return []
    written = f", written by {manager.above}" if manager.above else ""
    where = f" ({manager.file}{written})" if manager.file else ""
    return [note(f"{manager.name} configures {interface}{where}: make lasting changes there")]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _cloud_init(path: str, text: str) -> bool:
    return "cloud-init" in Path(path).name or "cloud-init" in text


def _netplan(interface: str, root: Path) -> str:
    """Return `netplan`, or `cloud-init through netplan`."""
    files = sorted(root.glob("etc/netplan/*.yaml"))
    texts = {str(file.relative_to(root)): _read(file) for file in files}
    mine = {path: text for path, text in texts.items() if interface in text}
    if any(_cloud_init(path, text) for path, text in mine.items()):
        return "cloud-init through netplan"
    return "netplan"


def _netplan_cure(interface: str) -> str:
    return f"netplan set ethernets.{interface}.accept-ra=true && netplan apply"


def _networkd(interface: str, ifindex: int, root: Path) -> Manager | None:
    """Return systemd-networkd if its state has `NETWORK_FILE=` for the interface (sd-network)."""
    state = _read(root / "run/systemd/netif/links" / str(ifindex))
    fields = dict(line.split("=", 1) for line in state.splitlines() if "=" in line)
    file = fields.get("NETWORK_FILE", "")
    if not file or fields.get("ADMIN_STATE") in ("unmanaged", None):
        return None
    if Path(file).name.startswith("10-netplan-"):
        above = _netplan(interface, root)
        return Manager("systemd-networkd", file, above, _netplan_cure(interface))
    above = "cloud-init" if _cloud_init(file, _read(root / file.lstrip("/"))) else ""
    # A drop-in in /etc applies wherever the file itself is (systemd.network(5)).
    folder = f"/etc/systemd/network/{Path(file).name}.d"
    cure = (
        f"mkdir -p {folder} && printf '[Network]\\nIPv6AcceptRA=yes\\n' > {folder}/accept-ra.conf"
        f" && networkctl reload && networkctl reconfigure {interface}"
    )
    return Manager("systemd-networkd", file, above, cure)


def _network_manager(interface: str, ifindex: int, root: Path) -> Manager | None:
    """Return NetworkManager if its state of the device has `managed`, with its connection's file.

    The state has the UUID of the connection.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_read(root / "run/NetworkManager/devices" / str(ifindex)))
    except configparser.Error:
        return None
    if parser.get("device", "managed", fallback="") != "true":
        return None
    uuid = parser.get("device", "connection-uuid", fallback="")
    cure = (
        f"nmcli connection modify uuid {uuid} ipv6.method auto && nmcli device reapply {interface}"
        if uuid
        else ""
    )
    for folder in (
        "etc/NetworkManager/system-connections",
        "run/NetworkManager/system-connections",
    ):
        for file in sorted(root.glob(f"{folder}/*")):
            if uuid and _is_connection(_read(file), uuid, interface):
                path = f"/{file.relative_to(root)}"
                if file.name.startswith("netplan-"):
                    above = _netplan(interface, root)
                    return Manager("NetworkManager", path, above, _netplan_cure(interface))
                above = "cloud-init" if _cloud_init(path, _read(file)) else ""
                return Manager("NetworkManager", path, above, cure)
    return Manager("NetworkManager", accept_ra=cure)


def _is_connection(text: str, uuid: str, interface: str) -> bool:
    """Return whether a keyfile is the connection with a UUID.

    NetworkManager derives the UUID of a keyfile without one, as netplan writes it, from its name.
    """
    if "\nuuid=" in text:
        return f"\nuuid={uuid}\n" in text
    return f"\ninterface-name={interface}\n" in text


def _ifupdown(interface: str, root: Path) -> Manager | None:
    """Return ifupdown if `ifup` brought the interface up, which it notes as `eth0=eth0`."""
    states = [_read(root / "run/network/ifstate"), _read(root / f"run/network/ifstate.{interface}")]
    lines = [line.strip() for state in states for line in state.splitlines()]
    if not any(line.partition("=")[0] == interface for line in lines):
        return None
    files = [root / "etc/network/interfaces", *sorted(root.glob("etc/network/interfaces.d/*"))]
    stanza = re.compile(rf"^\s*iface\s+{re.escape(interface)}\s+inet6\b", re.MULTILINE)
    for file in files:
        text = _read(file)
        if stanza.search(text):
            path = f"/{file.relative_to(root)}"
            return Manager("ifupdown", path, "cloud-init" if _cloud_init(path, text) else "")
    return Manager("ifupdown")
