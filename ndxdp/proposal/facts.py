"""Facts about a host, of which a configuration follows. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor.share_case import Surroundings
from ndxdp.rules.prefix import Prefix

_NOTHING = Surroundings()


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface that faces an upstream router.

    Attributes:
        name: The name.
        kind: The kind of link, such as `bridge` or `vlan`; "" for a physical interface.
        quiet: The interface has no MAC address, so no router solicits there.
        up: The interface is up.
        is_default: An IPv6 default route leaves by the interface.
        gateways: The gateways of these routes, 16 bytes each.
        on_link: The on-link prefixes, sorted.
        addresses: The host's own addresses there, except link-local ones, 16 bytes each.
        disabled: The sysctl disable_ipv6.
        above: The interface that has the addresses and sysctls: the bridge of a port, else "" or
            the interface itself.
        forwarding: The sysctl forwarding.
        accept_ra: The sysctl accept_ra.
        advertised: A default route or an address came with a router advertisement.
        manager: The program that configures the interface; "" if none is known.
        manager_file: Its file; "" if none is known.
        attached: ndxdp has rules for the interface already.
        proxied: Addresses (16 bytes) of the kernel's proxy_ndp entries.
    """

    name: str
    kind: str = ""
    quiet: bool = False
    up: bool = True
    is_default: bool = True
    gateways: tuple[bytes, ...] = ()
    on_link: tuple[Prefix, ...] = ()
    addresses: tuple[bytes, ...] = ()
    disabled: bool = False
    above: str = ""
    forwarding: bool = True
    accept_ra: int = 0
    advertised: bool = False
    manager: str = ""
    manager_file: str = ""
    attached: bool = False
    proxied: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """A route to a network behind the host.

    Attributes:
        prefix: The destination.
        dev: The interface that the route leaves by.
        kind: The kind of this interface, such as `bridge`.
        direct: The destinations are neighbours on this interface: it is Ethernet, and the route has
            no gateway.
        guest: The address (16 bytes) of a live neighbour in the prefix; None if none is known.
    """

    prefix: Prefix
    dev: str
    kind: str = "bridge"
    direct: bool = True
    guest: bytes | None = None


@dataclass(frozen=True, slots=True)
class ContainerNetwork:
    """A network of Docker or Podman.

    Attributes:
        name: The name.
        subnets: The IPv6 subnets; none without IPv6.
        driver: The driver, such as `bridge` or `macvlan`.
        internal: The network has no way out of the host.
        containers: Name and IPv6 address of each running container.
    """

    name: str
    subnets: tuple[Prefix, ...] = ()
    driver: str = "bridge"
    internal: bool = False
    containers: tuple[tuple[str, str], ...] = ()

    @property
    def answerable(self) -> bool:
        """True if packets for its containers come by the host's routes, from outside as well."""
        return bool(self.subnets) and self.driver == "bridge" and not self.internal


@dataclass(frozen=True, slots=True)
class Responder:
    """A running program that answers solicitations; unit: its systemd unit, or ""."""

    pid: int
    name: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon of ndxdp; config: its file, "" without one."""

    pid: int
    config: str


@dataclass(frozen=True, slots=True)
class Host:
    """The facts of a survey.

    Attributes:
        uplinks: The uplinks to answer on.
        others: Other interfaces that IPv6 default routes leave by.
        ways: The routes to networks behind the host.
        networks: The engine's networks.
        engine: The path of the engine's socket; "" if there is none.
        unknown: Why the engine's networks are not known; "" if they are, or there is no engine.
        local: Prefixes that local routes deliver to this host itself (AnyIP).
        forwarding: The host forwards IPv6.
        responders: Other responders that run.
        unseen: What could not be examined, a sentence each.
        daemons: The running daemons of ndxdp.
        sysctl_files: Path and text of each file of sysctls, in the order of sysctl.d(5).
        surroundings: The interfaces behind the host, and the prefixes that it discards.
    """

    uplinks: tuple[Uplink, ...]
    ways: tuple[Way, ...] = ()
    networks: tuple[ContainerNetwork, ...] = ()
    engine: str = ""
    unknown: str = ""
    local: tuple[Prefix, ...] = ()
    forwarding: bool = False
    responders: tuple[Responder, ...] = ()
    unseen: tuple[str, ...] = ()
    others: tuple[Uplink, ...] = ()
    daemons: tuple[Daemon, ...] = ()
    sysctl_files: tuple[tuple[str, str], ...] = ()
    surroundings: Surroundings = _NOTHING
