"""A router on the upstream link, by its advertisements. Pure.

Section numbers are those of RFC 4861 unless another RFC is named. Times are seconds of one
monotonic clock.

A router may distribute its options over several advertisements (6.2.3), and is to wait 3 s before
it repeats them (6.2.6). So advertisements that come within ROUND seconds are one round: an option
is absent only if it is in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ndxdp.ndp.router_message import Parameters
from ndxdp.ndp.router_option import (
    INFINITY,
    PREFIX_INFORMATION,
    PrefixInformation,
    aged,
    lifetime_of,
    option_key,
    prefix_information,
    prefix_option,
)

ROUND = 2.5
"""Seconds of one round; less than MIN_DELAY_BETWEEN_RAS (section 10)."""

_ABSENT_ROUNDS = 2
"""Rounds after which a prefix that is absent from them counts as withdrawn."""

_FORGET_ROUNDS = 3
"""Rounds after which another option that is absent from them is forgotten."""

_SILENCE = 1800.0
"""Seconds for which the advertisement of a router with lifetime 0 is current. No router may wait
longer before the next one (MaxRtrAdvInterval, 6.2.1)."""

WITHDRAWN_VALID = 7200.0
"""Seconds: the longest valid lifetime of a withdrawn prefix (RFC 7084 section 4.3, L-13)."""

_WITHDRAWN_MAX = 2_592_000.0
"""Seconds for which a prefix without an end is sent as withdrawn: AdvValidLifetime's default."""

_OPTIONS_MAX = 128
_BYTES_MAX = 16384
"""The most options, and the most bytes of them, that are remembered of one router."""

_WITHDRAWN_PREFIXES_MAX = 16


class _Kept(NamedTuple):
    """An option: when and in which round it came last; `assumed` if it never came."""

    option: bytes
    heard: float
    round: int
    assumed: bool = False


class Absent(NamedTuple):
    """A prefix that a router advertised, and then left out of two rounds.

    Attributes:
        information: The prefix and its flags, as they came.
        end: The end of its valid lifetime; infinity for none.
    """

    information: PrefixInformation
    end: float

    @property
    def key(self) -> bytes:
        """The option_key() of the prefix."""
        return option_key(prefix_option(self.information))


class _Withdrawn(NamedTuple):
    """A prefix that the router no longer advertises.

    Attributes:
        information: The prefix and its flags, as they came.
        valid_until: The end of the valid lifetime that is sent.
        until: The end of the last valid lifetime that the router has sent: until then a host may
            have an address of the prefix (RFC 9096 section 3.5).
    """

    information: PrefixInformation
    valid_until: float
    until: float


