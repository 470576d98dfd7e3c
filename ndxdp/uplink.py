"""One interface, from its appearance to its end: answered on, in step with the network, announced.

Whatever reads or writes kernel objects runs in the one thread of an executor: pyroute2 cannot be
called where an event loop runs, and what changes an interface takes turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ndxdp import ladder, responder, serving
from ndxdp.config import Addresses, Announce, Gateway
from ndxdp.errors import InterfaceGone, ModeUnavailable, NdxdpError
from ndxdp.instance import Instance
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.pins import Tree, Trees
from ndxdp.ladder import NoMode, Step
from ndxdp.ndp import Answer
from ndxdp.plan import Options
from ndxdp.policy import (
    HOST_SOURCE,
    RUN_SOURCE,
    Difference,
    Prefix,
    Rules,
    difference,
    hold,
    hole,
)
from ndxdp.sources.docker import SOURCE as DOCKER_SOURCE
from ndxdp.sources.docker import Selector
from ndxdp.userspace import Userspace
from ndxdp.wire import netlink
from ndxdp.wire.announce import Announcements, Announcer
from ndxdp.wire.gateway import GatewayCare
from ndxdp.wire.hygiene import Hygiene
from ndxdp.wire.membership import Allmulti, Groups
from ndxdp.wire.netlink import Link
from ndxdp.wire.packet import PacketSocket

log = logging.getLogger(__name__)

_RETRY = 5.0  # seconds after a failure
_SETTLE = 0.01  # seconds: changes come in bursts, and one look serves a burst

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done on one interface.

    rules: those that the daemon was given, of `source`. keep: the program outlives the process.
    insist: and where no program can be had, that is an error. detach: it is taken off at the end
    all the same. patient: an interface that is not there is waited for from the start.
    selectors: of containers. heartbeat_timeout: s, after which dynamic rules lapse; 0 for never.
    """

    interface: str
    options: Options
    rules: Rules
    source: str = RUN_SOURCE
    keep: bool = False
    insist: bool = False
    detach: bool = True
    patient: bool = False
    selectors: tuple[Selector, ...] = ()
    heartbeat_timeout: float = 0.0
    announce: Announce = field(default_factory=Announce)
    gateway: Gateway = field(default_factory=Gateway)
    addresses: Addresses = field(default_factory=Addresses)

    def same_but_rules(self, other: Job) -> bool:
        """Nothing but rules and selectors differs, which are changed as it runs."""
        return replace(self, rules={}, selectors=()) == replace(other, rules={}, selectors=())


@dataclass
class _Answering:
    """What answers: a program that is pinned in `tree`, or the userspace path."""

    tree: Tree
    instance: Instance
    ifindex: int
    packets: PacketSocket | None = None
    seen: tuple[object, ...] = ()
    link: Link | None = None
    gateways: frozenset[bytes] = frozenset()
    targets: frozenset[bytes] = field(default_factory=frozenset)


