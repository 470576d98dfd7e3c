"""Limits of the whole machine: the neighbour table's size, and how the kernel runs BPF programs."""

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
_ROOM = 4  # times the needed entries: failed entries of unused addresses need room, too


@dataclass(frozen=True, slots=True)
class Facts:
    """Limits; None if the kernel does not show one.

    Only the first network namespace shows the sysctls. Netlink shows the neighbour table's limits
    in all of them.

    Attributes:
        jit: net.core.bpf_jit_enable.
        unprivileged: kernel.unprivileged_bpf_disabled.
        most: gc_thresh3, the size of the neighbour table.
        entries: Entries of the neighbour table, of all network namespaces.
        addresses: Exact addresses that rules answer for.
    """

    jit: int | None
    unprivileged: int | None
    most: int | None
    entries: int
    addresses: int


def gather(rules: Rules) -> Facts:
    """Collect the machine's limits, and count the exact addresses that rules answer for."""
    # Packets for an address of a `local` rule end at this host: the address is no neighbour.
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
    """Return gc_thresh3 of the IPv6 neighbour table, and its number of entries."""
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
    """Return findings about the BPF sysctls, and about a neighbour table that is too small."""
    found = []
    if facts.jit == 0:
        found.append(
            warning(
                "the kernel interprets BPF programs: net.core.bpf_jit_enable is 0",
                "each frame of the interface costs several times the CPU time",
                sysctl.cure("net.core.bpf_jit_enable=1"),
            )
        )
    if facts.unprivileged == 0:
        found.append(
            note("every user may load BPF programs: kernel.unprivileged_bpf_disabled is 0")
        )
    if facts.most is None:
        found.append(
            unseen("cannot check the neighbour table's limits: the kernel does not show them")
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
        "addresses without an entry are unreachable; the kernel logs"
        ' "neighbour: ndisc_cache: neighbor table overflow!"',
        sysctl.cure(f"{prefix}3={room}", f"{prefix}2={room // 2}", f"{prefix}1={room // 4}"),
    )
