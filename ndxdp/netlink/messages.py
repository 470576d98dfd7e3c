"""Netlink messages that are built with pyroute2; only this module imports pyroute2."""

from __future__ import annotations

from typing import Any

from ndxdp import memory
from ndxdp.netlink import rtnetlink

# Importing pyroute2's __init__ loads a database, HTTP, mocks and every family of netlink: 11 MB and
# 0.14 s. The classes that messages derive from take 0.4 MB of that.
memory.defer("pyroute2")
from pyroute2.netlink import nla, nlmsg  # noqa: E402

_NLM_F_DUMP = 0x300
_NLM_F_REQUEST = 0x1
_NLM_F_ACK = 0x4


class AddressMessage(nlmsg):  # type: ignore[misc]
    """struct ifaddrmsg."""

    fields = (
        ("family", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("scope", "B"),
        ("index", "I"),
    )
    nla_map = (
        (1, "IFA_ADDRESS", "cdata"),
        (2, "IFA_LOCAL", "cdata"),
        (6, "IFA_CACHEINFO", "lifetimes"),
        (8, "IFA_FLAGS", "uint32"),
        (9, "IFA_RT_PRIORITY", "uint32"),
        (11, "IFA_PROTO", "uint8"),
    )

    class lifetimes(nla):  # type: ignore[misc]
        """struct ifa_cacheinfo: lifetimes in seconds, times in 1/100 s since boot."""

        fields = (("preferred", "I"), ("valid", "I"), ("cstamp", "I"), ("tstamp", "I"))


class AddressLabelMessage(nlmsg):  # type: ignore[misc]
    """struct ifaddrlblmsg."""

    fields = (
        ("family", "B"),
        ("__reserved", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("index", "I"),
        ("seq", "I"),
    )
    nla_map = ((1, "IFAL_ADDRESS", "cdata"), (2, "IFAL_LABEL", "uint32"))


class NeighbourMessage(nlmsg):  # type: ignore[misc]
    """struct ndmsg."""

    fields = (
        ("family", "B"),
        ("__pad", "3x"),
        ("ifindex", "i"),
        ("state", "H"),
        ("flags", "B"),
        ("ndm_type", "B"),
    )
    nla_map = ((1, "NDA_DST", "cdata"), (2, "NDA_LLADDR", "cdata"))


def ask(kind: int, how: int, form: Any, attributes: Any = (), /, **fields: int) -> list[Any]:
    """Send a message to rtnetlink and return the answers.

    Args:
        kind: The message type, RTM_*.
        how: Flags, NLM_F_*.
        form: The class of the message and of the answers.
        attributes: Names and values of the attributes.
        fields: The fields of the message's header structure.

    Raises:
        OSError: The kernel refused the request.
    """
    message = form()
    message.update(fields)
    message["attrs"] = list(attributes)
    is_dump = how == _NLM_F_DUMP  # NLM_F_REPLACE is one of the same bits
    flags = _NLM_F_REQUEST | how | (0 if is_dump else _NLM_F_ACK)
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 1, "pid": 0}
    message.encode()
    answers = [form(data) for data in rtnetlink.exchange(bytes(message.data))]
    for answer in answers:
        answer.decode()
    return answers