class Uplink:
    """Does a job until stop() is called. Of the loop's thread only.

    ready: called each time that answering has begun. ifindexes: whose events concern it; None
    for all.
    """

    def __init__(
        self, trees: Trees, job: Job, executor: Executor, ready: Callable[[Job, Instance], None]
    ) -> None:
        self.job = job
        self.ifindexes: frozenset[int] | None = None
        self.began = asyncio.Event()
        self._trees, self._executor, self._ready = trees, executor, ready
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._again = False
        self._containers: Rules | None = None
        self._stale_rules = False

    # ---- what the daemon tells

    def stop(self) -> None:
        self._stop.set()

    def network_changed(self) -> None:
        self._changed.set()

    def set_containers(self, rules: Rules) -> None:
        """The rules for the containers that there are now."""
        if rules != self._containers:
            self._containers, self._stale_rules = rules, True
            self._changed.set()

    def set_job(self, job: Job) -> None:
        """Another job on the same interface: just what differs is touched."""
        if job == self.job:
            return
        mode = self.job.options.mode
        if job.options.mode != mode:
            log.warning("%s: another mode takes `ndxdp detach` and a restart", job.interface)
            job = replace(job, options=replace(job.options, mode=mode))
        self._again = self._again or not job.same_but_rules(self.job)
        self._stale_rules = True
        self.job = job
        self._changed.set()

    # ---- its life

    async def run(self) -> None:
        """NdxdpError if it cannot begin, unless the job is patient."""
        while not self._stop.is_set():
            pause = 0.0
            try:
                await self._answer()
            except InterfaceGone as gone:
                if not self.began.is_set() and not self.job.patient:
                    raise
                log.warning("%s; waiting for it", gone)
            except NdxdpError as error:
                if not self.began.is_set() and not self.job.patient:
                    raise
                log.error("%s: %s; trying again", self.job.interface, error)
                pause = _RETRY
            self.began.set()
            if not self._again and not self._stop.is_set():
                await self._is_back(pause)
        if self.job.detach:
            await self._call(self._clean_up)

    async def _answer(self) -> None:
        """From attaching to the end. InterfaceGone leaves rules and counters for the next time."""
        with contextlib.ExitStack() as held:
            at_end = contextlib.ExitStack()
            self._again = False
            try:
                answering = await self._call(lambda: self._begin(held, at_end))
                with self._path(answering):
                    self.began.set()
                    self._ready(self.job, answering.instance)
                    await self._attend(answering)
            except InterfaceGone:
                at_end.pop_all()
                raise
            finally:
                if self._again:  # the program goes on while it is renewed
                    at_end.pop_all()
                await self._call(at_end.close)

    async def _attend(self, answering: _Answering) -> None:
        async with contextlib.AsyncExitStack() as attendants:
            link = await self._call(lambda: self._find(answering))
            groups = Groups(answering.ifindex)
            attendants.callback(groups.close)
            announcer = self._announcer(answering, link, attendants)
            hygiene = self._hygiene(answering, attendants)
            care = _Care(answering.ifindex, self.job.gateway, attendants)
            if self.job.heartbeat_timeout:
                _start(self._keep_beating(answering), attendants)
            else:
                await self._call(lambda: self._beat(answering))
            self._stale_rules = True
            self._changed.set()
            targets: frozenset[bytes] = frozenset()
            was_up = link.up
            async for _ in self._rounds():
                if self._stale_rules:
                    with self._going_on():
                        self._stale_rules = False
                        try:
                            await self._call(lambda: self._reconcile(answering))
                        except (NdxdpError, OSError):
                            self._stale_rules = True
                            raise
                with self._going_on():
                    link = await self._call(lambda: self._follow(answering))
                    now = answering.targets
                    if now != targets:
                        await self._call(lambda: groups.change(now - targets, targets - now))  # noqa: B023
                    if announcer:
                        announcer.set_mac(link.mac)
                        announcer.set_gateways(answering.gateways)
                        announcer.forget(targets - now)
                        announcer.announce(now - targets)
                        if link.up and not was_up:
                            announcer.announce_all()
                    care.look(link, answering.gateways, now)
                    hygiene.set()
                    targets, was_up = now, link.up
                if self._again:
                    return

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """What fails is said and tried again; answering goes on. InterfaceGone ends it."""
        try:
            yield
        except InterfaceGone:
            raise
        except (NdxdpError, OSError) as error:
            log.error("%s is not in step: %s", self.job.interface, error)
            asyncio.get_running_loop().call_later(_RETRY, self._changed.set)

    async def _rounds(self) -> Any:
        """One for each burst of changes, until the end."""
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

    async def _is_back(self, pause: float) -> None:
        """Wait for the interface to be there and up, or for the end."""
        self.ifindexes = None
        asyncio.get_running_loop().call_later(pause, self._changed.set)
        async for _ in self._rounds():
            try:
                await self._call(lambda: netlink.answering_link(self.job.interface))
                return
            except NdxdpError as error:
                log.debug("not yet: %s", error)

    async def _call(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function)

    # ---- beginning, in the executor's thread

    def _begin(self, held: contextlib.ExitStack, at_end: contextlib.ExitStack) -> _Answering:
        """By a program if one can be had, else from userspace."""
        job, steps = self.job, list[Step]()
        if job.options.mode is not Mode.USERSPACE:
            try:
                return self._attach(held, at_end)
            except ModeUnavailable as error:
                if job.options.mode is not None or job.insist:
                    raise
                steps = error.steps if isinstance(error, NoMode) else ladder.all_of(error)
        return self._open_userspace(steps, held, at_end)

    def _attach(self, held: contextlib.ExitStack, at_end: contextlib.ExitStack) -> _Answering:
        job, trees = self.job, self._trees
        instance = responder.attach_interface(
            trees,
            job.interface,
            job.options,
            job.rules,
            owned_source=job.source,
            keep=job.keep,
            holding=held,
        )
        held.callback(instance.close)
        ifindex = instance.maps.settings().ifindex
        if not job.keep:
            at_end.callback(_leave, trees.pins, instance)
            with netlink.present(job.interface):
                held.callback(Allmulti(ifindex).close)
        return _Answering(trees.pins, instance, ifindex)

    def _open_userspace(
        self, steps: list[Step], held: contextlib.ExitStack, at_end: contextlib.ExitStack
    ) -> _Answering:
        job, trees = self.job, self._trees
        link = netlink.answering_link(job.interface)
        try:
            with netlink.present(job.interface):
                packets = PacketSocket(link.ifindex)
        except ModeUnavailable as error:
            if not steps:
                raise
            steps = [*steps, ladder.step(Mode.USERSPACE, error)]
            hint = (
                "run this as root, or with CAP_NET_RAW;"
                " with CAP_BPF and CAP_NET_ADMIN for a program"
            )
            raise NoMode(job.interface, steps, hint) from error
        held.callback(packets.close)
        instance = serving.serve_interface(
            trees,
            job.interface,
            job.options,
            job.rules,
            owned_source=job.source,
            steps=steps,
            holding=held,
        )
        held.callback(instance.close)
        at_end.callback(_leave, trees.files, instance)
        if steps:
            log.warning("answering from userspace (%s)", "; ".join(ladder.told(steps)))
        return _Answering(trees.files, instance, link.ifindex, packets)

    def _clean_up(self) -> None:
        with contextlib.suppress(NdxdpError):  # there may be nothing left
            responder.detach_interface(self._trees, self.job.interface)

    @contextlib.contextmanager
    def _path(self, answering: _Answering) -> Iterator[None]:
        """The userspace path at work, if it is that which answers."""
        if answering.packets is None:
            yield
            return
        loop = asyncio.get_running_loop()
        path = Userspace(answering.instance.maps, answering.packets)
        loop.add_reader(answering.packets.fileno(), path.on_readable)
        try:
            yield
        finally:
            loop.remove_reader(answering.packets.fileno())

    # ---- keeping in step, in the executor's thread

    def _reconcile(self, answering: _Answering) -> None:
        """Make the rules of our sources what they should be; an unchanged one is not touched."""
        desired_by = {self.job.source: self.job.rules}
        if self._containers is not None:
            desired_by[DOCKER_SOURCE] = self._containers
        elif not self.job.selectors:
            desired_by[DOCKER_SOURCE] = {}
        with answering.tree.lock():
            maps = answering.instance.maps
            actual = maps.rules()
            desired = {
                prefix: rule for prefix, rule in actual.items() if rule.source not in desired_by
            }
            for rules in desired_by.values():
                for prefix, rule in rules.items():
                    there = desired.get(prefix)
                    if there is None or there.source == HOST_SOURCE:
                        held = there is not None or (prefix in actual and actual[prefix].held)
                        desired[prefix] = replace(rule, held=True) if held else rule
                    else:
                        log.warning("%s has a rule by '%s' already", prefix, there.source)
            for prefix, rule in actual.items():
                if rule.held and prefix not in desired:
                    desired[prefix] = hole("own")
            change = difference(desired, actual)
            if change.write or change.remove:
                maps.apply(change, actual)
                log.info(
                    "%s: rules written %d, removed %d",
                    self.job.interface,
                    len(change.write),
                    len(change.remove),
                )
        answering.seen = ()

    def _find(self, answering: _Answering) -> Link:
        link = netlink.find_link(self.job.interface)
        if link is None or link.ifindex != answering.ifindex:
            raise netlink.gone(self.job.interface)
        self.ifindexes = frozenset((link.ifindex, link.master))
        return link

    def _follow(self, answering: _Answering) -> Link:
        """Look at the network, and write what has changed: holes, MAC, link-local address."""
        instance, link = answering.instance, self._find(answering)
        owned = netlink.owned_addresses(link)
        link_local = netlink.link_local(link.ifindex)
        seen = (link.mac, link_local, owned)
        answering.link = link
        if seen != answering.seen:
            with answering.tree.lock():
                settings = instance.maps.settings()
                fresh = replace(settings, mac=link.mac, link_local=link_local)
                if fresh != settings:
                    instance.maps.set_settings(fresh)
                if fresh.mac != settings.mac:
                    log.info("%s answers from %s now", link.name, link.mac.hex(":"))
                rules = _keep_holes(instance, owned)
            answering.gateways = frozenset(netlink.gateways(link.name))
            answering.targets = frozenset(
                prefix.address
                for prefix, rule in rules.items()
                if prefix.length == 128 and rule.answer is Answer.ALWAYS and not rule.held
            )
            answering.seen = seen
        return link

    def _beat(self, answering: _Answering) -> None:
        """The heartbeat, without which dynamic rules lapse."""
        with answering.tree.lock():
            settings = answering.instance.maps.settings()
            timeout = round(self.job.heartbeat_timeout * 1e9)
            if not timeout and not settings.heartbeat_timeout:
                return
            now = time.monotonic_ns()
            fresh = replace(settings, heartbeat=now, heartbeat_timeout=timeout)
            answering.instance.maps.set_settings(fresh)

    async def _keep_beating(self, answering: _Answering) -> None:
        while True:
            try:
                await self._call(lambda: self._beat(answering))
            except (NdxdpError, OSError) as error:
                log.error("%s: no heartbeat: %s", self.job.interface, error)
            await asyncio.sleep(self.job.heartbeat_timeout / 3)

    # ---- what stands beside the answering

    def _announcer(
        self, answering: _Answering, link: Link, attendants: contextlib.AsyncExitStack
    ) -> Announcer | None:
        wanted = self.job.announce
        if not (wanted.solicit_gateway or wanted.probe or wanted.advertise):
            return None
        what = Announcements(
            probe=wanted.probe,
            solicit_gateway=wanted.solicit_gateway,
            advertise=wanted.advertise,
            rate=wanted.rate,
            interval=wanted.interval,
        )
        with netlink.present(link.name):
            announcer = Announcer(answering.ifindex, link.mac, what, answering.gateways)
        attendants.callback(announcer.close)
        _start(announcer.run(), attendants)
        return announcer

    def _hygiene(
        self, answering: _Answering, attendants: contextlib.AsyncExitStack
    ) -> asyncio.Event:
        changed = asyncio.Event()
        wanted = self.job.addresses
        if wanted.deprecate:
            hygiene = Hygiene(answering.ifindex, wanted.deprecate, wanted.preferred)
            _start(hygiene.run(changed), attendants)
        return changed


