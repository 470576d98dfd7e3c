"""The maps of one interface: rules, settings, facts about the host, and counters."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from ndxdp.boot_clock import boot_ns
from ndxdp.kernel import abi, jiffies
from ndxdp.kernel.ring_buffer import RingBuffer
from ndxdp.ndp.reason import Reason
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import PAUSE_ORIGIN
from ndxdp.store.records import (
    ENDED,
    ClassCount,
    Explained,
    FurtherCount,
    Resolved,
    RuleCount,
    Settings,
    Solicitors,
    Traced,
    damaged,
    explained_of,
    is_uncounted,
    label_of,
    origin_of,
)
from ndxdp.store.rule_reader import prefix_of
from ndxdp.store.rule_tables import RuleTables

_settings = threading.Lock()
"""Held while settings are written, so that a heartbeat does not undo a change of another thread."""

_FEW_CLASSES = 128
"""Rule classes whose counters are looked up one by one, faster than all of them are read."""

_U32 = struct.Struct("=I")
_KEY0 = _U32.pack(0)


class Maps(RuleTables):
    """Open maps of one interface; close() when done."""

    # ---- settings

    def settings(self) -> Settings:
        """Return the settings; raise Damaged if a field has an invalid value."""
        try:
            return Settings.unpack(self._element("settings"))
        except ValueError as error:
            raise damaged(f"invalid settings: {error}") from error

    def set_settings(self, settings: Settings) -> None:
        """Write the settings."""
        with _settings:
            self._maps["settings"].update(_KEY0, settings.pack())

    def beat(self, timeout: float) -> None:
        """Write a heartbeat. Another thread may change the settings at the same time.

        Args:
            timeout: Seconds after which dynamic rules expire; 0 for never.
        """
        with _settings:
            settings = self.settings()
            if timeout or settings.heartbeat_timeout:
                settings = replace(
                    settings, heartbeat=time.monotonic_ns(), heartbeat_timeout=round(timeout * 1e9)
                )
                self._maps["settings"].update(_KEY0, settings.pack())

    # ---- the lease

    def write_lease(self, until: int) -> None:
        """Set the time up to which leased rules answer; only the daemon may call this.

        The call writes a map of its own, without reading it. So it neither waits for a thread that
        writes other maps, nor undoes anything that another thread or process writes. The event
        loop's thread may call it. From the first lease on, the map stays open, and each call is one
        system call.

        Args:
            until: ns of boot_clock.boot_ns(); 0 to let no leased rule answer from now on.
        """
        each = self._kept_open("lease") if until else self._maps["lease"]
        each.update(_KEY0, abi.LEASE.pack(until=until))

    def lease(self) -> int:
        """Return the time up to which leased rules answer, in ns of boot_clock.boot_ns()."""
        until: int = abi.LEASE.unpack(self._element("lease"))["until"]
        return until

    def has_lapsed(self) -> bool:
        """Return True if leased rules do not answer at the time of the call."""
        return boot_ns() >= self.lease()

    # ---- facts about the host that the program cannot ask the kernel for

    def set_locals(self, prefixes: Iterable[Prefix]) -> None:
        """Write the prefixes that the host has itself, which the reason `route_local` is about."""
        if self.in_kernel:
            self._set_keys(
                "locals",
                {abi.PREFIX.pack(length=each.length, address=each.address) for each in prefixes},
            )

    def locals(self) -> set[Prefix]:
        """Return the prefixes that the host has itself, as the program reads them."""
        return {prefix_of(key) for key, _ in self._maps["locals"].items()}

    def set_on_link(self, addresses: Iterable[bytes]) -> None:
        """Write the live neighbours on the interface, 16 bytes each."""
        if self.in_kernel:
            self._set_keys("on_link", set(addresses))

    def set_neighbour(self, address: bytes, *, alive: bool) -> None:
        """Add a neighbour (16 bytes) on the interface, or remove it."""
        if not self.in_kernel:
            return  # userspace mode asks the kernel
        if alive:
            self._maps["on_link"].update(address, b"\1")
        else:
            self._maps["on_link"].delete(address)

    def set_gateways(self, macs: Iterable[bytes]) -> None:
        """Write the MACs of the gateways, 6 bytes each; a MAC that stays keeps its share."""
        if self.in_kernel:
            self._set_keys("gateways", {mac + bytes(2) for mac in macs})

    def requests(self) -> RingBuffer:
        """Open the program's requests to resolve neighbours; close() the buffer when done."""
        return RingBuffer(self.fds["requests"])

    # ---- tracing

    def events(self) -> RingBuffer:
        """Open the program's events, each an abi.EVENT; close() the buffer when done."""
        return RingBuffer(self.fds["events"])

    def set_trace(self, until: int, every: int = 1) -> None:
        """Make the program write events until a time.

        Args:
            until: ns of CLOCK_MONOTONIC.
            every: Solicitations for each event.
        """
        self.set_settings(replace(self.settings(), trace_until=until, trace_every=every))

    def traced(self) -> Traced:
        """Return the counters of tracing, summed over all tracers since the attachment."""
        if not self.in_kernel:
            fields = abi.USERSPACE.unpack(self._element("userspace"))
            return Traced(fields["seen"], fields["lost"])
        data = self._element("tracers")
        counters = [
            abi.TRACER.unpack(data[at : at + abi.TRACER.size])
            for at in range(0, len(data), abi.TRACER.size)
        ]
        return Traced(
            sum(each["seen"] for each in counters), sum(each["lost"] for each in counters)
        )

    # ---- counters

    def reasons(self) -> dict[Reason, int]:
        """Return how many solicitations had each reason, summed over all CPUs."""
        counts = {}
        for key, data in self._maps["reasons"].items():
            reason = Reason(_U32.unpack(key)[0])
            counts[reason] = sum(struct.unpack(f"={len(data) // 8}Q", data))
        del counts[Reason.NOT_NS]
        return counts

    def class_counts(self, counted: RuleCount | None = None) -> list[ClassCount]:
        """Return the counters of each rule class that has rules, or has had rules.

        Args:
            counted: The result of rule_count(), if the caller has it.
        """
        counted = counted or self.rule_count()
        slots = {slot for slot, data in counted.classes.items() if data != ENDED}
        return [_class_count(counted, slot, data) for slot, data in self._class_counters(slots)]

    def paused_names(self, counted: RuleCount | None = None) -> list[str]:
        """Return the labels and prefixes whose rules are paused, sorted.

        Args:
            counted: The result of rule_count(), if the caller has it.
        """
        counted = counted or self.rule_count()
        if PAUSE_ORIGIN not in counted.by_origin:
            return []
        classes = self.rule_classes_at(counted.by_slot)
        return sorted({each.label for each in classes.values() if each.origin == PAUSE_ORIGIN})

    def first_class_counts(self, counted: RuleCount) -> list[ClassCount]:
        """Return what class_counts() returns of the first abi.FIRST_RULE_CLASSES slots only."""
        slots = {slot for slot in counted.classes if slot < abi.FIRST_RULE_CLASSES}
        return [_class_count(counted, slot, data) for slot, data in self._class_counters(slots)]

    def further_count(self, counted: RuleCount) -> FurtherCount | None:
        """Return the counters of all further rule classes together; None if there are none.

        Classes that are not counted by themselves are left out.

        Args:
            counted: The result of rule_count().
        """
        further = [slot for slot in counted.classes if slot >= abi.FIRST_RULE_CLASSES]
        if not further:
            return None
        left_out = {slot for slot in further if is_uncounted(counted.classes[slot])}
        solicited = answered = last = 0
        for keys, values in self.slots("group_counters").further():
            if left_out:
                size = self.slots("group_counters").value_size
                values = b"".join(
                    values[n * size : (n + 1) * size]
                    for n, (slot,) in enumerate(_U32.iter_unpack(keys))
                    if slot not in left_out
                )
            numbers = memoryview(values).cast("Q")
            solicited += sum(numbers[::3])
            answered += sum(numbers[1::3])
            last = max(last, max(numbers[2::3], default=0))
        return FurtherCount(
            sum(slot in counted.by_slot and slot not in left_out for slot in further),
            solicited,
            answered,
            jiffies.to_monotonic(last) if last else None,
        )

    def _class_counters(self, slots: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield the counters in some slots; all slots are read only if many are wanted."""
        counters = self.slots("group_counters")
        if len(slots) <= _FEW_CLASSES:
            found = ((slot, counters.lookup(slot)) for slot in slots)
            yield from ((slot, data) for slot, data in found if data is not None)
            return
        is_short = max(slots) < abi.FIRST_RULE_CLASSES
        for slot, data in counters.first_items() if is_short else counters.items():
            if slot in slots:
                yield slot, data

    def solicitors(self, settings: Settings) -> Solicitors | None:
        """Count the soliciting MACs that the limiter knows; None in userspace mode.

        In userspace mode, the limiter's state is in the memory of the process that answers.
        """
        if not self.in_kernel:
            return None
        paid = [
            until for each in self._kernel_map("limiter").leading("Q") for until in each.tolist()
        ]
        least = time.monotonic_ns() + settings.rate_credit
        most = least + settings.rate_interval  # a larger value was written under another rate
        return Solicitors(len(paid), sum(least < until <= most for until in paid))

    def socket_counts(self) -> dict[str, int] | None:
        """Return `overflows` and `errors` of the socket in userspace mode; None in other modes."""
        if "userspace" not in self._maps:
            return None
        fields = abi.USERSPACE.unpack(self._element("userspace"))
        return {"overflows": fields["overflows"], "errors": fields["errors"]}

    def resolved(self) -> Resolved:
        """Return the counters of neighbour resolution."""
        return Resolved(**abi.RESOLVER.unpack(self._element("resolver")))

    def count_resolved(self, more: Resolved) -> None:
        """Add to the counters of neighbour resolution; only one process resolves."""
        present = self.resolved()
        grown = {name: getattr(present, name) + getattr(more, name) for name in more._fields}
        self._maps["resolver"].update(_KEY0, abi.RESOLVER.pack(**grown))

    def take_explained(self, number: bytes) -> Explained | None:
        """Remove the verdict of a dry run, and return it; None if it is not there.

        A verdict that is not there found no room, as other processes were killed before they took
        theirs. Then all verdicts are removed; a process that loses its own runs the program again.

        Args:
            number: The number of the run, 4 bytes; see struct ndp_explained.
        """
        every = self._maps["explained"]
        verdict = every.lookup(number)
        if verdict is None:
            every.delete(b"".join(key for key, _ in every.items()))
            return None
        every.delete(number)
        slot = abi.EXPLAINED.unpack(verdict)["rule_class"]
        return explained_of(verdict, self.rule_classes_at([slot]))


def _class_count(counted: RuleCount, slot: int, data: bytes) -> ClassCount:
    """Return the counters of the class in a slot. data: its abi.CLASS_COUNT of each CPU."""
    numbers = struct.unpack(f"={len(data) // 8}Q", data)
    last = max(numbers[2::3])
    return ClassCount(
        origin_of(counted.classes[slot]),
        label_of(counted.classes[slot]),
        sum(numbers[::3]),
        sum(numbers[1::3]),
        jiffies.to_monotonic(last) if last else None,
        counted.by_slot.get(slot, 0),
    )
