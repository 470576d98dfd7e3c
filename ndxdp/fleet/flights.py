"""This host's transactions, until the keys show what came of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

_NEVER = float("inf")


@dataclass(slots=True)
class Flight:
    """A transaction whose result the keys do not show yet.

    Attributes:
        until: When the name is judged again in any case.
        acquires: It creates the key of the holder; otherwise it deletes the key.
        ends_with_change: It is over once the keys of the name change.
        repeated: When a release may be repeated.
        passed: The candidates that had their turn and did not take the address, and since when
            they are candidates.
    """

    until: float
    acquires: bool
    ends_with_change: bool = False
    repeated: float = _NEVER
    passed: dict[str, float] = field(default_factory=dict)


class Flights:
    """The transactions of one segment, one for each name at most."""

    def __init__(self) -> None:
        """Have none."""
        self._by_name: dict[str, Flight] = {}

    def acquire(self, name: str, until: float, passed: dict[str, float]) -> None:
        """Note that an address is to be acquired."""
        self._by_name[name] = Flight(until, True, passed=passed)

    def release(self, name: str, until: float) -> None:
        """Note that an address is to be released."""
        self._by_name[name] = Flight(until, False)

    def end(self, name: str) -> None:
        """Note that a transaction is over, and that the keys show its result."""
        self._by_name.pop(name, None)

    def await_change(self, name: str) -> None:
        """Note that a transaction is over, and that the keys will show its result."""
        if name in self._by_name:
            self._by_name[name].ends_with_change = True

    def fail(self, name: str, again: float, until: float) -> None:
        """Note that a transaction had no effect, or that its result is unknown.

        A release of unknown result may still be carried out. It would delete the key if this host
        acquired the address again at once.

        Args:
            name: The name.
            again: When it is tried again.
            until: When a release cannot be carried out any more.
        """
        flight = self._by_name.get(name)
        if flight is None:
            return
        if flight.acquires:
            flight.until, flight.ends_with_change = again, True
        else:
            flight.until, flight.repeated = until, again

    def changed(self, name: str, *, is_ours: bool) -> Flight | None:
        """Note that the keys of a name have changed.

        Args:
            name: The name.
            is_ours: The key of the holder is this host's.

        Returns:
            The transaction that has created the key of the holder; None for any other change.
        """
        flight = self._by_name.get(name)
        if flight is None:
            return None
        has_acquired = is_ours and flight.acquires
        if has_acquired or flight.ends_with_change:
            del self._by_name[name]
        return flight if has_acquired else None

    def wait(self, name: str, now: float, *, releasing: bool) -> float | None:
        """Return until when a name has to wait for its transaction; None if it need not.

        Args:
            name: The name.
            now: Monotonic seconds.
            releasing: The name is being released.
        """
        flight = self._by_name.get(name)
        if flight is None:
            return None
        end = min(flight.until, flight.repeated) if releasing else flight.until
        if now < end:
            return end
        if now >= flight.until:
            del self._by_name[name]
        return None
