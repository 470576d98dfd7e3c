"""The actions that follow from the decisions of a share. Pure.

Addresses have 16 bytes, MACs 6. An interface is named by its index.
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.ndp.message import Solicitation


class Ask(NamedTuple):
    """Solicit an address, from this host's own link-local address on the interface.

    Attributes:
        ifindex: The interface to ask on.
        target: The address.
        mac: The MAC to ask; None to ask the address's solicited-node group.
        is_lookup: True to look for the address upstream, as a node does that has packets for it;
            False to check there that nobody else has it.
    """

    ifindex: int
    target: bytes
    mac: bytes | None = None
    is_lookup: bool = False


class Announce(NamedTuple):
    """Advertise upstream, unsolicited, that this host is the way to an address now.

    Attributes:
        address: The address.
    """

    address: bytes


class Advertise(NamedTuple):
    """Answer a solicitation: its target lives on another link of the share.

    Attributes:
        ifindex: The interface that the solicitation came by.
        solicitation: The solicitation; for DAD the answer goes to all nodes.
    """

    ifindex: int
    solicitation: Solicitation


class Bind(NamedTuple):
    """Route an address to the downstream interface that it lives on.

    Attributes:
        address: The address.
        ifindex: The interface.
        former: The interface that it was routed to before; 0 for a new address.
    """

    address: bytes
    ifindex: int
    former: int = 0


class Unbind(NamedTuple):
    """Remove the route of an address.

    Attributes:
        address: The address.
        ifindex: The interface that it was routed to.
    """

    address: bytes
    ifindex: int


class Verify(NamedTuple):
    """Have the kernel forget its entry for a learned host, and solicit the host.

    The program answers for the host again once the host has answered.

    Attributes:
        address: The address of the host.
    """

    address: bytes


Action = Ask | Advertise | Announce | Bind | Unbind | Verify
