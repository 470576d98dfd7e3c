"""IPv6 addresses of this host's interfaces: lookup, lifetimes and labels.

pyroute2 is loaded only where addresses are changed, and to read labels.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes, netlink_errors, number_of
from ndxdp.rules.address import address_text
from ndxdp.rules.prefix import Prefix

_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_RTM_GETADDR = 22
_SCOPE_LINK = 253
_NLM_F_REPLACE = 0x100
_RTM_NEWADDR = 20
_RTM_GETADDRLABEL = 74
_RTM_DELADDRLABEL = 73
_RTM_NEWADDRLABEL = 72
_NLM_F_CREATE = 0x400
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_IFA_FLAGS, _IFA_RT_PRIORITY, _IFA_PROTO = 8, 9, 11
_IFADDRMSG = struct.Struct("=BBBBI")
_LIFETIMES = struct.Struct("=II")  # the first fields of struct ifa_cacheinfo

FOREVER = 0xFFFFFFFF
"""The lifetime, in seconds, of an address that does not expire (INFINITY_LIFE_TIME)."""


class OwnAddress(NamedTuple):
    """An IPv6 address of an interface.

    Attributes:
        address: 16 bytes.
        length: The prefix length.
        flags: IFA_F_*.
        preferred: Seconds for which the address stays preferred; FOREVER for no end.
        valid: Seconds for which the address stays valid; FOREVER for no end.
        link_local: True for an address of link scope.
        peer: The peer's address, 16 bytes; None without a peer.
        metric: The metric of the address's prefix route; 0 for the kernel's default.
        origin: The origin of the address (IFA_PROTO); 0 if unknown.
    """

    address: bytes
    length: int
    flags: int
    preferred: int
    valid: int
    link_local: bool = False
    peer: bytes | None = None
    metric: int = 0
    origin: int = 0

    @property
    def prefix(self) -> Prefix:
        """The prefix that the address makes on-link; with a peer, the peer's."""
        return Prefix.around(self.peer or self.address, self.length)

    @property
    def is_usable(self) -> bool:
        """True if the host may send from the address: DAD has ended, and found no other owner."""
        return not self.flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE)


def own_addresses(ifindex: int) -> list[OwnAddress]:
    """Return the IPv6 addresses of an interface; none if there is no such interface."""
    found = []
    with netlink_errors(), Rtnetlink() as kernel:
        try:
            body = _IFADDRMSG.pack(socket.AF_INET6, 0, 0, 0, ifindex)
            messages = kernel.ask(_RTM_GETADDR, NLM_F_DUMP, body)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            return []
    for message in messages:
        family, length, flags, scope, index = _IFADDRMSG.unpack_from(message)
        # Older kernels dump the addresses of all interfaces, those without IPv6 the IPv4 ones.
        if index != ifindex or family != socket.AF_INET6:
            continue
        values = attributes(message[_IFADDRMSG.size :])
        far, near = values.get(_IFA_ADDRESS, b""), values.get(_IFA_LOCAL)
        preferred, valid = _LIFETIMES.unpack_from(values[_IFA_CACHEINFO])
        found.append(
            OwnAddress(
                address=near or far,
                length=length,
                flags=number_of(values.get(_IFA_FLAGS)) or flags,
                preferred=preferred,
                valid=valid,
                link_local=scope == _SCOPE_LINK,
                peer=far if near else None,
                metric=number_of(values.get(_IFA_RT_PRIORITY)),
                origin=number_of(values.get(_IFA_PROTO)),
            )
        )
    return found


def set_preferred(ifindex: int, own: OwnAddress, preferred: int) -> None:
    """Set the preferred lifetime of an address.

    The request repeats all other properties, because the kernel resets those that are missing.

    Args:
        ifindex: The interface.
        own: The address.
        preferred: The new preferred lifetime in seconds; FOREVER for no end.

    Raises:
        NdxdpError: The kernel refused.
    """
    from ndxdp.netlink.messages import AddressMessage, ask

    lifetimes = {"preferred": preferred, "valid": own.valid, "cstamp": 0, "tstamp": 0}
    attributes: list[tuple[str, object]] = [
        ("IFA_ADDRESS", own.peer or own.address),
        ("IFA_LOCAL", own.address),
        ("IFA_CACHEINFO", lifetimes),
        ("IFA_FLAGS", own.flags),
    ]
    if own.metric:
        attributes.append(("IFA_RT_PRIORITY", own.metric))
    if own.origin:
        attributes.append(("IFA_PROTO", own.origin))
    try:
        ask(
            _RTM_NEWADDR,
            _NLM_F_REPLACE,
            AddressMessage,
            attributes,
            family=socket.AF_INET6,
            prefixlen=own.length,
            flags=own.flags & 0xFF,
            index=ifindex,
        )
    except OSError as error:
        text = address_text(own.address)
        raise NdxdpError(
            f"cannot set the lifetime of {text}: {error.strerror}",
            "this needs CAP_NET_ADMIN, and an address that was not just removed",
        ) from error


def address_labels(label: int) -> set[tuple[int, bytes]]:
    """Return ifindex and address (16 bytes) of each address with a label (`ip addrlabel`)."""
    from ndxdp.netlink.messages import AddressLabelMessage, ask

    with netlink_errors():
        messages = ask(_RTM_GETADDRLABEL, NLM_F_DUMP, AddressLabelMessage, family=socket.AF_INET6)
    return {
        (message["index"], bytes(message.get_attr("IFAL_ADDRESS")))
        for message in messages
        if message["prefixlen"] == 128 and message.get_attr("IFAL_LABEL") == label
    }


def set_address_label(ifindex: int, address: bytes, label: int, *, present: bool) -> None:
    """Add or delete the label of an address (16 bytes) on one interface.

    The kernel prefers a source whose label is that of the destination (RFC 6724 section 5, rule 6).
    """
    from ndxdp.netlink.messages import AddressLabelMessage, ask

    kind, flags = _RTM_DELADDRLABEL, 0
    if present:
        kind, flags = _RTM_NEWADDRLABEL, _NLM_F_CREATE | _NLM_F_REPLACE
    try:
        ask(
            kind,
            flags,
            AddressLabelMessage,
            [("IFAL_ADDRESS", address), ("IFAL_LABEL", label)],
            family=socket.AF_INET6,
            prefixlen=128,
            index=ifindex,
        )
    except OSError as error:
        if not present and error.errno in (errno.ESRCH, errno.ENODEV):
            return
        text = address_text(address)
        raise NdxdpError(
            f"cannot set the address label of {text}: {error.strerror}",
            "this needs CAP_NET_ADMIN",
        ) from error
