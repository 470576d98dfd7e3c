"""This host's part in the shared addresses of one segment: what it takes, keeps and gives up. Pure.

The caller passes on all changes of the keys, asks decide() after each batch of them and at the time
that the last decision named, carries the decision out, and reports the results. rules() has what
this host is to answer for at any time.

An address that no host holds is taken by the first candidate at once (fleet/assignment.py). Each
further candidate waits one turn longer, in case those before it are not able to take it. Two hosts
that both believe to be the first do no harm: etcd creates the key once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ndxdp.fleet import passed_over
from ndxdp.fleet.address_state import AddressState, address_states
from ndxdp.fleet.alarms import Alarms
from ndxdp.fleet.assignment import Candidates
from ndxdp.fleet.decision import Acquisition, Decision
from ndxdp.fleet.handover import Reservations, Window
from ndxdp.fleet.holdings import Holdings, has_prefix
from ndxdp.fleet.passed_over import Passed, PassedOver
from ndxdp.fleet.records import Holder
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.fleet.takeover_rate import TakeoverRate
from ndxdp.fleet.view import Entry, Holding, View
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import SegmentStatus

GRACE = 1.0
"""Seconds beyond the lease. In this time, one turn, a host that is able to has taken an address."""

_JUDGED = 5000  # names of one decision, which takes a tenth of a second

_RETRY = 1.0  # seconds after a transaction that had no effect


class Segment:
    """The shared addresses of one segment, as one host deals with them.

    All times are monotonic seconds.

    Attributes:
        view: The keys of the segment. The caller passes on their changes.
        joined: This host is a member of the segment.
    """

    def __init__(self, segment: str, host: str, lease: float, rate: TakeoverRate) -> None:
        """Know nothing yet.

        Args:
            segment: The segment.
            host: The name of this host.
            lease: The seconds of a lease.
            rate: The bound of takeovers of all segments of this host.
        """
        self.joined = False
        self._segment, self._host, self._rate = segment, host, rate
        self._turn = lease + GRACE
        self._own = Holdings(segment, host)
        self.view: View = self._own.view
        self._candidates = Candidates(segment)
        self._able_since = 0.0  # when this host became a candidate
        self._quiet_until: float | None = None
        self._window = Window()
        self._passed = PassedOver()
        self._reservations = Reservations()
        self._blocked: dict[str, str] = {}  # by the text of a prefix: the name that waits for it
        self._due: dict[str, None] = {}  # names to judge
        self._alarms = Alarms()
        self._to_acquire: dict[str, dict[str, float]] = {}
        self._to_release: dict[str, None] = {}

    # ---- what the caller reports

    @property
    def lease(self) -> int | None:
        """The id of this host's lease; None without one."""
        return self._own.lease

    def set_lease(self, lease: int) -> None:
        """Note that this host has a lease, a new one or that of the daemon before it.

        Before the end of this lease is written into the kernel, rules() has to be in force: rules
        from the time of a former lease would answer under this one.

        Args:
            lease: The id. It may be that of a lease that counted as lost and is alive.
        """
        if lease != self._own.lease:
            self.lease_lost()
            self._own.lease = lease
            self.view.changed |= dict.fromkeys(self.view.entries)

    def lease_lost(self) -> None:
        """Note that this host's lease is lost: it holds nothing any more."""
        self._own.lose_all()
        self.view.regrouped[self._host] = None

    def set_joined(self, joined: bool) -> None:
        """Note whether this host is a member of the segment.

        A host that is none acquires nothing, and gives up what it holds. So a restarted daemon
        that adopts a lease joins before it decides.
        """
        if joined != self.joined:
            self.joined = joined
            self.view.regrouped[self._host] = None

    def new_history(self, quiet_until: float) -> None:
        """Note that etcd was restored, or is another cluster; then all keys are read again.

        The lease is lost: the caller needs a new one, even if etcd knows the former one.

        Args:
            quiet_until: When this host may acquire addresses again. Until then other hosts may
                answer that have not noticed the new history: the lease plus one second from now.
        """
        self.lease_lost()
        self.view.forget_holders()
        self._quiet_until = quiet_until

    def acquired(self, acquisition: Acquisition, since: float, lease: int, revision: int) -> None:
        """Report a transaction that has created the key of a holder, or found it under the lease.

        Args:
            acquisition: The address.
            since: time.time() in the key's value.
            lease: The id of the lease that the key is under.
            revision: The revision of the transaction.
        """
        name = acquisition.name
        if lease == self._own.lease:  # otherwise the revision may be one of a former history
            holding = Holding(acquisition.holder._replace(since=since), lease)
            self.view.note_acquired(name, holding, revision)
        self._catch_up()
        self._own.flights.end(name)
        self._due[name] = None

    def released(self, name: str) -> None:
        """Report a transaction after which the key of a holder is not this host's any more.

        The address is not acquired again before the stream of changes has shown that.
        """
        self._catch_up()
        if name in self._own.releasing:
            self._own.flights.await_change(name)
        else:
            self._own.flights.end(name)
            self._due[name] = None

    def refused(self, name: str, now: float) -> None:
        """Report a transaction that had no effect, or whose result is unknown.

        It is tried again after a second, if that is still right. If the address was to be released,
        rules() stays without it until the key of the holder is deleted.
        """
        self._catch_up()
        self._own.flights.fail(name, now + _RETRY, now + self._turn)
        self._alarms.set(name, now + _RETRY)

    # ---- what follows

    def rules(self) -> tuple[Rules, frozenset[Prefix]]:
        """Return the rules for the addresses of the segment, and the forced prefixes.

        What this host holds has leased rules. All others have `never` rules, so that no broader
        rule of this host answers for them.
        """
        self._catch_up()
        return self._own.rules()

    def decide(self, now: float) -> Decision:
        """Return what this host is to do now. There is nothing to do while keys are read."""
        if self.view.reading or not self.view.complete:
            return Decision([], [], None)
        self._catch_up()
        self._regroup(now)
        self._reserve(now)
        if self._quiet_until is not None and now >= self._quiet_until:
            self._quiet_until = None
            self._due |= dict.fromkeys(self._own.unheld)
        self._due |= dict.fromkeys(self._alarms.due(now))
        for name in list(islice(self._due, _JUDGED)):
            del self._due[name]
            self._judge(name, now)
        release = self._release_some(now)
        acquire = self._acquire_some(now)
        return Decision(acquire, release, self._again(now))

    def status(self, problem: str) -> SegmentStatus:
        """Return the status as of the last decision; another thread may call this.

        Args:
            problem: Why this host is no member; "" if it is one.
        """
        own = self._own
        return SegmentStatus(
            self._segment,
            self.joined,
            problem,
            sorted(self.view.members),
            self.view.shared,
            len(own.held),
            len(own.unheld),
            own.taken,
            own.given_up,
        )

    def addresses(self) -> Iterator[AddressState]:
        """Return all shared addresses, with those whose values are refused.

        Another thread may call this.
        """
        return address_states(self.view, self._candidates)

    # ---- changes

    def _catch_up(self) -> None:
        """Bring what is held in step with the keys, and note the names to judge."""
        changed, acquired = self._own.catch_up()
        self._due |= dict.fromkeys(changed)
        for name in changed:
            if name not in self._own.held:
                self._passed.discard(name)
            if name not in self._own.unheld and name not in self._own.releasing:
                self._window.discard(name)
        for name, flight in acquired.items():
            entry = self.view.entries[name]
            if flight.passed:
                move = entry.move_changed if entry.move in flight.passed else 0
                until = flight.until + passed_over.SECONDS
                self._passed.add(name, Passed(until, flight.passed, move))
        freed, self.view.freed = self.view.freed, set()
        for text in freed & self._blocked.keys():
            self._due[self._blocked.pop(text)] = None

    def _regroup(self, now: float) -> None:
        """Take hosts that have become or ceased to be candidates."""
        regrouped, self.view.regrouped = self.view.regrouped, {}
        arrived: list[str] = []
        departed = False
        for host in regrouped:
            is_member = host in self.view.members
            if host == self._host:
                is_member = self.joined and self._own.lease is not None
            able = is_member and host not in self.view.drained
            if able is (host in self._candidates):
                continue
            if host == self._host:
                self._able_since = now
                self._due |= dict.fromkeys((*self._own.held, *self._own.unheld))
            elif able:
                arrived.append(host)
            else:
                departed = True
            if able:
                self._candidates.add(host, now)
            else:
                self._candidates.remove(host)
        if departed:  # this host may be the first choice now
            self._due |= dict.fromkeys(self._own.unheld)
        if arrived:
            for name in (*self._own.held, *self._to_acquire):
                if self._is_overtaken(name, arrived):
                    self._due[name] = None

    def _is_overtaken(self, name: str, arrived: list[str]) -> bool:
        """Return True if a new candidate may get an address rather than this host."""
        entry = self.view.entries.get(name)
        address = entry.in_force if entry else None
        if entry is None or address is None:
            return False
        if entry.move in arrived:
            return True
        if entry.holding is not None and not address.failback:
            return False
        return any(self._candidates.precedes(host, self._host, name, address) for host in arrived)

    def _reserve(self, now: float) -> None:
        """Reserve the prefixes that a name has lost."""
        vacated, self.view.vacated = self.view.vacated, {}
        for prefix, (name, changed) in vacated.items():
            self._reservations.add(prefix, name, changed, now + self._turn)
        self._reservations.expire(now)

    # ---- one name

    def _judge(self, name: str, now: float) -> None:
        self._to_acquire.pop(name, None)
        self._to_release.pop(name, None)
        entry = self.view.entries.get(name)
        wait = self._own.flights.wait(name, now, releasing=name in self._own.releasing)
        if wait is not None:
            self._alarms.set(name, wait)
            return
        if entry is None:
            return
        if self._own.is_ours(entry):
            if name in self._own.releasing or self._is_to_go(name, entry, now):
                self._to_release[name] = None
        elif entry.holding is None and entry.in_force is not None:
            self._judge_unheld(name, entry, entry.in_force, now)

    def _is_to_go(self, name: str, entry: Entry, now: float) -> bool:
        """Return True if this host has to give up an address that it has."""
        address, holding = entry.in_force, entry.holding
        if address is None or holding is None or not has_prefix(entry, address):
            return True
        if not self._candidates.may_have(self._host, address):
            return True
        passed = self._passed.get(name, now)
        if passed.hosts:
            self._alarms.set(name, passed.until)
        if entry.move and entry.move_changed != passed.move:
            return entry.move != self._host and self._candidates.may_have(entry.move, address)
        if not address.failback or holding.holder.moved:
            return False
        since = self._candidates.since
        ahead = self._candidates.ahead(self._host, name, address)
        return any(passed.hosts.get(host) != since[host] for host in ahead)

    def _judge_unheld(self, name: str, entry: Entry, address: SharedAddress, now: float) -> None:
        """Acquire an address that no host holds, if it is this host's turn."""
        if self._quiet_until is not None or not self._candidates.may_have(self._host, address):
            return
        if str(address.prefix) in self.view.held_prefixes:  # by another name
            self._blocked[str(address.prefix)] = name
            return
        until = self._reservations.against(address.prefix, name, self.view.watched)
        if until:
            self._alarms.set(name, until)
            return
        if entry.unheld_since is None:
            entry.unheld_since = now
        begun = max(entry.unheld_since, self._able_since)
        passed: dict[str, float] = {}
        for host in self._candidates.ahead(self._host, name, address, entry.move):
            since = self._candidates.since[host]
            when = max(since + self._turn, begun + self._turn * (len(passed) + 1))
            if now < when:
                self._alarms.set(name, when)
                return
            passed[host] = since
        self._to_acquire[name] = passed

    # ---- doing

    def _release_some(self, now: float) -> list[str]:
        self._window.expire(now)
        release: list[str] = []
        for name in islice(self._to_release, self._rate.admitted(now)):
            address = self.view.entries[name].in_force
            if address is not None and self._candidates.has_other(self._host, address):
                if not self._window.admits(name):
                    break
                self._window.add(name, now + self._turn)
            release.append(name)
        for name in release:
            del self._to_release[name]
            self._own.give_up(name)
            self._own.flights.release(name, now + self._turn)
            self._alarms.set(name, now + self._turn)
        self._rate.charge(len(release))
        self._own.catch_up()
        return release

    def _acquire_some(self, now: float) -> list[Acquisition]:
        acquire: list[Acquisition] = []
        for name in list(islice(self._to_acquire, self._rate.admitted(now))):
            passed, entry = self._to_acquire.pop(name), self.view.entries[name]
            assert entry.address is not None
            moved = entry.move == self._host
            holder = Holder(self._host, 0.0, str(entry.address.prefix), moved)
            acquire.append(Acquisition(name, holder, entry.changed, moved))
            self._own.flights.acquire(name, now + self._turn, passed)
            self._alarms.set(name, now + self._turn)
        self._rate.charge(len(acquire))
        return acquire

    def _again(self, now: float) -> float | None:
        times = [self._alarms.first, self._quiet_until, now if self._due else None]
        if self._to_release:
            times.append(self._window.opens or self._rate.again(now))
        if self._to_acquire:
            times.append(self._rate.again(now))
        return min((each for each in times if each is not None), default=None)
