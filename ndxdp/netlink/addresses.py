"""IPv6 addresses of the interfaces of this host."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.errors import NdxdpError
from ndxdp.ndp.address import UNSPECIFIED
from ndxdp.netlink.fib import default_gateways
from ndxdp.netlink.links import Link
from ndxdp.netlink.messages import AddressLabelMessage, AddressMessage, ask, netlink_errors
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import GATEWAY_LABEL, OWN_LABEL

_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_NLM_F_DUMP = 0x300
_RTM_GETADDR = 22
_SCOPE_LINK = 253
_NLM_F_REPLACE = 0x100
_RTM_NEWADDR = 20
_RTM_GETADDRLABEL = 74
_RTM_DELADDRLABEL = 73
_RTM_NEWADDRLABEL = 72
_NLM_F_CREATE = 0x400

FOREVER = 0xFFFFFFFF
"""Seconds: the lifetime of an address that does not expire (INFINITY_LIFE_TIME)."""


class OwnAddress(NamedTuple):
    """An address of an interface. preferred, valid: seconds that are left, FOREVER for no end.

    peer: 16 bytes where there is one. flags: IFA_F_*. metric: of its prefix route, 0 for the
    kernel's. origin: who set it (IFA_PROTO), 0 for unknown.
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


def owned_addresses(link: Link) -> dict[Prefix, str]:
    """Exact addresses that are never answered for: the interface's own and its gateways'.

    A port's addresses and gateways are those of its bridge.
    """
    here = [link.ifindex] + ([link.master] if link.master else [])
    own, gateway = OWN_LABEL, GATEWAY_LABEL
    owned: dict[Prefix, str] = {}
    for ifindex in here:
        owned |= {Prefix(address, 128): gateway for address in default_gateways(ifindex)}
    for ifindex in here:
        owned |= {Prefix(address, 128): own for address, _ in addresses(ifindex)}
    return owned


def link_local_address(ifindex: int) -> bytes:
    """The interface's link-local address, :: while it has none."""
    usable = (address for address, is_usable in addresses(ifindex) if is_usable)
    return next(usable, UNSPECIFIED)


def addresses(ifindex: int) -> Iterator[tuple[bytes, bool]]:
    """The interface's IPv6 addresses (16 bytes), and whether each is a usable link-local one."""
    for own in own_addresses(ifindex):
        usable = not own.flags & (_IFA_F_DADFAILED | _IFA_F_TENTATIVE)
        yield own.address, own.link_local and usable


def own_addresses(ifindex: int) -> list[OwnAddress]:
    """The interface's IPv6 addresses, with their lifetimes."""
    found = []
    with netlink_errors():
        try:
            messages = ask(
                _RTM_GETADDR,
                _NLM_F_DUMP,
                AddressMessage,
                family=socket.AF_INET6,
                index=ifindex,
            )
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            messages = []
    for message in messages:
        if message["index"] != ifindex:  # of a kernel that tells of all
            continue
        lifetimes = message.get_attr("IFA_CACHEINFO")
        far, near = message.get_attr("IFA_ADDRESS"), message.get_attr("IFA_LOCAL")
        found.append(
            OwnAddress(
                address=bytes(near or far),
                length=message["prefixlen"],
                flags=message.get_attr("IFA_FLAGS") or message["flags"],
                preferred=lifetimes["preferred"],
                valid=lifetimes["valid"],
                link_local=message["scope"] == _SCOPE_LINK,
                peer=bytes(far) if near else None,
                metric=message.get_attr("IFA_RT_PRIORITY") or 0,
                origin=message.get_attr("IFA_PROTO") or 0,
            )
        )
    return found


def set_preferred(ifindex: int, own: OwnAddress, preferred: int) -> None:
    """Give an address another preferred lifetime (s); all else is said as it was.

    The kernel takes what is not said for a wish to have it otherwise.
    """
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
        text = socket.inet_ntop(socket.AF_INET6, own.address)
        raise NdxdpError(
            f"the lifetime of {text} could not be set ({error.strerror})",
            "that needs CAP_NET_ADMIN, and an address that stays for a moment",
        ) from error


def address_labels(label: int) -> set[tuple[int, bytes]]:
    """Return the ifindex and address (16 bytes) of what has a label (`ip addrlabel`) alone."""
    with netlink_errors():
        messages = ask(_RTM_GETADDRLABEL, _NLM_F_DUMP, AddressLabelMessage, family=socket.AF_INET6)
    return {
        (message["index"], bytes(message.get_attr("IFAL_ADDRESS")))
        for message in messages
        if message["prefixlen"] == 128 and message.get_attr("IFAL_LABEL") == label
    }


def set_address_label(ifindex: int, address: bytes, label: int, *, present: bool) -> None:
    """Add or delete the label of an address (16 bytes) on one interface.

    RFC 6724 has the source's label match the destination's (section 5, rule 6).
    """
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
        text = socket.inet_ntop(socket.AF_INET6, address)
        raise NdxdpError(
            f"the address label of {text} could not be set ({error.strerror})",
            "that needs CAP_NET_ADMIN",
        ) from error
