"""`ndxdp run`: attach, keep in step with the network, and go when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ndxdp import ladder, responder, serving
from ndxdp.errors import InterfaceGone, ModeUnavailable, NdxdpError, UsageError
from ndxdp.instance import Instance
from ndxdp.kernel.abi import Mode
from ndxdp.kernel.pins import Tree, Trees
from ndxdp.ladder import NoMode, Step
from ndxdp.plan import Options
from ndxdp.policy import RUN_SOURCE, Difference, Prefix, Rule, hold
from ndxdp.userspace import Userspace
from ndxdp.wire import netlink
from ndxdp.wire.membership import Allmulti
from ndxdp.wire.netlink import Monitor
from ndxdp.wire.packet import PacketSocket

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_RETRY = 5.0  # seconds after a failure to follow
_SETTLE = 0.01  # seconds: changes come in bursts, and one look serves a burst


def run(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    *,
    keep: bool,
    ready: Callable[[Instance], None],
) -> None:
    """Answer on an interface until SIGINT or SIGTERM; when it goes away, wait for it.

    keep: leave the program attached, answering on its own. ready: called when it answers, each
    time that it has begun to. NdxdpError if it cannot begin to.
    """
    if keep and options.mode is Mode.USERSPACE:
        raise UsageError(
            "in userspace mode a process answers, and nothing can go on without it",
            "leave --keep out, or take another mode",
        )
    # Held back until _listening(): an attach half done is nobody's wish.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    began = False

    def begin(instance: Instance) -> None:
        nonlocal began
        began = True
        ready(instance)

    # The monitor comes first: what changes while we attach is seen afterwards.
    with contextlib.closing(Monitor()) as monitor:
        while True:
            pause = 0.0
            try:
                _answer(trees, interface, options, rules, keep, begin, monitor)
                return
            except InterfaceGone as gone:
                if not began:
                    raise
                log.warning("%s; waiting for it", gone)
            except NdxdpError as error:
                if not began:
                    raise
                log.error("%s; trying again", error)
                pause = _RETRY
            if not asyncio.run(_is_back(interface, monitor, pause)):
                if not keep:
                    with contextlib.suppress(NdxdpError):  # there may be nothing left
                        responder.detach_interface(trees, interface)
                return


@dataclass
class _Answering:
    """What answers: a program that is pinned in `tree`, or the userspace path."""

    tree: Tree
    instance: Instance
    packets: PacketSocket | None = None


def _answer(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    keep: bool,
    ready: Callable[[Instance], None],
    monitor: Monitor,
) -> None:
    """From attaching to the end. InterfaceGone leaves rules and counters for the next time."""
    with contextlib.ExitStack() as held, contextlib.ExitStack() as at_end:
        try:
            answering = _begin(trees, interface, options, rules, keep, held, at_end)
            asyncio.run(_serve(answering, monitor, ready))
        except InterfaceGone:
            at_end.pop_all()
            raise


def _begin(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    keep: bool,
    held: contextlib.ExitStack,
    at_end: contextlib.ExitStack,
) -> _Answering:
    """By a program if one can be had, else from userspace."""
    steps: list[Step] = []
    if options.mode is not Mode.USERSPACE:
        try:
            return _attach(trees, interface, options, rules, keep, held, at_end)
        except ModeUnavailable as error:
            if options.mode is not None or keep:
                raise
            steps = error.steps if isinstance(error, NoMode) else ladder.all_of(error)
    return _open_userspace(trees, interface, options, rules, steps, held, at_end)


def _attach(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    keep: bool,
    held: contextlib.ExitStack,
    at_end: contextlib.ExitStack,
) -> _Answering:
    instance = responder.attach_interface(
        trees, interface, options, rules, owned_source=RUN_SOURCE, keep=keep, holding=held
    )
    held.callback(instance.close)
    if not keep:
        at_end.callback(_leave, trees.pins, instance)
        with netlink.present(interface):
            allmulti = Allmulti(instance.maps.settings().ifindex)
        held.callback(allmulti.close)
    return _Answering(trees.pins, instance)


def _open_userspace(
    trees: Trees,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    steps: list[Step],
    held: contextlib.ExitStack,
    at_end: contextlib.ExitStack,
) -> _Answering:
    link = netlink.answering_link(interface)
    try:
        with netlink.present(interface):
            packets = PacketSocket(link.ifindex)
    except ModeUnavailable as error:
        if not steps:
            raise
        steps = [*steps, ladder.step(Mode.USERSPACE, error)]
        hint = "run this as root, or with CAP_NET_RAW; with CAP_BPF and CAP_NET_ADMIN for a program"
        raise NoMode(interface, steps, hint) from error
    held.callback(packets.close)
    instance = serving.serve_interface(
        trees, interface, options, rules, owned_source=RUN_SOURCE, steps=steps, holding=held
    )
    held.callback(instance.close)
    at_end.callback(_leave, trees.files, instance)
    if steps:
        log.warning("answering from userspace (%s)", "; ".join(ladder.told(steps)))
    return _Answering(trees.files, instance, packets)


def _leave(tree: Tree, instance: Instance) -> None:
    with tree.lock():
        responder.release(tree, instance)


# ---- the event loop -----------------------------------------------------------------------------


async def _serve(
    answering: _Answering, monitor: Monitor, ready: Callable[[Instance], None]
) -> None:
    """Until a signal comes. InterfaceGone when there is nothing left to answer on."""
    follower = _Follower(answering, monitor)
    loop = asyncio.get_running_loop()
    with _listening(monitor) as (stop, changed), _path(answering):
        ready(answering.instance)
        async for _ in _until(stop, changed):
            try:
                # In a thread: pyroute2 brings a loop of its own.
                await asyncio.to_thread(follower.follow)
            except InterfaceGone:
                raise
            except (NdxdpError, OSError) as error:  # answering goes on
                log.error("not in step with the network: %s", error)
                loop.call_later(_RETRY, changed.set)


async def _is_back(interface: str, monitor: Monitor, pause: float) -> bool:
    """Wait for an interface to be there and up; False if a signal comes first."""
    monitor.ifindexes = None
    loop = asyncio.get_running_loop()
    with _listening(monitor) as (stop, changed):
        loop.call_later(pause, changed.set)
        async for _ in _until(stop, changed):
            try:
                await asyncio.to_thread(netlink.answering_link, interface)
                return True
            except NdxdpError as error:
                log.debug("not yet: %s", error)
    return False


@contextlib.contextmanager
def _path(answering: _Answering) -> Iterator[None]:
    """The userspace path at work, if it is that which answers."""
    if answering.packets is None:
        yield
        return
    loop, path = asyncio.get_running_loop(), Userspace(answering.instance.maps, answering.packets)
    loop.add_reader(answering.packets.fileno(), path.on_readable)
    try:
        yield
    finally:
        loop.remove_reader(answering.packets.fileno())


@contextlib.contextmanager
def _listening(monitor: Monitor) -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Two events: to stop, by a signal; and that the network has changed."""
    loop = asyncio.get_running_loop()
    stop, changed = asyncio.Event(), asyncio.Event()
    for number in _ENDING:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    def on_netlink() -> None:
        if monitor.drain():
            changed.set()

    loop.add_reader(monitor.fileno(), on_netlink)
    try:
        yield stop, changed
    finally:
        # asyncio is about to give both back to their defaults: nothing shall interrupt the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        loop.remove_reader(monitor.fileno())


