"""The modes that an interface can have, and the reasons for which one is refused.

`auto` tries native, tc and userspace, and takes the first mode that can transmit. The kernel and
the driver refuse most modes themselves. check() refuses those that the kernel accepts, but in which
the program loses frames or answers wrongly.
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
"""The kernel modes that `auto` tries, best first. Userspace, for which a process has to stay,
follows."""


class ModeRefusal(NamedTuple):
    """A mode that an interface cannot have, and the reason."""

    mode: Mode
    reason: str


class NoMode(ModeUnavailable):
    """All requested modes were refused."""

    def __init__(self, interface: str, refusals: list[ModeRefusal], hint: str) -> None:
        reasons = format_refusals(refusals)
        summary = f"no mode serves on {interface} ({'; '.join(reasons)})"
        super().__init__(refusals[0].reason if len(reasons) == 1 else summary, hint)
        self.refusals = refusals


def check(link: Link, mode: Mode, *, named: bool) -> None:
    """Raise ModeUnavailable for a mode that the kernel accepts but that does not work.

    Args:
        link: The interface.
        mode: The mode.
        named: The user asked for this mode: refuse it only if answers would be wrong.
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


def refusals_of(error: ModeUnavailable) -> list[ModeRefusal]:
    """Return the refused modes of an error; all kernel modes unless the error lists them."""
    if isinstance(error, NoMode):
        return error.refusals
    return [ModeRefusal(mode, error.message) for mode in AUTO]


def refusal(mode: Mode, error: NdxdpError) -> ModeRefusal:
    """Return the refusal of one mode for the reason that an error gives."""
    return ModeRefusal(mode, error.message)


def format_refusals(refusals: Iterable[ModeRefusal]) -> list[str]:
    """Return `native, tc: reason` for each different reason."""
    modes: dict[str, list[str]] = {}
    for mode, reason in refusals:
        modes.setdefault(reason, []).append(mode.label)
    return [f"{', '.join(labels)}: {reason}" for reason, labels in modes.items()]


def candidates(named: Mode | None, present: Mode | None, switch: bool) -> tuple[Mode, ...]:
    """Return the modes in which to try to attach, in their order.

    Args:
        named: The mode that the request names; None for the best one.
        present: The mode of the attached program; None if there is none.
        switch: The program may change its mode.
    """
    if present is not None and not switch:
        return (present,)
    return AUTO if named is None else (named,)


def encode(refusals: Iterable[ModeRefusal]) -> str:
    """Return refusals as text for the settings, one per line."""
    return "".join(f"{mode.label}: {reason}\n" for mode, reason in refusals)


def decode(text: str) -> list[ModeRefusal]:
    """Return the refusals of a text that encode() made; other lines are ignored."""
    found = []
    for line in text.splitlines():
        label, colon, reason = line.partition(": ")
        if colon and label.upper() in Mode.__members__:
            found.append(ModeRefusal(Mode[label.upper()], reason))
    return found
