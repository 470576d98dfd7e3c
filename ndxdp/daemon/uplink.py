"""The life of an interface: answered on, kept in step with the network, announced.

Whatever reads or writes kernel objects runs in the one thread of an executor: pyroute2 cannot be
called where an event loop runs, and what changes an interface takes turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_
from typing import Any, TypeVar

from ndxdp.backoff import Retry
from ndxdp.config.model import Announce
from ndxdp.daemon import reconcile
from ndxdp.daemon.heartbeat import Heartbeats
from ndxdp.daemon.packet_loop import Userspace
from ndxdp.daemon.reconcile import Place
from ndxdp.daemon.resolver import Resolver
from ndxdp.daemon.shared_descriptors import Shared
from ndxdp.daemon.spec import Job
from ndxdp.daemon.upstream_tasks import AddressKeeper, Attendants
from ndxdp.errors import Damaged, InterfaceGone, ModeUnavailable, NdxdpError, gone, problem_of
from ndxdp.kernel.abi import Mode
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.netlink import links, names, onlink
from ndxdp.netlink.addresses import OwnAddress, link_local_address, own_addresses, owned_addresses
from ndxdp.netlink.fib import default_gateways
from ndxdp.netlink.links import Link
from ndxdp.netlink.onlink import OnLink
from ndxdp.rules import breadth
from ndxdp.rules.address_set import EMPTY, AddressSet
from ndxdp.rules.breadth import BroadRule
from ndxdp.rules.rule import DOCKER_ORIGIN
from ndxdp.rules.ruleset import Rules
from ndxdp.runtime.daemon_status import DaemonStatus
from ndxdp.session import detach, kernel_backend, modes, rename, userspace_backend
from ndxdp.session.link_neighbours import LinkNeighbours
from ndxdp.session.modes import NoMode, Step
from ndxdp.session.recovery import recover
from ndxdp.sockets.multicast import GroupMemberships
from ndxdp.sockets.packet import PacketSocket
from ndxdp.store.directories import Tree, Trees
from ndxdp.store.instance import Instance
from ndxdp.store.ownership import refuse_if_locked
from ndxdp.store.rule_changes import warn_of_neighbours
from ndxdp.upstream import deprecate
from ndxdp.upstream.gateways import NO_KEEPALIVE, Choice, choose

log = logging.getLogger(__name__)

_SOON = 1.0  # seconds between the beginnings of two attempts, whatever changes in between
_SLICE = 500  # groups: a fraction of a second
_LOOK = 5.0  # seconds between looks for what an unmount and a forced detachment say nothing of
_REMOVING = 0.2  # seconds for `rm -r` to end, of which each step is noticed
_SETTLE = 0.01  # seconds: changes come in bursts, and one look serves a burst
_RESTORE_PAUSE = 60.0  # seconds between restorations of what somebody keeps switching off

_T = TypeVar("_T")


@dataclass
class _Answering:
    """A program that is pinned in `tree` and answers, or the userspace path.

    leaves: nothing of it stays at an orderly end. held: what it needs as long as it answers.
    claim: that nobody else answers there. restored_at: when reception was restored last.
    check_groups: the kernel may have dropped groups that were joined.
    """

    tree: Tree
    instance: Instance
    ifindex: int
    packets: PacketSocket | None = None
    leaves: bool = False
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    claim: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    place: Place | None = None  # of its directory
    seen: tuple[object, ...] = ()
    on_link: OnLink | None = None
    gateways: frozenset[bytes] = frozenset()
    targets: dict[Profile, AddressSet] = field(default_factory=dict)
    care: Choice = NO_KEEPALIVE
    rules: Rules = field(default_factory=Rules)  # of the userspace path
    asks_kernel: bool = False
    keeps_shares: bool = False  # for gateways, so that their MACs are needed
    restored_at: float | None = None
    check_groups: bool = False


class Uplink:
    """Does a job until stop() is called. Of the loop's thread only.

    Whatever befalls its interface is logged and tried again; the daemon's other interfaces go on.

    Attributes:
        job: What is to be done.
        began: Set when the first attempt has succeeded or failed.
    """

    def __init__(
        self,
        trees: Trees,
        job: Job,
        executor: Executor,
        heartbeats: Heartbeats,
        ready: Callable[[Job, Instance | None], None],
        let_go: Callable[[], None],
        state: DaemonStatus,
        shared: Shared,
    ) -> None:
        """Do nothing until run().

        Args:
            trees: Where the state of interfaces is kept.
            job: What is to be done.
            executor: One thread, for all that reads or writes kernel objects.
            heartbeats: Writes the heartbeat of the interface, if the job wants one.
            ready: Called each time that answering has begun, without an instance where nothing is
                to be answered and only the addresses are kept.
            let_go: Called when answering has ended. Under another name the interface may be what
                another uplink waits for.
            state: What the daemon shows of itself, where problems are noted.
            shared: What all uplinks share.
        """
        self.job = job
        self._configured = job.interface  # an alternative name perhaps; the job has the real one
        self.began = asyncio.Event()
        self._trees, self._executor, self._ready = trees, executor, ready
        self._heartbeats = heartbeats
        self._let_go, self._state, self._shared = let_go, state, shared
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        # Whose events concern it; None for all. While it waits, those of the interface alone.
        self._ifindexes: frozenset[int] | None = None
        self._waiting = self._released = False
        self._beginning = Retry(log, self._changed.set)
        self._renewal = Retry(log, self._changed.set)
        self._rules = Retry(log, self._changed.set)
        self._following = Retry(log, self._changed.set)
        self._repair = Retry(log, self._changed.set)
        self._watching = Retry(log, self._changed.set)
        self._retries = (
            self._beginning,
            self._renewal,
            self._rules,
            self._following,
            self._repair,
            self._watching,
        )
        self._outcome: asyncio.Future[str] | None = None
        self._outcome_counts = False
        self._again = self._switching = self._unmet = self._interrupted = False
        self._answered = False  # since the last beginning
        self._own_links = frozenset[int]()
        self._containers: Rules | None = None
        self._stale_rules = self._look_again = False
        self._left_out: frozenset[BroadRule] = frozenset()
        self._compared: Rules | None = None

    # ---- what the daemon tells

    def stop(self) -> None:
        self._stop.set()

    def network_changed(self, concerns: frozenset[int] | None) -> None:
        """Follow a change of the network.

        Args:
            concerns: The interfaces that changed; None if routes did, or any may have.
        """
        if self._waiting:
            # Not the others: what happens to them makes no attempt succeed.
            index = names.index_of(self._configured)
            known = self._ifindexes or frozenset()
            if index and (index not in known or (concerns is not None and index in concerns)):
                self._changed.set()
        elif concerns is None or self._ifindexes is None or concerns & self._ifindexes:
            self._changed.set()

    def others_let_go(self) -> None:
        """Try again soon, if it waits: another uplink has let go of an interface."""
        if self._waiting:
            self._released = True
            self._changed.set()

    def links_interrupted(self, ifindexes: frozenset[int]) -> None:
        """Announce all addresses if this uplink's interface, or its bridge, is among these."""
        if ifindexes & self._own_links:
            self._interrupted = True
            self._changed.set()

    def set_containers(self, rules: Rules) -> None:
        """The rules for the containers that there are now."""
        if rules != self._containers:
            self._containers = rules
            self._write_rules()

    def set_job(self, job: Job) -> asyncio.Future[str]:
        """Do another job on the same interface; just what differs is touched.

        Returns:
            What keeps the job from being done, known once that has been tried; "" if it is in
            force. An interface that nothing was answered on before, or that has gone, is tried
            again later: that keeps no job from being in force.
        """
        self._settle("")
        job = replace(job, interface=self.job.interface)
        outcome = asyncio.get_running_loop().create_future()
        if job == self.job:
            outcome.set_result("")
            if not self._unmet:
                return outcome
        else:
            self._outcome = outcome
            self._outcome_counts = self._answered and not self._beginning.problem
        self._again = self._again or self._unmet or not job.same_but_rules(self.job)
        self._switching = self._switching or job.options.mode != self.job.options.mode
        self.job = job
        self._write_rules()
        self._try_now()
        return outcome

    @property
    def _gravity(self) -> int:
        """The level at which failures are logged: whoever has set a job logs those of that job."""
        return logging.ERROR if self._outcome is None else logging.DEBUG

    def _settle(self, problem: str) -> None:
        """Say whether the job that was set last is in force; "" if it is."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(problem)
        self._outcome = None

    def _write_rules(self) -> None:
        self._stale_rules = True
        self._rules.hurry()
        self._changed.set()

    # ---- its life

    async def run(self) -> None:
        """Do the job until stop().

        Raises:
            NdxdpError: It cannot begin, and the job is not patient.
        """
        self._loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            self._answered = False
            started, seen = time.monotonic(), await self._look_for()
            try:
                name = seen.name if seen else self._configured
                with self._shared.taking(name, self._configured):
                    self._take_name(name)
                    await self._answer()
                continue
            except InterfaceGone as error:
                self._raise_at_start(error)
                sentence = f"{error.message}; waiting for it"
                self._beginning.failed(error.message, sentence, logging.WARNING)
                self._settle("")
                seen = None
            except Exception as error:
                self._raise_at_start(error)
                problem = problem_of(error)
                self._beginning.failed(
                    problem, f"{self.job.interface}: {problem}; trying again later"
                )
                self._settle(problem if self._outcome_counts else "")
            self._note_problem()
            self.began.set()
            await self._wait_for_change(seen, 0 if self._answered else started + _SOON)
        if self.job.detach:
            await self._call(self._clean_up)

    def _take_name(self, name: str) -> None:
        """Do the job under the interface's name, whatever the configuration calls it."""
        if name == self.job.interface:
            return
        self._state.rename(self.job.interface, name)
        self.job = replace(self.job, interface=name)
        if name != self._configured:
            log.info("%s is another name of %s", self._configured, name)

    def _raise_at_start(self, error: Exception) -> None:
        """Raise an error if that is the end: at the start of a job that is not patient."""
        if self.began.is_set() or self.job.patient:
            return
        if isinstance(error, (NdxdpError, OSError)):
            raise error
        raise NdxdpError(problem_of(error), "--debug shows where; please report it") from error

    async def _answer(self) -> None:
        """From attaching to the end. InterfaceGone leaves rules and counters for the next time."""
        self._again = lost = False
        self._beginning.hurry()
        quiet = await self._call(self._quiet_link)
        if quiet is not None:
            await self._keep_addresses(quiet)
            return
        begun = await self._call(self._begin_anew)
        if begun is None:
            return
        said, answering = begun
        self._unmet = self._switching = False  # this is as the job wants it
        self._renewal.succeeded()
        try:
            while not self._stop.is_set() or answering is not said:
                with (
                    self._resolving(answering) as resolver,
                    self._path(answering, resolver) as path,
                ):
                    if said is not None and answering is not said:
                        # Not before its socket is read from, which holds little.
                        await self._call(partial(self._retire, said, answering))
                    if answering is not said:
                        said = answering
                        self._answered = True
                        self._note_problem()
                        self.began.set()
                        self._ready(self.job, answering.instance)
                    answering = await self._attend(answering, resolver, path)
        except InterfaceGone:
            lost = True
            raise
        finally:
            if said is not None and said is not answering:  # it is to answer on
                await self._call(partial(self._close, said))
            await self._call(partial(self._end, answering, lost=lost))
            if self._answered and not self._stop.is_set():
                self._let_go()

    async def _renewed(self, answering: _Answering) -> _Answering:
        """Return what answers as the job wants it now; until that is there, the old one does."""
        switching, self._again, self._switching, self._unmet = self._switching, False, False, False
        try:
            renewed = await self._call(partial(self._begin, answering, switching=switching))
        except InterfaceGone:
            raise
        except Exception as error:
            self._unmet, self._switching = True, self._switching or switching
            problem = f"{problem_of(error)}; it goes on as before"
            self._renewal.failed(problem, f"{self.job.interface}: {problem}", self._gravity)
            renewed = answering
        else:
            self._renewal.succeeded()
        self._note_problem()
        return renewed

    async def _attend(
        self, answering: _Answering, resolver: Resolver, path: Userspace | None
    ) -> _Answering:
        """Keep it in step until the end or another job; return what is to answer from then on."""
        link = await self._call(lambda: self._find(answering))

        def note_gateways(macs: frozenset[bytes]) -> None:
            resolver.gateways = macs
            if path is not None:
                path.set_gateways(macs)

        with (
            contextlib.ExitStack() as watched,
            contextlib.closing(GroupMemberships(answering.ifindex)) as groups,
            contextlib.closing(
                LinkNeighbours(
                    answering.instance.maps,
                    self._shared.fib,
                    self._shared.follow_neighbours,
                    note_gateways,
                )
            ) as neighbours,
        ):
            attendants = Attendants(self.job, link, self._trees.files.root, self._changed.set)
            attending = self._state.attending(
                self.job.interface, attendants.announced, attendants.gateways
            )
            try:
                with attending:
                    attendants.start(partial(self._notice_removal, answering))
                    async with self._beating(answering):
                        return await self._keep_in_step(
                            answering, groups, attendants, neighbours, watched
                        )
            finally:
                await attendants.leave()

    async def _keep_addresses(self, link: Link) -> None:
        """Keep the addresses of an interface that nobody solicits on, until the job changes."""
        name, job = self.job.interface, self.job
        self._ifindexes = frozenset((link.ifindex,))
        log.info("%s: nothing is answered there: %s", name, links.NO_MAC)
        for table, wanted in (
            ("announce", job.announce != Announce()),
            ("gateway", job.gateway.keep),
        ):
            if wanted:
                log.warning("%s: [interface.%s] does nothing there: %s", name, table, links.NO_MAC)
        keeper = AddressKeeper(job, link, self._trees.files.root, links.NO_MAC)
        try:
            with self._state.not_answering(name, links.NO_MAC):
                self.began.set()
                self._ready(job, None)
                self._settle("")
                async for _ in self._rounds():
                    if self.job != job:
                        return
                    present = await self._call(lambda: links.find_link(name))
                    if present is None or present.ifindex != link.ifindex:
                        raise gone(name)
                    keeper.look()
                    self._is_well(self._beginning)
        finally:
            await keeper.end()

    async def _keep_in_step(
        self,
        answering: _Answering,
        groups: GroupMemberships,
        attendants: Attendants,
        neighbours: LinkNeighbours,
        watched: contextlib.ExitStack,
    ) -> _Answering:
        """Follow the network and the job; return what is to answer from then on."""
        self._stale_rules = True
        self._changed.set()
        joined: dict[Profile, AddressSet] = {}
        place: Place | None = None
        async for _ in self._rounds():
            if self._repair.is_due:
                with self._going_on(self._repair):
                    if self._is_damaged(answering):
                        await asyncio.sleep(_REMOVING)
                        await self._call(partial(self._put_back, answering))
            if self._watching.is_due and not self._repair.problem:
                with self._going_on(self._watching):
                    place = self._watch(answering, place, watched)
            if self._look_again:
                self._look_again, answering.seen = False, ()
            link: Link | None = None
            # Rules that find no room do not keep the rest from being followed.
            if self._stale_rules and self._rules.is_due:
                with self._going_on(self._rules):
                    self._stale_rules = False
                    try:
                        link = await self._call(
                            partial(self._follow, answering, self._desired_by())
                        )
                    except Exception:
                        self._stale_rules = True
                        raise
            with self._going_on(self._following):
                # Before the rules are read, which may be many: a standby that takes over hurries.
                settings = await self._call(answering.instance.maps.settings)
                attendants.pause(settings.paused)
                if link is None:
                    link = await self._call(partial(self._follow, answering))
                if answering.check_groups:
                    answering.check_groups = False
                    if await self._call(groups.forget_lost):
                        joined = {}
                if answering.targets is not joined and await self._join(groups, answering.targets):
                    joined = answering.targets
                if self._interrupted:
                    self._interrupted = False
                    attendants.interrupt()
                neighbours.follow(link.l3_ifindex, answering.gateways, seek=answering.keeps_shares)
                attendants.look(link, answering.gateways, joined, answering.care)
                if self._renewal.is_due and not await self._call(partial(self._is_on, answering)):
                    log.warning(
                        "%s: somebody took the program off; attaching it again", self.job.interface
                    )
                    self._again = True
            self._is_well(self._beginning)
            if self._again:
                return await self._renewed(answering)
            if self._unmet and self._renewal.is_due:
                renewed = await self._renewed(answering)
                if renewed is not answering:
                    return renewed
            if not self._stale_rules or not self._rules.is_due:
                self._settle(self._renewal.problem or self._rules.problem)
        return answering

    @contextlib.asynccontextmanager
    async def _beating(self, answering: _Answering) -> AsyncIterator[None]:
        """Have heartbeats written, if the job wants them."""
        tree, instance, timeout = answering.tree, answering.instance, self.job.heartbeat_timeout
        if not timeout:
            with self._going_on(self._following):
                await self._call(partial(reconcile.beat, tree, instance, 0.0))
            yield
            return
        await self._call(partial(self._heartbeats.begin, tree, instance, timeout))
        try:
            yield
        finally:
            await self._call(partial(self._heartbeats.end, instance.interface))

    async def _join(
        self, groups: GroupMemberships, by_profile: Mapping[Profile, AddressSet]
    ) -> bool:
        """In slices; False if something else came in between, and there are more."""
        targets, more = reduce(or_, by_profile.values(), EMPTY), True
        while more and not self._changed.is_set() and not self._stop.is_set():
            more = await self._call(partial(groups.update, targets, _SLICE))
        return not more

    def _watch(
        self,
        answering: _Answering,
        place: Place | None,
        watched: contextlib.ExitStack,
    ) -> Place | None:
        """Notice what commands change, rules and pauses, and what somebody removes.

        Args:
            answering: What answers.
            place: The directory that is watched, as returned before.
            watched: Stops watching it.

        Returns:
            The directory that is watched now.
        """
        path = answering.tree.path(self.job.interface)
        found = reconcile.place_of(path)
        if found == place:
            return place

        def on_change() -> None:
            self._look_again = True
            self._changed.set()

        watched.close()
        try:
            watched.enter_context(self._shared.watching(path, on_change))
        except OSError as error:
            raise NdxdpError(
                f"changes by commands are not noticed (inotify: {error.strerror})",
                "raise fs.inotify.max_user_instances or fs.inotify.max_user_watches",
            ) from error
        return found

    async def _notice_removal(self, answering: _Answering) -> None:
        """Look now and then whether program, pins and files are there."""
        while True:
            await asyncio.sleep(_LOOK)
            with contextlib.suppress(InterfaceGone):
                if not self._is_damaged(answering) and await self._call(
                    partial(self._is_on, answering)
                ):
                    continue
            self._changed.set()

    @contextlib.contextmanager
    def _going_on(self, retry: Retry) -> Iterator[None]:
        """Log what fails, and try it again later; answering goes on. InterfaceGone ends it."""
        try:
            yield
        except InterfaceGone:
            raise
        except Exception as error:
            problem = f"not in step: {problem_of(error)}"
            known = any(other.problem == problem for other in self._retries if other is not retry)
            level = logging.DEBUG if known else self._gravity
            retry.failed(problem, f"{self.job.interface} is {problem}", level)
            self._note_problem()
        else:
            self._is_well(retry)

    def _is_well(self, retry: Retry) -> None:
        problem = retry.problem
        if retry.succeeded():
            level = min(self._gravity, logging.INFO)
            log.log(level, "%s is well again, after: %s", self.job.interface, problem)
            self._note_problem()

    def _note_problem(self) -> None:
        """Report the gravest problem at present, if any, and whether the interface is answered."""
        problems = [retry.problem for retry in self._retries if retry.problem]
        answered = self._answered and not self._beginning.problem
        problem = problems[0] if problems else ""
        self._state.note_problem(self.job.interface, problem, answered=answered)

    def _try_now(self) -> None:
        self._beginning.hurry()
        self._changed.set()

    async def _rounds(self) -> Any:
        """Yield once for each burst of changes, until the end."""
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            while not self._stop.is_set():
                changing = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait({changing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                changing.cancel()
                if self._changed.is_set() and not self._stop.is_set():
                    await asyncio.sleep(_SETTLE)
                    self._changed.clear()
                    yield
        finally:
            stopping.cancel()

    async def _wait_for_change(self, seen: Link | None, earliest: float) -> None:
        """Wait until an attempt may succeed, or for the end.

        That is when the pause is over, when another uplink has let go of an interface, and when
        there is an interface of the name that is not as the last attempt found it. Each attempt
        changes other things itself, of which the kernel sends messages; and so do others, to whom
        this is not to listen.

        Args:
            seen: The interface as the last attempt found it; None if there was none.
            earliest: When the next attempt may begin at the earliest, in s of time.monotonic().
        """
        self._waiting, self._released = True, False
        self._ifindexes = frozenset((seen.ifindex,) if seen else ())
        self._changed.set()
        try:
            async for _ in self._rounds():
                if self._beginning.is_due:
                    return
                link = await self._look_for()
                if link is None or (link == seen and not self._released):
                    continue
                self._released = False
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), earliest - time.monotonic())
                try:
                    await self._call(self._look)
                    return
                except Exception as error:
                    log.debug("not yet: %s", error)
                seen, self._ifindexes = link, frozenset((link.ifindex,))
        finally:
            self._waiting = False

    async def _look_for(self) -> Link | None:
        """Return the interface, without what this process and the cable change; None if absent."""
        try:
            link = await self._call(partial(links.find_link, self._configured))
        except Exception as error:
            log.debug("not seen: %s", error)
            return None
        if link is None:
            return None
        return link._replace(allmulti=False, mcast_router=0, operational=False, carrier_ups=0)

    async def _call(self, function: Callable[[], _T]) -> _T:
        """Call a function in the executor's thread; uplinks take turns, as nothing queues there."""
        async with self._shared.turn:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    # ---- beginning and ending, in the executor's thread

    def _look(self) -> None:
        """NdxdpError if the interface is not there, or a process answers there by another name."""
        if self._quiet_link() is not None:
            return
        with contextlib.suppress(ModeUnavailable):
            rename.settle(self._trees.pins, self.job.interface)
        links.answering_link(self.job.interface, down=self._may_be_down)

    def _quiet_link(self) -> Link | None:
        """Return the interface if nobody solicits there, and the job wants nothing answered.

        NdxdpError if nobody solicits there, and the job has rules, or nothing to do at all. What an
        earlier job changed of its addresses is restored then.
        """
        name, job = self.job.interface, self.job
        link = links.find_link(name)
        if link is None or links.has_mac(link):
            return None
        has_rules = bool(job.rules) or bool(job.selectors)
        if job.addresses.deprecate and not has_rules:
            return link
        deprecate.restore(self._trees.files.root, name)
        if job.addresses.deprecate:
            raise NdxdpError(
                f"{name} has no MAC address: no router solicits there, and its rules answer"
                " nothing",
                "remove its [[interface.prefix]] and [[interface.docker]]: then its"
                " [interface.addresses] works",
            )
        return None

    @property
    def _may_be_down(self) -> bool:
        """True if the interface is answered on while it is down, ready for when it comes up."""
        return self.job.patient or self.began.is_set()

    def _begin_anew(self) -> tuple[_Answering | None, _Answering] | None:
        """Return a program that was attached before, to be retired, and what answers now.

        The former is there only if the job wants a process to answer; programs are renewed.
        Return None if it is to stop: others may have had their turns before, and taken long.
        """
        if self._stop.is_set():
            return None
        self._look()
        left = self._left_program()
        with contextlib.ExitStack() as undo:
            if left is not None:
                undo.enter_context(left.claim)
                undo.enter_context(left.held)
            answering = self._begin(left, switching=left is not None)
            undo.pop_all()
        return left, answering

    def _left_program(self) -> _Answering | None:
        """Return the program that `attach` or an earlier daemon left, if a process is to answer.

        A command line refuses it: what is attached there is meant to stay.
        """
        job, tree = self.job, self._trees.pins
        if job.options.mode is not Mode.USERSPACE or not job.patient:
            return None
        try:
            tree.check()
        except ModeUnavailable:
            return None
        if not tree.path(job.interface).is_dir():
            return None
        with contextlib.ExitStack() as held, contextlib.ExitStack() as claim:
            with tree.lock():
                refuse_if_locked(tree, job.interface)
                try:
                    program = held.enter_context(recover(tree, job.interface))
                except Damaged:
                    return None
                settings = program.maps.settings()
                if not program.is_attached(settings):
                    return None
                claim.enter_context(tree.locked(job.interface))
            left = _Answering(tree, program, settings.ifindex)
            left.held, left.claim = held.pop_all(), claim.pop_all()
            return left

    def _begin(self, before: _Answering | None, *, switching: bool) -> _Answering:
        """Begin to answer by a program if one can be had, else from userspace.

        before: what answers now, to be retired once this does. switching: in another mode.
        """
        job, steps = self.job, list[Step]()
        claimed = before.tree if before else None
        with contextlib.ExitStack() as held, contextlib.ExitStack() as claim:
            answering = None
            if job.options.mode is not Mode.USERSPACE:
                try:
                    answering = self._attach(held, claim, claimed, switching)
                except ModeUnavailable as error:
                    if job.options.mode is not None or job.insist:
                        raise
                    steps = error.steps if isinstance(error, NoMode) else modes.all_of(error)
            if answering is None:
                answering = self._open_userspace(steps, held, claim, claimed)
            answering.held = held.pop_all()
            kept = before.claim if before and before.tree is answering.tree else claim
            answering.claim = kept.pop_all()
            answering.place = reconcile.place_of(answering.tree.path(job.interface))
            return answering

    def _attach(
        self,
        held: contextlib.ExitStack,
        claim: contextlib.ExitStack,
        claimed: Tree | None,
        switching: bool,
    ) -> _Answering:
        job, trees = self.job, self._trees
        instance = kernel_backend.attach_interface(
            trees,
            job.interface,
            job.options,
            self._admitted(links.find_link(job.interface)),
            owned_source=job.origin,
            keep=job.keep,
            holding=claim,
            down=self._may_be_down,
            claimed=claimed,
            # What an earlier daemon left in another mode than the file names is not what is wanted.
            switch=switching or (job.patient and job.options.mode is not None),
            force=True,
        )
        held.callback(instance.close)
        answering = _Answering(trees.pins, instance, instance.maps.settings().ifindex)
        answering.leaves = not job.keep
        try:
            with links.interface_errors(job.interface):
                held.enter_context(self._shared.allmulti.enabled(answering.ifindex))
        except BaseException as error:
            lost = isinstance(error, InterfaceGone)
            if lost or not job.keep:
                self._leave(answering, lost=lost)
            # What is kept has the interface's flag. The membership only helps while somebody
            # else has switched that off.
            if lost or not job.keep or not isinstance(error, NdxdpError):
                raise
        return answering

    def _open_userspace(
        self,
        steps: list[Step],
        held: contextlib.ExitStack,
        claim: contextlib.ExitStack,
        claimed: Tree | None,
    ) -> _Answering:
        job, trees = self.job, self._trees
        link = links.answering_link(job.interface, down=self._may_be_down)
        try:
            with links.interface_errors(job.interface):
                packets = PacketSocket(link.ifindex)
        except ModeUnavailable as error:
            if not steps:
                raise
            steps = [*steps, modes.step(Mode.USERSPACE, error)]
            hint = (
                "run this as root, or with CAP_NET_RAW;"
                " with CAP_BPF and CAP_NET_ADMIN for a program"
            )
            raise NoMode(job.interface, steps, hint) from error
        held.callback(packets.close)
        instance = userspace_backend.serve_interface(
            trees,
            job.interface,
            job.options,
            self._admitted(link),
            owned_source=job.origin,
            steps=steps,
            holding=claim,
            down=self._may_be_down,
            claimed=claimed,
        )
        held.callback(instance.close)
        if steps:
            log.warning("answering from userspace (%s)", "; ".join(modes.told(steps)))
        return _Answering(trees.files, instance, link.ifindex, packets, leaves=True)

    def _retire(self, before: _Answering, now: _Answering) -> None:
        """Close what answered before; a program is taken off if now a process answers."""
        with before.claim, before.held:
            if before.tree is not now.tree and before.packets is None:
                self._leave(before, lost=False)

    @staticmethod
    def _close(answering: _Answering) -> None:
        """Close what answers, without taking it off."""
        with answering.claim, answering.held:
            pass

    def _end(self, answering: _Answering, *, lost: bool) -> None:
        leaves = answering.leaves or (self._stop.is_set() and self.job.detach)
        with answering.claim, answering.held:
            if not (lost or leaves):  # no daemon restores it any more
                with contextlib.suppress(NdxdpError, OSError):
                    self._put_back(answering)
                with contextlib.suppress(NdxdpError, OSError):
                    self._restore(answering, self._find(answering), at_once=True)
            if lost or leaves:
                self._leave(answering, lost=lost)

    @staticmethod
    def _leave(answering: _Answering, *, lost: bool) -> None:
        """Take everything off; what was lost leaves its rules for when it is back."""
        tree, instance = answering.tree, answering.instance
        with tree.lock_if_usable(urgent=True):
            if lost:
                detach.let_go(tree, instance)
            else:
                detach.release(tree, instance)

    def _clean_up(self) -> None:
        with contextlib.suppress(NdxdpError):  # there may be nothing left
            detach.detach_interface(self._trees, self.job.interface)

    @contextlib.contextmanager
    def _resolving(self, answering: _Answering) -> Iterator[Resolver]:
        """Keep the resolver at work; the program makes requests for as long."""
        wanted, maps = self.job.resolve, answering.instance.maps
        with links.interface_errors(self.job.interface):
            resolver = Resolver(
                answering.ifindex, maps, wanted, self._shared.fib, self._shared.sender
            )
        with contextlib.closing(resolver):
            solicits = self.job.gateway.keep or self.job.announce.solicit_gateway
            reconcile.let_request(answering.tree, answering.instance, wanted, solicits=solicits)
            try:
                yield resolver
            finally:
                reconcile.let_request(answering.tree, answering.instance, None)

    @contextlib.contextmanager
    def _path(self, answering: _Answering, resolver: Resolver) -> Iterator[Userspace | None]:
        """The userspace path at work, if it is that which answers."""
        if answering.packets is None:
            yield None
            return
        loop, packets = asyncio.get_running_loop(), answering.packets
        path = Userspace(
            answering.instance.maps,
            packets,
            self._shared.fib,
            unresolved=resolver.ask_for,
            flooded=lambda: loop.run_in_executor(self._executor, packets.spread),
        )
        loop.add_reader(packets.fileno(), path.on_readable)
        try:
            yield path
        finally:
            loop.remove_reader(packets.fileno())
            path.finish()  # what is in the queues came before whoever answers now

    # ---- keeping in step, in the executor's thread

    def _on_link(self, link: Link | None) -> OnLink:
        """Return what is on-link at the interface, if any rule of the job's depends on it."""
        if link is None or not breadth.has_candidates(self.job.rules, self.job.forced):
            return OnLink()
        return onlink.read((link.ifindex, link.master))

    def _admitted(self, link: Link | None, here: OnLink | None = None) -> Rules:
        """Return the job's rules, with a hole for each that answers for other nodes of the link.

        The on-link prefix may come later, by a router advertisement, so a configuration's rule is
        left out and not refused.

        Raises:
            NdxdpError: a command line's rule is such, at the start.
        """
        job = self.job
        if here is None:
            here = self._on_link(link)
        if link is not None and job.rules is not self._compared:
            self._compared = job.rules
            warn_of_neighbours(job.interface, link.l3_ifindex, job.rules)
        found = frozenset(breadth.covering(job.rules, here.prefixes, job.forced))
        for broad in sorted(found - self._left_out, key=lambda broad: broad.prefix):
            behind = onlink.behind(broad.prefix, here.ifindexes)
            if not job.patient and not self.began.is_set():
                raise broad.error(job.interface, behind)
            sentence, hint = broad.sentence(job.interface), broad.hint(behind, in_file=job.patient)
            log.error("%s: left out: %s (%s)", job.interface, sentence, hint)
        for broad in self._left_out - found:
            log.info("%s: %s is no longer left out", job.interface, broad.prefix)
        self._left_out = found
        return breadth.leave_out(job.rules, found) if found else job.rules

    def _desired_by(self) -> dict[str, Rules]:
        """Return what the rules of our sources should be."""
        desired_by = {self.job.origin: self.job.rules}
        if self._containers is not None:
            desired_by[DOCKER_ORIGIN] = self._containers
        elif not self.job.selectors:
            desired_by[DOCKER_ORIGIN] = Rules()
        return desired_by

    def _find(self, answering: _Answering) -> Link:
        link = links.find_link(self.job.interface)
        if link is None or link.ifindex != answering.ifindex:
            raise gone(self.job.interface)
        # Where a route leads may change with any interface.
        self._own_links = frozenset((link.ifindex, link.master, link.lower)) - {0}
        self._ifindexes = None if answering.asks_kernel else self._own_links
        return link

    def _follow(self, answering: _Answering, desired_by: Mapping[str, Rules] | None = None) -> Link:
        """Look at the network, and write what has changed: holes, MAC, link-local address.

        desired_by: the rules of our sources, if these are to be written, too.
        """
        link = self._find(answering)
        self._restore(answering, link)
        owned = owned_addresses(link)
        link_local = link_local_address(link.ifindex)
        above, own = self._above(link)
        here = self._on_link(link)
        if here != answering.on_link and desired_by is None:
            answering.on_link = here
            self._loop.call_soon_threadsafe(self._write_rules)
        seen = (link.mac, link_local, above.ifindex, above.mac, owned, own)
        if seen != answering.seen or desired_by is not None:
            answering.seen = ()  # where something fails, the next look does it again
            if desired_by is not None:
                desired_by = {**desired_by, self.job.origin: self._admitted(link, here)}
            reconcile.apply_host(answering.tree, answering.instance, link, link_local)
            rules = reconcile.apply_rules(answering.tree, answering.instance, owned, desired_by)
            answering.gateways = frozenset(
                default_gateways(link.ifindex) | default_gateways(above.ifindex)
            )
            answering.care = NO_KEEPALIVE
            if self.job.gateway.keep:
                settings = answering.instance.maps.settings()
                answering.care = choose(
                    self.job.gateway.source, link, above, own, rules, paused=settings.paused
                )
            targets: dict[Profile, AddressSet] = {}
            for rule, addresses in rules.exact.items():
                if rule.answer in (Answer.ALWAYS, Answer.LOCAL) and not rule.owned:
                    targets[rule.profile] = targets.get(rule.profile, EMPTY) | addresses
            answering.targets = targets
            if answering.packets is not None:
                answering.rules = rules
            answering.asks_kernel = any(rule.answer.asks_kernel for rule in rules.distinct_rules)
            limited = bool(answering.instance.maps.settings().limits)
            answering.keeps_shares = answering.asks_kernel or limited
            answering.seen, answering.on_link, answering.check_groups = seen, here, True
        if answering.asks_kernel:
            self._ifindexes = None
        reconcile.note_tables(answering.tree, answering.instance)
        return link

    def _above(self, link: Link) -> tuple[Link, tuple[OwnAddress, ...]]:
        """Return the interface that has the host's addresses, and these; for gateway care only.

        The lifetimes are left out: they change with each router advertisement.
        """
        above = link
        if link.l3_ifindex != link.ifindex:
            with contextlib.suppress(OSError):  # the master went just now
                above = links.find_link(socket.if_indextoname(link.l3_ifindex)) or link
        if not self.job.gateway.keep:
            return above, ()
        found = own_addresses(above.ifindex)
        return above, tuple(own._replace(preferred=0, valid=0) for own in found)

    def _restore(self, answering: _Answering, link: Link, *, at_once: bool = False) -> None:
        """Switch on again what lets solicitations in, once in _RESTORE_PAUSE at most.

        Another program that switches it off each time gets one warning and no race. allmulti
        stays on in between, by the membership that this process has.
        """
        before, now = answering.restored_at, time.monotonic()
        if before is not None and now - before < _RESTORE_PAUSE and not at_once:
            return
        restored = reconcile.restore_reception(
            answering.tree, answering.instance, link, allmulti=not answering.leaves
        )
        if not restored:
            return
        answering.restored_at = now
        level = logging.WARNING if before is None else logging.DEBUG
        log.log(
            level,
            "%s: somebody switched off %s, which lets solicitations in; it is on again",
            link.name,
            " and ".join(restored),
        )
        self._loop.call_soon_threadsafe(self._loop.call_later, _RESTORE_PAUSE, self._changed.set)

    def _is_on(self, answering: _Answering) -> bool:
        """Return True unless somebody has taken the program off; InterfaceGone without one."""
        instance = answering.instance
        if answering.packets is not None or instance.is_attached(instance.maps.settings()):
            return True
        self._find(answering)
        return False

    def _is_damaged(self, answering: _Answering) -> bool:
        return reconcile.is_damaged(
            answering.tree, answering.instance, answering.place, link=not answering.leaves
        )

    def _put_back(self, answering: _Answering) -> None:
        """Put back pins or files that somebody has removed, and hold them again."""
        if not self._is_damaged(answering):
            return
        tree, interface = answering.tree, self.job.interface
        is_new = reconcile.repair(
            tree, answering.instance, answering.rules, answering.place, link=not answering.leaves
        )
        answering.place = reconcile.place_of(tree.path(interface))
        if is_new:
            answering.claim.close()
            answering.claim.enter_context(tree.locked(interface))
        log.warning("%s: somebody removed %s; it is there again", interface, tree.path(interface))