class UpstreamRouter:
    """A router, by its link-local address of 16 bytes.

    Attributes:
        address: The address.
        heard: When its last advertisement came.
        parameters: The fixed fields of that advertisement.
    """

    def __init__(self, address: bytes) -> None:
        """Know nothing of the router but its address."""
        self.address = address
        self.heard = -math.inf
        self.parameters = Parameters(0, 0, 0, 0, 0)
        self._lost = False
        self._round = 0
        self._began = -math.inf
        self._kept: dict[bytes, _Kept] = {}
        self._withdrawn: dict[bytes, _Withdrawn] = {}

    def hear(self, now: float, parameters: Parameters, options: Iterable[bytes]) -> list[Absent]:
        """Take an advertisement, and return the prefixes that are now absent from two rounds.

        Such a prefix is no longer among options(); the caller may withdraw() it. An advertisement
        with router lifetime 0 and without a prefix says nothing of prefixes: it is the last one of
        a router that ends (6.2.5).

        Args:
            now: The time.
            parameters: The fixed fields.
            options: The options, well-formed, without those of the sender's own link-layer address.
        """
        self.heard, self.parameters, self._lost = now, parameters, False
        options = list(options)
        says_nothing = not parameters.lifetime and all(o[0] != PREFIX_INFORMATION for o in options)
        if now - self._began >= ROUND and not says_nothing:
            self._round += 1
            self._began = now
        for option in options:
            key = option_key(option)
            self._kept.pop(key, None)
            self._kept[key] = _Kept(option, now, self._round)
        absent = list(map(_absent, self._drop_old(now)))
        size = sum(len(kept.option) for kept in self._kept.values())
        while size > _BYTES_MAX or len(self._kept) > _OPTIONS_MAX:
            size -= len(self._kept.pop(next(iter(self._kept))).option)
        return absent

    def assume(self, now: float, information: PrefixInformation) -> None:
        """Take a prefix as one that the router has advertised before its last advertisement."""
        option = prefix_option(information)
        self._kept.setdefault(option_key(option), _Kept(option, now, self._round - 1, assumed=True))

    def lose(self) -> None:
        """Treat the router as absent until it is heard again, as when its link is down."""
        self._lost = True

    def withdraw(self, now: float, absent: Absent) -> None:
        """Send a prefix as withdrawn from now on."""
        end = absent.end
        valid_until, until = min(end, now + WITHDRAWN_VALID), min(end, now + _WITHDRAWN_MAX)
        self._withdrawn[absent.key] = _Withdrawn(absent.information, valid_until, until)
        if len(self._withdrawn) > _WITHDRAWN_PREFIXES_MAX:
            del self._withdrawn[next(iter(self._withdrawn))]

    def is_back(self, key: bytes) -> None:
        """Send a prefix, by its option_key(), no longer as withdrawn: it is advertised again."""
        self._withdrawn.pop(key, None)

    @property
    def default_until(self) -> float:
        """The end of the router's time as a default router."""
        return -math.inf if self._lost else self.heard + self.parameters.lifetime

    def lifetime_left(self, now: float) -> int:
        """Return the whole seconds for which the router is still a default router; 0 if none."""
        return 0 if self._lost else int(max(0, self.parameters.lifetime - (now - self.heard)))

    def is_current(self, now: float) -> bool:
        """Return True if the router's last advertisement may be repeated."""
        return not self._lost and now < self.heard + (self.parameters.lifetime or _SILENCE)

    def options(self, now: float) -> Iterator[bytes]:
        """Yield the options of the last rounds, with lifetimes reduced by their age."""
        for kept in self._kept.values():
            option = None if kept.assumed else aged(kept.option, now - kept.heard)
            if option:
                yield option

    def withdrawn_options(self, now: float) -> Iterator[bytes]:
        """Yield the options of withdrawn prefixes.

        The preferred lifetime is 0, and the valid lifetime what is left of it, at most two hours
        from the withdrawal on (RFC 7084 L-13, b). Not 0, as in RFC 9096 section 3.5: that rule is
        for a router which knows that the prefix is invalid, and this host only infers it.
        """
        for key, withdrawn in list(self._withdrawn.items()):
            if now >= withdrawn.until:
                del self._withdrawn[key]
                continue
            valid = int(max(0, withdrawn.valid_until - now))
            yield prefix_option(withdrawn.information._replace(valid=valid, preferred=0))

    def option_left(self, now: float, key: bytes) -> bytes | None:
        """Return the option with a key if its lifetime has not ended, reduced by its age."""
        kept = self._kept.get(key)
        if not kept or kept.assumed or not lifetime_of(kept.option):
            return None
        return aged(kept.option, now - kept.heard)

    def _drop_old(self, now: float) -> list[_Kept]:
        """Drop options that are absent or over, and return the prefixes among the absent ones."""
        absent = []
        for key, kept in list(self._kept.items()):
            rounds = self._round - kept.round
            left = aged(kept.option, now - kept.heard)
            valid = bool(left and lifetime_of(left))
            if kept.option[0] == PREFIX_INFORMATION and valid and rounds >= _ABSENT_ROUNDS:
                absent.append(kept)
                del self._kept[key]
            elif not left or rounds >= _FORGET_ROUNDS:
                del self._kept[key]
        return absent


def _absent(kept: _Kept) -> Absent:
    information = prefix_information(kept.option)
    return Absent(information, end_of(kept.heard, information.valid))


def end_of(now: float, lifetime: int) -> float:
    """Return the end of a lifetime of 32 bits that begins now; infinity for INFINITY."""
    return math.inf if lifetime == INFINITY else now + lifetime
