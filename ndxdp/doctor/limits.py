"""Sysctls of the whole machine: the neighbour table's size, and what runs BPF programs."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from ndxdp.doctor import sysctl
from ndxdp.doctor.finding import Finding, note, unseen, warning
from ndxdp.netlink.rtnetlink import NLM_F_DUMP, Rtnetlink, attributes
from ndxdp.rules.ruleset import Rules

_RTM_GETNEIGHTBL = 66
_HEADER = 4  # struct ndtmsg
_NDTA_NAME, _NDTA_THRESH3, _NDTA_CONFIG = 1, 4, 5
_ENTRIES_AT = 4  # struct ndt_config
_ROOM = 4  # times what is needed: entries of addresses that nobody has linger, too


@dataclass(frozen=True, slots=True)
class Facts:
    """None: nobody says. The sysctls are the first network namespace's, netlink has the table's
    limits in all.

    entries: of the neighbour table now, all network namespaces'. addresses: that rules answer for,
    one by one.
    """

    jit: int | None
    unprivileged: int | None
    most: int | None
    entries: int
    addresses: int


def gather(rules: Rules) -> Facts:
    # What is `local` ends at this host, and is no neighbour.
    exact = sum(
        len(some)
        for rule, some in rules.exact.items()
        if rule.answer.name not in ("NEVER", "LOCAL")
    )
    most, entries = _neighbours()
    return Facts(
        sysctl.read("net", "core", "bpf_jit_enable"),
        sysctl.read("kernel", "unprivileged_bpf_disabled"),
        most,
        entries,
        exact,
    )


def _neighbours() -> tuple[int | None, int]:
    """gc_thresh3 of the IPv6 neighbour table, and how many entries it has."""
    body = struct.pack("=B3x", socket.AF_INET6)
    with contextlib.suppress(OSError), Rtnetlink() as kernel:
        for message in kernel.ask(_RTM_GETNEIGHTBL, NLM_F_DUMP, body):
            found = attributes(message[_HEADER:])
            if found.get(_NDTA_NAME, b"").rstrip(b"\0") == b"ndisc_cache" and _NDTA_CONFIG in found:
                (most,) = struct.unpack("=I", found[_NDTA_THRESH3])
                (entries,) = struct.unpack_from("=I", found[_NDTA_CONFIG], _ENTRIES_AT)
                return most, entries
    return None, 0


def judge(facts: Facts) -> list[Finding]:
    found = []
    if facts.jit == 0:
        found.append(
            warning(
                "BPF programs are interpreted: net.core.bpf_jit_enable is 0",
                "each frame of the interface costs several times as much",
                sysctl.cure("net.core.bpf_jit_enable=1"),
            )
        )
    if facts.unprivileged == 0:
        found.append(
            note("every user may load BPF programs: kernel.unprivileged_bpf_disabled is 0")
        )
    if facts.most is None:
        found.append(
            unseen("cannot look at the neighbour table's limits: the kernel does not show them")
        )
        return found
    if facts.entries > facts.most * 8 // 10:
        found.append(_small(f"holds {facts.entries} entries of {facts.most}", facts.entries))
    elif facts.addresses > facts.most:
        found.append(
            _small(
                f"has room for {facts.most} entries, and rules answer for {facts.addresses}"
                " addresses",
                facts.addresses,
            )
        )
    return found


def _small(what: str, needed: int) -> Finding:
    room = 1 << (needed * _ROOM - 1).bit_length()
    prefix = "net.ipv6.neigh.default.gc_thresh"
    return warning(
        f"the IPv6 neighbour table {what}",
        'what does not fit is unreachable: "neighbour: ndisc_cache: neighbor table overflow!"',
        sysctl.cure(f"{prefix}3={room}", f"{prefix}2={room // 2}", f"{prefix}1={room // 4}"),
    )
