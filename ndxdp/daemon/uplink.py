"""An uplink: one interface of the daemon, from the first attempt to answer to the end.

Its states:

- waiting for the interface, or for the next attempt;
- answering, and following the network: a renewal replaces the attachment within this state;
- keeping addresses deprecated, on an interface without a MAC.

Functions that read or write kernel objects run in the one thread of an executor, where they take
turns: pyroute2 cannot be called in a thread with an event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ndxdp.daemon.admission import Admission
from ndxdp.daemon.heartbeat import Heartbeats
from ndxdp.daemon.lifecycle import Answering, Lifecycle
from ndxdp.daemon.link_index import LinkIndex
from ndxdp.daemon.packet_loop import PacketLoop
from ndxdp.daemon.quiet_interface import keep_addresses
from ndxdp.daemon.resolver import Resolver
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import InterfaceSpec
from ndxdp.daemon.synchronisation import Synchronisation
from ndxdp.daemon.uplink_lease import UplinkLease
from ndxdp.daemon.uplink_state import Health, UplinkState
from ndxdp.daemon.waiting import ATTEMPT_PERIOD, Waiting
from ndxdp.daemon.wanted_rules import WantedRules
from ndxdp.errors import InterfaceGone, NdxdpError, problem_of
from ndxdp.netlink.links import Link
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.store.directories import Trees
from ndxdp.store.instance import Instance

log = logging.getLogger(__name__)


class Uplink:
    """Answers on one interface until stop() is called.

    Call the methods in the event loop's thread. A failure is logged and retried, and does not
    affect the daemon's other interfaces.

    Attributes:
        began: Set when the first attempt to answer has succeeded or failed, or there will be none.
    """

    def __init__(
        self,
        trees: Trees,
        spec: InterfaceSpec,
        shared: Shared,
        heartbeats: Heartbeats,
        status: DaemonStatus,
        ready: Callable[[InterfaceSpec, Instance | None], None],
        released: Callable[[], None],
        index: LinkIndex[Uplink],
        may_join: Callable[[], None] = lambda: None,
    ) -> None:
        """Do nothing until run().

        Args:
            trees: Where the state of interfaces is kept.
            spec: The interface's specification.
            shared: What all uplinks share.
            heartbeats: Writes the heartbeat of the interface, if the specification wants one.
            status: The daemon's status, where problems are noted.
            ready: Called with the instance each time that answering begins; with None where the
                daemon only keeps addresses.
            released: Called when answering has ended. Another uplink may wait for this interface
                under another name.
            index: Notes the links whose changes concern this uplink.
            may_join: Called when `lease.may_join` has changed.
        """
        self.began = asyncio.Event()
        self._configured = spec.interface  # perhaps an alternative name; the state has the real one
        changed = asyncio.Event()
        health = Health(spec.interface, status, changed.set)
        note_links = partial(index.assign, self)
        self._state = UplinkState(spec, health, changed, asyncio.Event(), note_links)
        self._waiting = Waiting(self._state, shared)
        self._admission = Admission()
        self._lifecycle = Lifecycle(trees, shared, self._admission)
        self._directory = trees.files.root
        self._shared, self._heartbeats, self._status = shared, heartbeats, status
        self._ready, self._released = ready, released
        self._lease = UplinkLease(self._state, shared.lease, self.began, may_join)
        self._unmet = False  # the specification is not in force yet
        self._switching = False  # the program's mode has to change
        self._outcome: asyncio.Future[str] | None = None  # of the last set_spec()
        self._outcome_counts = False  # set_spec() reports a failure: the interface answered before
        self._is_new_spec = False  # set_spec() came after the present attempt had begun

    # ---- events

    @property
    def spec(self) -> InterfaceSpec:
        """The present specification, with the interface's real name."""
        return self._state.spec

    def stop(self) -> None:
        """End answering, and return from run(); answer for shared addresses no more, at once."""
        self._state.stop.set()
        self._lease.forbid()

    def network_changed(self) -> None:
        """Follow changes of this uplink's links."""
        self._state.changed.set()

    def name_changed(self) -> None:
        """Look for the interface if this uplink waits: a link has its name now, or had it."""
        if self._waiting.is_active:
            self._state.changed.set()

    def other_released(self) -> None:
        """Try again soon if this uplink waits: another one has released an interface."""
        self._waiting.other_released()

    def link_interrupted(self) -> None:
        """Announce all addresses again: one of this uplink's links was interrupted."""
        if not self._waiting.is_active:
            self._state.pending.announcement = True
            self._state.changed.set()

    @property
    def rules(self) -> WantedRules:
        """The rules of containers, of etcd and of a share that the interface gets."""
        return self._state.wanted

    @property
    def lease(self) -> UplinkLease:
        """The interface's part in the shared addresses of its segments."""
        return self._lease

    @property
    def may_announce(self) -> bool:
        """True if answers are sent: the interface has a carrier, and answering is not paused."""
        return self._state.health.answered and self._state.reachable

    def set_spec(self, spec: InterfaceSpec) -> asyncio.Future[str]:
        """Take another specification for the same interface; apply only the difference.

        Returns:
            A future: "" once the specification is in force, otherwise the reason why it is not. If
            the interface is absent or did not answer before, the result is "", and the uplink
            retries later.
        """
        state = self._state
        self._settle("")
        spec = replace(spec, interface=state.spec.interface)
        outcome = asyncio.get_running_loop().create_future()
        if spec == state.spec:
            outcome.set_result("")
            if not self._unmet:
                return outcome
        else:
            self._outcome = outcome
            state.health.level = logging.DEBUG  # the caller logs failures
            self._outcome_counts = state.health.answered and not state.health.beginning.problem
        if self._unmet or not spec.same_but_rules(state.spec):
            state.pending.attachment = True
        self._switching = self._switching or spec.options.mode != state.spec.options.mode
        self._is_new_spec = True
        state.spec = spec
        state.write_rules()
        state.health.beginning.hurry()
        return outcome

    def _settle(self, problem: str) -> None:
        """Set the result of the last set_spec(): the problem, or "" if there is none."""
        self._is_new_spec = False
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(problem)
        self._outcome = None
        self._state.health.level = logging.ERROR

    # ---- attempts

    async def run(self) -> None:
        """Answer until stop().

        Raises:
            NdxdpError: Answering cannot begin, and the specification is not patient.
        """
        try:
            await self._run()
        finally:
            self.began.set()

    async def _run(self) -> None:
        state = self._state
        while not state.stop.is_set():
            state.health.answered = self._is_new_spec = False
            started, seen = time.monotonic(), await self._waiting.find()
            try:
                name = seen.name if seen else self._configured
                with self._shared.reserving(name, self._configured):
                    self._take_name(name)
                    await self._answer()
                continue
            except InterfaceGone as error:
                self._raise_at_start(error)
                sentence = f"{error.message}; waiting for it"
                # An interface that matches a pattern may go at any time.
                level = logging.DEBUG if state.spec.pattern else logging.WARNING
                state.health.beginning.failed(error.message, sentence, level)
                self._settle("")
                seen = None
            except Exception as error:
                self._raise_at_start(error)
                if self._is_new_spec:  # the failure says nothing about it
                    continue
                problem = problem_of(error)
                sentence = f"{state.spec.interface}: {problem}; trying again later"
                state.health.beginning.failed(problem, sentence)
                self._settle(problem if self._outcome_counts else "")
            state.health.show()
            self.began.set()
            earliest = 0 if state.health.answered else started + ATTEMPT_PERIOD
            await self._waiting.until_change(seen, earliest, self._check)
        if state.spec.detach:
            await self._shared.call(partial(self._lifecycle.detach, state.spec))

    def _take_name(self, name: str) -> None:
        """Use the interface's real name, where the configuration has an alternative one."""
        state = self._state
        if name == state.spec.interface:
            return
        self._status.rename(state.spec.interface, name)
        state.spec = replace(state.spec, interface=name)
        state.health.interface = name
        if name != self._configured:
            log.info("%s is another name of %s", self._configured, name)

    def _raise_at_start(self, error: Exception) -> None:
        """Raise an error of the first attempt, if the specification is not patient."""
        if self._is_patient:
            return
        if isinstance(error, (NdxdpError, OSError)):
            raise error
        raise NdxdpError(problem_of(error), "--debug shows where; please report it") from error

    @property
    def _is_patient(self) -> bool:
        """True if run() waits for an interface on which ndxdp cannot answer yet."""
        return self._state.spec.patient or self.began.is_set()

    def _check(self) -> None:
        self._lifecycle.check(self._state.spec, patient=self._is_patient)

    # ---- answering

    async def _answer(self) -> None:
        """Attach, and answer until the end.

        Raises:
            InterfaceGone: The interface has disappeared; its directory keeps rules and counters.
        """
        state, call, lifecycle = self._state, self._shared.call, self._lifecycle
        # Before the specification is read: a reload during the attach is put in force afterwards.
        state.pending.attachment = self._unmet = self._switching = self._is_new_spec = False
        lost = False
        state.health.beginning.hurry()
        spec = state.spec
        begun = await call(partial(self._begin, spec))
        if begun is None:
            return
        if isinstance(begun, Link):
            await keep_addresses(
                state, spec, begun, self._shared, self._status, self._directory, self._kept
            )
            return
        active, sync = begun[0], self._synchronisation(begun[1])
        state.health.renewal.succeeded()
        try:
            while not state.stop.is_set() or sync.answering is not active:
                answering = sync.answering
                with (
                    lifecycle.resolving(state.spec, answering) as resolver,
                    lifecycle.packet_loop(answering, resolver) as packet_loop,
                ):
                    # Start the new packet loop before the former attachment ends: the queue of
                    # the new socket is short.
                    self._lease.begin(answering.session.maps)
                    if active is not None and answering is not active:
                        await call(partial(lifecycle.retire, active, answering))
                    if answering is not active:
                        active = answering
                        state.health.answered = True
                        state.health.show()
                        self.began.set()
                        self._ready(state.spec, answering.session.instance)
                    sync = await self._follow(sync, resolver, packet_loop)
        except InterfaceGone:
            lost = True
            raise
        finally:
            self._lease.end()
            if active is not None and active is not sync.answering:
                await call(active.close)
            await call(partial(self._end, sync, lost=lost))
            if state.health.answered and not state.stop.is_set():
                self._released()

    def _kept(self) -> None:
        """Note that the interface has no MAC, so that the daemon only keeps its addresses."""
        self.began.set()
        self._ready(self._state.spec, None)
        self._settle("")

    def _begin(self, spec: InterfaceSpec) -> tuple[Answering | None, Answering] | Link | None:
        """Begin to answer.

        Args:
            spec: The interface's specification.

        Returns:
            What Lifecycle.begin() returns; the interface if only its addresses are kept; None if
            this uplink was stopped while it waited for its turn.
        """
        if self._state.stop.is_set():
            return None
        quiet = self._lifecycle.quiet_link(spec)
        if quiet is not None:
            return quiet
        return self._lifecycle.begin(spec, patient=self._is_patient)

    def _end(self, sync: Synchronisation, *, lost: bool) -> None:
        """End the attachment; if it outlives this process, repair pins and reception settings."""
        detach = self._state.stop.is_set() and self._state.spec.detach
        answering = sync.answering
        try:
            if not (lost or detach or answering.ends_with_process):
                sync.follower.repair_at_end()
        finally:
            self._lifecycle.end(answering, lost=lost, detach=detach)

    def _synchronisation(self, answering: Answering) -> Synchronisation:
        return Synchronisation(self._state, answering, self._admission, self._shared)

    async def _follow(
        self, sync: Synchronisation, resolver: Resolver, packet_loop: PacketLoop | None
    ) -> Synchronisation:
        """Follow network and specification until the end or a renewal.

        Returns:
            The synchronisation of the attachment that answers from then on.
        """
        state, health = self._state, self._state.health
        async with sync.running(
            resolver, packet_loop, self._heartbeats, self._status, self._directory
        ):
            state.pending.rules = True
            state.changed.set()
            async for _ in state.rounds():
                await sync.round()
                self._lease.round_ended()
                health.succeeded(health.beginning)
                if state.pending.attachment:
                    return await self._renewed(sync)
                if self._unmet and health.renewal.is_due:
                    renewed = await self._renewed(sync)
                    if renewed is not sync:
                        return renewed
                if not state.pending.rules or not health.rules.is_due:
                    self._settle(health.renewal.problem or health.rules.problem)
        return sync

    async def _renewed(self, sync: Synchronisation) -> Synchronisation:
        """Renew the attachment as the specification wants it; after a failure, keep the former."""
        state, health = self._state, self._state.health
        switch, self._switching, self._unmet = self._switching, False, False
        state.pending.attachment = False
        renew = partial(
            self._lifecycle.renew,
            state.spec,
            sync.answering,
            switch=switch,
            patient=self._is_patient,
        )
        try:
            renewed = self._synchronisation(await self._shared.call(renew))
        except InterfaceGone:
            raise
        except Exception as error:
            self._unmet, self._switching = True, self._switching or switch
            problem = f"{problem_of(error)}; answering continues as before"
            health.renewal.failed(problem, f"{state.spec.interface}: {problem}", health.level)
            renewed = sync
        else:
            health.renewal.succeeded()
        health.show()
        return renewed
