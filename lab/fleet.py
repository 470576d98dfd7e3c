"""The lab's network for shared addresses: hosts with ndxdp on one segment, and a cluster of etcd.

    router ---- [ segment ] ---- eth0  h1  mgmt0 ---- [ management ] ---- m1
                    |                                      | | |
                    +----------- eth0  h2  mgmt0 ----------+ | +--------- m2
                    |                                        |
                    +----------- eth0  h3  mgmt0 ------------+

For the router, 2001:db8:1::/64 is on-link. Every host takes packets to all shared addresses, as
hosts of a service do: the router reaches an address at the host whose MAC it has. `m1` and so on
are members of etcd. The lab itself has an address on the management network, for its requests.

Each host has a BPF file system and a run directory of its own, because pins have the names of
interfaces only, and all uplinks are `eth0`.

`Fleet` takes the names of its namespaces in /run/netns for itself, so run it in namespaces of its
own: `lab.private`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from lab.commands import run_command
from lab.etcd_nodes import EtcdNode, EtcdNodes
from lab.fleet_host import PATIENT, READY_WITHIN, SWITCH, FleetHost, at_switch
from lab.nodes import KERNEL_WITHIN, LINK, LabNetwork, Node, wait_until
from lab.programs import build_xdp_pass

ROUTER = "router"
SEGMENT = "lan"
"""The name of the segment in etcd."""
MANAGEMENT = "mgmt0"
"""The interface of the management network, at hosts, at members, and here."""

SHARED = IPv6Network("2001:db8:1:0:c::/80")
"""The prefix of the shared addresses."""
GATEWAY = IPv6Address("2001:db8:1::1")
ROUTER_MAC = "02:00:00:00:00:01"

KEYS = "/ndxdp/v1/"
"""The beginning of all keys."""

_LAB_ADDRESS = "10.0.0.1"


def shared_address(number: int) -> str:
    """Return one of the shared addresses; `number` counts from 1."""
    return str(SHARED[number])


def shared_name(number: int) -> str:
    """Return the name of a shared address in etcd."""
    return f"a{number:02}"


class Fleet(LabNetwork):
    """The network, from construction until `close` (or the end of `with`).

    Raises LabError after undoing a partial build.

    Attributes:
        router: The router.
        hosts: The hosts.
        etcd: The cluster.
    """

    def __init__(
        self, ndxdp: Sequence[str], *, hosts: int = 3, members: int = 3, native: bool = False
    ) -> None:
        """Build the network, and start etcd; no daemon yet.

        Args:
            ndxdp: The command that starts ndxdp.
            hosts: The number of hosts.
            members: The number of members of etcd.
            native: Let the switch's ports of the hosts run a program, without which native XDP at
                the hosts can send nothing.
        """
        super().__init__()
        try:
            folder = Path(self._exits.enter_context(tempfile.TemporaryDirectory()))
            for name in (SWITCH, ROUTER):
                self._add_namespace(name)
            Node(SWITCH).sysctl("all.disable_ipv6=1", "default.disable_ipv6=1")
            Node(SWITCH).ip(
                "link add segment type bridge\nlink add management type bridge\n"
                "link set segment up\nlink set management up"
            )
            self.router = Node(ROUTER, ROUTER_MAC)
            self._connect(ROUTER, "segment", "to-router", LINK, ROUTER_MAC)
            self.router.ip(f"link set {LINK} up\naddress add {GATEWAY}/64 dev {LINK}")
            self._connect_lab()
            names = [f"m{number}" for number in range(1, members + 1)]
            self.etcd = EtcdNodes(
                [EtcdNode(name, f"10.0.0.{10 + n}", folder) for n, name in enumerate(names, 1)]
            )
            for member in self.etcd.members:
                self._add_namespace(member.name)
                self._connect_management(member.name, member.address)
            self._exits.callback(self.etcd.kill)
            self.hosts = [FleetHost(number, folder, ndxdp) for number in range(1, hosts + 1)]
            for host in self.hosts:
                self._add_host(host, native)
            self.etcd.start()
            for node in (self.router, *self.hosts):
                self._wait_for_carrier(node)
        except BaseException:
            self.close()
            raise

    def _add_namespace(self, name: str) -> None:
        super()._add_namespace(name)
        Node(name).sysctl("all.accept_dad=0", "default.accept_dad=0", "default.accept_ra=0")
        Node(name).ip("link set lo up")

    def _connect(self, name: str, bridge: str, port: str, link: str, mac: str = "") -> None:
        address = f"address {mac} " if mac else ""
        Node(SWITCH).ip(
            f"link add {port} type veth peer name {link} {address}netns {name}\n"
            f"link set {port} master {bridge} up"
        )

    def _connect_management(self, name: str, address: str) -> None:
        self._connect(name, "management", f"mg-{name}", MANAGEMENT)
        Node(name).run("ip", "address", "add", f"{address}/24", "dev", MANAGEMENT)
        Node(name).run("ip", "link", "set", MANAGEMENT, "up")

    def _connect_lab(self) -> None:
        """Give the lab itself an address on the management network."""
        run_command(["ip", "link", "add", MANAGEMENT, "type", "veth", "peer", "mg-lab"])
        self._exits.callback(run_command, ["ip", "link", "delete", MANAGEMENT], check=False)
        run_command(["ip", "link", "set", "mg-lab", "netns", SWITCH])
        at_switch("link", "set", "mg-lab", "master", "management", "up")
        run_command(["ip", "address", "add", f"{_LAB_ADDRESS}/24", "dev", MANAGEMENT])
        run_command(["ip", "link", "set", MANAGEMENT, "up"])

    def _add_host(self, host: FleetHost, native: bool) -> None:
        self._add_namespace(host.name)
        self._connect(host.name, "segment", f"to-{host.name}", LINK, host.mac)
        if native:
            program = ("xdp", "obj", str(build_xdp_pass()), "sec", "xdp")
            at_switch("link", "set", "dev", f"to-{host.name}", *program)
        host.sysctl("all.forwarding=1")
        host.ip(
            f"link set {LINK} up\naddress add {host.address}/64 dev {LINK}\n"
            f"route add default via {GATEWAY}\nroute add local {SHARED} dev lo"
        )
        self._connect_management(host.name, host.management)
        for directory in (host.bpffs, host.run_directory):
            directory.mkdir(mode=0o700)
        run_command(["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(host.bpffs)])
        self._exits.callback(run_command, ["umount", str(host.bpffs)], check=False)
        self._exits.callback(host.kill)

    def _wait_for_carrier(self, node: Node) -> None:
        def sends() -> bool:
            shown = json.loads(node.run("ip", "-j", "link", "show", LINK).stdout)
            return bool(shown[0]["operstate"] == "UP")

        wait_until(sends, f"{LINK} in {node.name} has no carrier", KERNEL_WITHIN)

    # ---- the hosts

    def configure(self, *, mode: str = "tc", lease: int = 5, more: str = "") -> None:
        """Write the configuration files of all hosts.

        Args:
            mode: How the uplinks answer.
            lease: Seconds.
            more: More lines for the interface.
        """
        endpoints = json.dumps([member.url for member in self.etcd.members])
        for host in self.hosts:
            host.file.write_text(
                f'[etcd]\nendpoints = {endpoints}\nhost = "{host.name}"\nlease = {lease}\n\n'
                f'[[interface]]\nname = "{LINK}"\nmode = "{mode}"\n{more}\n'
                f'[[interface.etcd]]\nsegment = "{SEGMENT}"\n'
            )

    def start(self) -> None:
        """Start the daemons of all hosts, and wait until they are ready."""
        for host in self.hosts:
            host.start(wait=False)
        for host in self.hosts:
            wait_until(
                lambda host=host: host.is_ready(),  # type: ignore[misc]
                f"ndxdp at {host.name} is not ready",
                READY_WITHIN,
                lambda host=host: host.log()[-1500:],  # type: ignore[misc]
            )

    def host(self, name: str) -> FleetHost:
        """Return a host by its name or its MAC."""
        return next(each for each in self.hosts if name in (each.name, each.mac))

    # ---- shared addresses

    def share(self, number: int, **more: object) -> None:
        """Write a shared address to etcd.

        Args:
            number: See `shared_address`.
            more: Further keys of its value, such as `hosts`.
        """
        self.put(shared_name(number), {"prefix": shared_address(number), **more})

    def put(self, name: str, value: dict[str, object]) -> None:
        """Write the value of a shared address."""
        self.etcd.put(f"{KEYS}shared/{SEGMENT}/{name}", value)

    def delete(self, name: str) -> None:
        """Delete a shared address."""
        self.etcd.delete(f"{KEYS}shared/{SEGMENT}/{name}")

    def value_of(self, name: str) -> dict[str, object]:
        """Return the value of a shared address."""
        found: dict[str, object] = self.etcd.read(f"{KEYS}shared/{SEGMENT}/{name}")[""]
        return found

    def holders(self) -> dict[str, str]:
        """Return the name of the host that holds each shared address, by name of the address."""
        found = self.etcd.read(f"{KEYS}holders/{SEGMENT}/")
        return {name: value.get("host", "") for name, value in found.items()}

    def members(self) -> set[str]:
        """Return the hosts that are alive on the segment."""
        return set(self.etcd.read(f"{KEYS}members/{SEGMENT}/"))

    def shared(self) -> set[str]:
        """Return the names of all shared addresses."""
        return set(self.etcd.read(f"{KEYS}shared/{SEGMENT}/"))

    def await_holders(
        self, wanted: Callable[[dict[str, str]], object], problem: str, within: float = 30
    ) -> dict[str, str]:
        """Wait until the holders are as wanted; return them."""
        found: dict[str, str] = {}

        def are_wanted() -> object:
            found.clear()
            found.update(self.holders())
            return wanted(found)

        wait_until(are_wanted, problem, within, lambda: found)
        return found

    def settle(self, within: float = 30) -> dict[str, str]:
        """Wait until all hosts are members and every address has a holder; return the holders."""
        names = {host.name for host in self.hosts}
        problem = "not all hosts are members"
        wait_until(lambda: self.members() == names, problem, within, self.members)
        every = self.shared()
        return self.await_holders(
            lambda found: set(found) == every and set(found.values()) <= names,
            "not every address has a holder",
            within,
        )

    def move(self, number: int, host: FleetHost, via: FleetHost) -> None:
        """Move an address to a host, by the command on some host; return when it has moved."""
        name = f"{SEGMENT}/{shared_name(number)}"
        via.ndxdp("fleet", "move", name, host.name, "-c", str(via.file), *PATIENT)

    def undo_all(self) -> None:
        """Undo every fault, and wait until all is well."""
        self.etcd.start()
        for name in self.etcd.read(f"{KEYS}drained/"):
            self.etcd.delete(f"{KEYS}drained/{name}")
        for host in self.hosts:
            host.restore()
        self.settle(60)
