"""Limits of the whole machine: the neighbour table's size, and how the kernel runs BPF programs."""

from __future__ import annotations

from dataclasses import dataclass

from ndxdp.doctor.finding import Finding, note, unseen, warning
from ndxdp.netlink import neighbour_table, sysctl
from ndxdp.netlink.neighbour_table import NeighbourTable
from ndxdp.rules.ruleset import Rules


@dataclass(frozen=True, slots=True)
class Facts:
    """Limits; None if the kernel does not show one.

    Attributes:
        jit: net.core.bpf_jit_enable.
        unprivileged: kernel.unprivileged_bpf_disabled.
        table: The size of the neighbour table.
        addresses: Exact addresses that rules answer for.
    """

    jit: int | None
    unprivileged: int | None
    table: NeighbourTable | None
    addresses: int


def gather(rules: Rules) -> Facts:
    """Collect the machine's limits, and count the exact addresses that rules answer for."""
    # Packets for an address of a `local` rule end at this host: the address is no neighbour.
    exact = sum(
        len(some)
        for rule, some in rules.exact.items()
        if rule.answer.name not in ("NEVER", "LOCAL")
    )
    return Facts(
        sysctl.read("net", "core", "bpf_jit_enable"),
        sysctl.read("kernel", "unprivileged_bpf_disabled"),
        neighbour_table.read(),
        exact,
    )


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
    table = facts.table
    if table is None:
        found.append(
            unseen("cannot check the neighbour table's limits: the kernel does not show them")
        )
        return found
    if table.is_nearly_full:
        found.append(_small(f"holds {table.entries} entries of {table.most}", table.entries))
    elif facts.addresses > table.most:
        found.append(
            _small(
                f"has room for {table.most} entries, and rules answer for {facts.addresses}"
                " addresses",
                facts.addresses,
            )
        )
    return found


def _small(what: str, needed: int) -> Finding:
    return warning(
        f"the IPv6 neighbour table {what}",
        "addresses without an entry are unreachable; the kernel logs"
        ' "neighbour: ndisc_cache: neighbor table overflow!"',
        sysctl.cure(*neighbour_table.settings_for(needed)),
    )
