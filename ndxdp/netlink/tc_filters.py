"""The filters at tc ingress of an interface (clsact or ingress qdisc), read by rtnetlink.

libbpf finds a filter only by priority and handle. Reading needs no privilege.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import NamedTuple

from ndxdp.netlink import rtnetlink

ETH_P_ALL, ETH_P_IPV6 = 0x0003, 0x86DD  # linux/if_ether.h

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
_RTM_GETTFILTER = 46
_TC_H_CLSACT_INGRESS = 0xFFFFFFF2
_TCA_KIND, _TCA_OPTIONS, _TCA_CHAIN = 1, 2, 11
_TCA_BPF_NAME, _TCA_BPF_ID = 7, 11
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_U32 = struct.Struct("=I")


class Filter(NamedTuple):
    """A filter in chain 0.

    Attributes:
        priority: The priority; lower runs first.
        protocol: An EtherType, or ETH_P_ALL.
        kind: The kind of the filter, such as `bpf`.
        handle: The handle.
        program: The id of the BPF program; None for other kinds and for classic BPF.
        name: The name of the BPF program; '' without one.
    """

    priority: int
    protocol: int
    kind: str
    handle: int
    program: int | None = None
    name: str = ""

    @property
    def sees_ipv6(self) -> bool:
        """True if the filter sees IPv6 frames without a VLAN tag."""
        return self.protocol in (ETH_P_ALL, ETH_P_IPV6)


def at_ingress(ifindex: int) -> list[Filter]:
    """Return the filters in the order in which they run; [] without a qdisc."""
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, _TC_H_CLSACT_INGRESS, 0)
    with rtnetlink.Rtnetlink() as kernel:
        try:
            answers = kernel.ask(_RTM_GETTFILTER, rtnetlink.NLM_F_DUMP, body)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENOENT):
                return []
            raise
    return [found for answer in answers if (found := _parse(answer))]


def _parse(body: bytes) -> Filter | None:
    """Return a filter; None for other chains and for the entry that only names a priority."""
    _, _, handle, _, info = _TCMSG.unpack_from(body)
    found = rtnetlink.attributes(body[_TCMSG.size :])
    chain = found.get(_TCA_CHAIN)
    if not handle or (chain and _U32.unpack(chain)[0]):
        return None
    kind = found.get(_TCA_KIND, b"").rstrip(b"\0").decode(errors="replace")
    priority, protocol = info >> 16, socket.ntohs(info & 0xFFFF)
    if kind != "bpf":
        return Filter(priority, protocol, kind, handle)
    options = rtnetlink.attributes(found.get(_TCA_OPTIONS, b""))
    number = options.get(_TCA_BPF_ID)
    return Filter(
        priority,
        protocol,
        kind,
        handle,
        _U32.unpack(number)[0] if number else None,
        options.get(_TCA_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace"),
    )