async def _until(stop: asyncio.Event, changed: asyncio.Event) -> AsyncIterator[None]:
    """One round for each burst of changes, until `stop`."""
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            changing = asyncio.ensure_future(changed.wait())
            await asyncio.wait({changing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            if changed.is_set() and not stop.is_set():
                await asyncio.sleep(_SETTLE)
                changed.clear()
                yield
    finally:
        stopping.cancel()


class _Follower:
    """Keeps holes, MAC and link-local address as the network has them."""

    def __init__(self, answering: _Answering, monitor: Monitor) -> None:
        self._tree, self._instance = answering.tree, answering.instance
        self._monitor = monitor
        self._ifindex = answering.instance.maps.settings().ifindex
        self._seen: tuple[object, ...] = ()
        monitor.ifindexes = None  # until the first look tells whose port it is

    def follow(self) -> None:
        """Look, and write what has changed; a look that finds nothing new reads no rule."""
        instance = self._instance
        link = netlink.find_link(instance.interface)
        if link is None or link.ifindex != self._ifindex:
            raise netlink.gone(instance.interface)
        self._monitor.ifindexes = frozenset((link.ifindex, link.master))
        owned = netlink.owned_addresses(link)
        link_local = netlink.link_local(link.ifindex)
        seen = (link.mac, link_local, owned)
        if seen == self._seen:
            return
        with self._tree.lock():
            settings = instance.maps.settings()
            fresh = replace(settings, mac=link.mac, link_local=link_local)
            if fresh != settings:
                instance.maps.set_settings(fresh)
                log.info("%s answers from %s now", link.name, link.mac.hex(":"))
            self._keep_holes(owned)
        self._seen = seen

    def _keep_holes(self, owned: Mapping[Prefix, str]) -> None:
        maps = self._instance.maps
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