class _Care:
    """Gateway care for whichever gateways there are."""

    def __init__(
        self, ifindex: int, wanted: Gateway, attendants: contextlib.AsyncExitStack
    ) -> None:
        self._ifindex, self._wanted = ifindex, wanted
        self._attendants = attendants
        self._cared: dict[bytes, tuple[GatewayCare, asyncio.Task[None]]] = {}
        attendants.push_async_callback(self._end)

    def look(self, link: Link, gateways: frozenset[bytes], targets: frozenset[bytes]) -> None:
        if not self._wanted.keep:
            return
        source = self._wanted.source or min(targets, default=None)
        for gateway in set(self._cared) - gateways:
            care, task = self._cared.pop(gateway)
            task.cancel()
            care.close()
        if source is None:
            return
        for gateway in gateways:
            if gateway in self._cared:
                self._cared[gateway][0].set_mac(link.mac)
                continue
            with netlink.present(link.name):
                care = GatewayCare(
                    self._ifindex, gateway, source, link.mac, interval=self._wanted.interval
                )
            self._cared[gateway] = care, asyncio.ensure_future(care.run())

    async def _end(self) -> None:
        for care, task in self._cared.values():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            care.close()


def _start(work: Coroutine[Any, Any, None], attendants: contextlib.AsyncExitStack) -> None:
    """Run it beside, until the attendants are sent away."""
    task = asyncio.ensure_future(work)

    async def end() -> None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    attendants.push_async_callback(end)


def _leave(tree: Tree, instance: Instance) -> None:
    with tree.lock():
        responder.release(tree, instance)


def _keep_holes(instance: Instance, owned: Mapping[Prefix, str]) -> Rules:
    """Holes for just these addresses; returns all the rules."""
    maps = instance.maps
    actual = maps.rules()
    change = hold(owned, actual)
    # First what needs no room: rules of others are marked, and holes that went are closed.
    marked = {prefix: rule for prefix, rule in change.write.items() if prefix in actual}
    if marked or change.remove:
        maps.apply(Difference(marked, change.remove), actual)
    holes = {prefix: rule for prefix, rule in change.write.items() if prefix not in actual}
    if holes:
        maps.apply(Difference(holes, []), maps.rules())
    for prefix, rule in change.write.items():
        log.info("%s is %s", prefix, f"{rule.label}: a hole" if rule.held else "free again")
    for prefix in change.remove:
        log.info("%s: the hole is gone", prefix)
    return maps.rules() if change.write or change.remove else actual
