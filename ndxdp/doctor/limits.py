"""Sysctls of the whole machine: the neighbour table's size, and what runs BPF programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ndxdp.doctor import sysctl
from ndxdp.doctor.finding import Finding, note, unseen, warning
from ndxdp.ndp import Answer
from ndxdp.policy import Rules

_NEIGHBOURS = Path("/proc/thread-self/net/stat/ndisc_cache")
_ROOM = 4  # times what is needed: entries of addresses that nobody has linger, too


@dataclass(frozen=True, slots=True)
class Facts:
    """None: this network namespace does not show it.

    entries: of the neighbour table now, all network namespaces'. addresses: that rules answer for,
    one by one.
    """

    jit: int | None
    unprivileged: int | None
    most: int | None
    entries: int
    addresses: int


def gather(rules: Rules) -> Facts:
    exact = sum(
        prefix.length == 128 and rule.answer is not Answer.NEVER for prefix, rule in rules.items()
    )
    return Facts(
        sysctl.read("net", "core", "bpf_jit_enable"),
        sysctl.read("kernel", "unprivileged_bpf_disabled"),
        sysctl.read("net", "ipv6", "neigh", "default", "gc_thresh3"),
        _entries(),
        exact,
    )


def _entries() -> int:
    """The first column of the first CPU's line, in hex, is the table's."""
    try:
        return int(_NEIGHBOURS.read_text().splitlines()[1].split()[0], 16)
    except (OSError, ValueError, IndexError):
        return 0


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
        found.append(unseen("the neighbour table's limits: this network namespace hides them"))
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
