"""The foreign programs that see an interface's frames before ndxdp does.

The kernel passes a received frame to XDP (on the NIC, in the driver, after the driver), then to
packet sockets, to tcx, and to clsact filters. A program can end the chain, for example a tcx
program that returns TC_ACT_OK. Later programs then do not see the frame.
"""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.kernel import bpf_hooks, bpf_programs
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import tc_filters, xdp

HOOKS = ("xdp", "tcx", "tc")
"""Hooks, in the order in which the kernel runs them."""

DISPATCHER = "xdp_dispatcher"
"""The program by which libxdp runs several XDP programs on one interface."""

_KINDS = {"xdp": "XDP program", "tcx": "tcx program", "tc": "tc filter"}


class Program(NamedTuple):
    """A foreign program or filter.

    Attributes:
        hook: One of HOOKS.
        id: The id of the program; None for a filter that is no eBPF program.
        name: The name; "" if this process does not have CAP_SYS_ADMIN, which the name needs.
    """

    hook: str
    id: int | None
    name: str

    @property
    def is_rival(self) -> bool:
        """True at tc, where many programs end the chain for frames that they only inspect.

        An XDP program passes frames that do not concern it.
        """
        return self.hook != "xdp"

    def __str__(self) -> str:
        """Return for example `tcx program 'pass' (id 17)`."""
        kind = "libxdp dispatcher" if self.name == DISPATCHER else _KINDS[self.hook]
        words = [kind]
        if self.name:
            words.append(f"'{self.name}'")
        if self.id is not None:
            words.append(f"(id {self.id})" if self.name else f"with id {self.id}")
        return " ".join(words)


def before(ifindex: int, mode: Mode, ours: int | None) -> list[Program]:
    """Return the foreign programs that see a frame before ndxdp does, in their order.

    Args:
        ifindex: The interface.
        mode: The mode of ndxdp on the interface.
        ours: The id of the program of ndxdp; None in userspace mode.

    Raises:
        BpfError: EPERM at tcx, which the kernel does not show without CAP_NET_ADMIN.
    """
    at_xdp = xdp.programs(ifindex)
    ahead = {
        Mode.NATIVE: (at_xdp.offloaded,),
        Mode.GENERIC: (at_xdp.offloaded, at_xdp.native),
        Mode.TC: at_xdp,
        Mode.USERSPACE: at_xdp,
    }[mode]
    found = [named("xdp", number) for number in ahead if number and number != ours]
    return found + (_before_at_tc(ifindex, ours) if mode is Mode.TC else [])


def named(hook: str, number: int) -> Program:
    """Return the program with an id, at a hook."""
    return Program(hook, number, bpf_programs.name_of(number))


def filters_before(filters: list[tc_filters.Filter], ours: int) -> list[tc_filters.Filter]:
    """Return the filters that see IPv6 before the filter of program `ours`.

    If there is no such filter, all filters are returned. A kind such as u32 has several entries
    for one priority; only the first one is returned.
    """
    found: dict[tuple[int, str, int], tc_filters.Filter] = {}
    for each in filters:
        if each.program == ours:
            break
        if each.sees_ipv6:
            number = each.handle if each.kind == "bpf" else 0
            found.setdefault((each.priority, each.kind, number), each)
    return list(found.values())


def _before_at_tc(ifindex: int, ours: int | None) -> list[Program]:
    tcx = bpf_hooks.tcx_program_ids(ifindex) or []
    if ours in tcx:
        return [named("tcx", number) for number in tcx[: tcx.index(ours)]]
    filters = tc_filters.at_ingress(ifindex)
    if ours is None or ours not in [each.program for each in filters]:
        return []  # the program was detached just now
    return [named("tcx", number) for number in tcx] + [
        Program("tc", each.program, _filter_name(each)) for each in filters_before(filters, ours)
    ]


def _filter_name(each: tc_filters.Filter) -> str:
    return each.name or each.kind
