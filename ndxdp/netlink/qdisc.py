"""The clsact qdisc of an interface, to which tc programs are attached."""

from __future__ import annotations

import socket
import struct

from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes, netlink_errors

# linux/rtnetlink.h, linux/pkt_sched.h
_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_TCA_KIND = 1
_TC_H_CLSACT_HOOKS = (0xFFFFFFF2, 0xFFFFFFF3)  # TC_H_CLSACT | TC_H_MIN_{INGRESS,EGRESS}
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info


def has_clsact(ifindex: int) -> bool:
    """Return True if an interface has a clsact qdisc.

    The kernel lists the qdiscs of all interfaces, so that many interfaces make this slow.
    """
    return any(
        _TCMSG.unpack_from(message)[1] == ifindex
        and attributes(message[_TCMSG.size :]).get(_TCA_KIND) == b"clsact\0"
        for message in _dump(_RTM_GETQDISC, ifindex)
    )


def has_filters(ifindex: int) -> bool:
    """Return True if the clsact qdisc of an interface has a filter."""
    return any(_dump(_RTM_GETTFILTER, ifindex, hook) for hook in _TC_H_CLSACT_HOOKS)


def has_egress_filters(ifindex: int) -> bool:
    """Return True if the clsact qdisc of an interface has a filter for frames that go out."""
    return bool(_dump(_RTM_GETTFILTER, ifindex, _TC_H_CLSACT_HOOKS[1]))


def _dump(kind: int, ifindex: int, parent: int = 0) -> list[bytes]:
    """Return the answers to a dump."""
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent, 0)
    with netlink_errors(), Rtnetlink() as kernel:
        return kernel.ask(kind, NLM_F_DUMP, body)
