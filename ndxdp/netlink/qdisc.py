"""The clsact qdisc of an interface, to which tc programs are attached."""

from __future__ import annotations

from ndxdp.netlink.messages import TrafficMessage, ask, netlink_errors

_NLM_F_DUMP = 0x300
_RTM_GETQDISC = 38
_RTM_GETTFILTER = 46


def has_clsact(ifindex: int) -> bool:
    """Return True if an interface has a clsact qdisc."""
    with netlink_errors():
        return any(
            message["index"] == ifindex and message.get_attr("TCA_KIND") == "clsact"
            for message in ask(_RTM_GETQDISC, _NLM_F_DUMP, TrafficMessage, index=ifindex)
        )


def has_filters(ifindex: int) -> bool:
    """Return True if the clsact qdisc of an interface has a filter."""
    with netlink_errors():
        return any(
            True
            for parent in (0xFFFFFFF2, 0xFFFFFFF3)  # TC_H_CLSACT | TC_H_MIN_{INGRESS,EGRESS}
            for _ in ask(_RTM_GETTFILTER, _NLM_F_DUMP, TrafficMessage, index=ifindex, parent=parent)
        )
