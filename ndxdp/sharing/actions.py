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
    """

    ifindex: int
    target: bytes
    mac: bytes | None = None


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


Action = Ask | Advertise | Bind | Unbind
