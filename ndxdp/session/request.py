"""The request to answer on an interface, the same for a program in the kernel and for a process."""

from __future__ import annotations

from dataclasses import dataclass, field

from ndxdp.kernel.abi import Mode
from ndxdp.kernel.loader import Loader
from ndxdp.netlink.links import Link
from ndxdp.netlink.uplink_addresses import UplinkAddresses, uplink_addresses
from ndxdp.rules.ruleset import Rules


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """How to answer on an interface. None keeps what is in force there, else takes the default.

    Attributes:
        mode: None by default for `auto`: native, tc, and userspace where a process stays.
        loader: What loads the program.
        rate: Answers per second to one MAC; 0, the default, for no limit.
        burst: Answers at once to one MAC; 100 by default.
        interface_rate: Answers per second to all MACs but the gateways'; 0, the default, for no
            limit.
        gateway_rate: Answers per second to each gateway, to which no other limit applies; 10000 by
            default, 0 for no limit.
        max_addresses: Size of the table of exact addresses.
        links: False attaches as on a kernel without BPF links.
        image: A BPF object other than the shipped one.
        paused: A new attachment begins paused; an existing one is not changed by this.
    """

    mode: Mode | None = None
    loader: Loader = Loader.PREBUILT
    rate: float | None = None
    burst: int | None = None
    interface_rate: float | None = None
    gateway_rate: float | None = None
    max_addresses: int | None = None
    links: bool = True
    image: bytes | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """The interface to answer on, the rules to answer by, and how long.

    Attributes:
        interface: The interface's name, or an alternative name.
        rules: Rules to add to the present ones; a rule that is present already is not touched.
        options: How to answer.
        origin: Present rules of this origin that are not among `rules` are removed; None removes
            none.
        keep: The program outlives this process: its link is pinned, and allmulti is switched on.
            Otherwise the program ends with the process, which keeps allmulti on itself.
        lock: This process stays, and locks the interface.
        fallback: This process answers itself if no program can be attached.
        down: The interface may be down.
        switch: An attached program changes to the requested mode, or to the best one if none is
            requested. Otherwise an attached program stays in its mode.
        force: Rules that answer for other nodes of the link are accepted.
        addresses: The addresses of the interface, if they were read a moment ago.
    """

    interface: str
    rules: Rules = field(default_factory=Rules)
    options: AttachOptions = field(default_factory=AttachOptions)
    origin: str | None = None
    keep: bool = True
    lock: bool = False
    fallback: bool = False
    down: bool = False
    switch: bool = False
    force: bool = False
    addresses: UplinkAddresses | None = None

    def addresses_of(self, link: Link) -> UplinkAddresses:
        """Return the addresses of the interface, which are read unless they are known."""
        known = self.addresses
        return known if known and link.ifindex in known.own else uplink_addresses(link)
