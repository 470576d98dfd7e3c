"""Which mode an interface can have: what is known beforehand, and how a refusal is told.

`auto` goes native, tc, userspace, and stays on the first step that can transmit. Most refusals
are the kernel's and the driver's own. What they would accept, and then lose or answer wrongly
without a word, is refused here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError
from ndxdp.kernel.abi import Mode
from ndxdp.netlink import vlan_offload

if TYPE_CHECKING:
    from ndxdp.netlink.links import Link

AUTO = (Mode.NATIVE, Mode.TC)
"""In the kernel, best first. Below them is userspace, for which a process has to stay."""


class Step(NamedTuple):
    """A mode that could not be had, and why."""

    mode: Mode
    why: str


class NoMode(ModeUnavailable):
    """None of several could be had."""

    def __init__(self, interface: str, steps: list[Step], hint: str) -> None:
        reasons = told(steps)
        one = f"no mode serves on {interface} ({'; '.join(reasons)})"
        super().__init__(steps[0].why if len(reasons) == 1 else one, hint)
        self.steps = steps


def check(link: Link, mode: Mode, *, named: bool) -> None:
    """ModeUnavailable where the kernel would accept a mode that serves nobody.

    named: the user asked for this mode. Then only what would answer wrongly is refused.
    """
    if mode not in (Mode.NATIVE, Mode.GENERIC):
        return
    hidden = vlan_offload.hidden_vlans(link.name, link.kind)
    if hidden:
        hint = "--mode tc sees them"
        if link.kind != "veth":
            hint += f"; or let them in the frames: ethtool -K {link.name} rxvlan off"
        raise ModeUnavailable(
            f"{link.name} takes the VLAN tags off before XDP sees them, and has {hidden[0]} on top",
            hint,
        )
    if mode is Mode.GENERIC or named:
        return
    if link.kind == "veth":
        raise ModeUnavailable(
            "what XDP sends from a veth arrives only if its peer runs XDP, too", "--mode tc"
        )
    if link.kind in ("bond", "team"):
        raise ModeUnavailable(f"XDP on a {link.kind} depends on each of its members", "--mode tc")


def step(mode: Mode, error: NdxdpError) -> Step:
    return Step(mode, error.message)


def all_of(error: NdxdpError) -> list[Step]:
    """What is in the way of every program."""
    return [step(mode, error) for mode in AUTO]


def told(steps: Iterable[Step]) -> list[str]:
    """`native, tc: why not`, one for each different reason."""
    reasons: dict[str, list[str]] = {}
    for mode, why in steps:
        reasons.setdefault(why, []).append(mode.label)
    return [f"{', '.join(modes)}: {why}" for why, modes in reasons.items()]


def pack(steps: Iterable[Step]) -> str:
    """As the settings keep them, a line each."""
    return "".join(f"{mode.label}: {why}\n" for mode, why in steps)


def unpack(text: str) -> list[Step]:
    found = []
    for line in text.splitlines():
        label, colon, why = line.partition(": ")
        if colon and label.upper() in Mode.__members__:
            found.append(Step(Mode[label.upper()], why))
    return found
