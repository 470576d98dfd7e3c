"""`ndxdp run`: attach, keep in step with the network, and go when told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace

from ndxdp import responder
from ndxdp.errors import NdxdpError
from ndxdp.instance import Instance
from ndxdp.kernel.pins import PinTree
from ndxdp.policy import RUN_SOURCE, Difference, Prefix, Rule, hold
from ndxdp.responder import Options
from ndxdp.wire import netlink
from ndxdp.wire.membership import Allmulti
from ndxdp.wire.netlink import Monitor

log = logging.getLogger(__name__)

_ENDING = {signal.SIGINT, signal.SIGTERM}
_RETRY = 5.0  # seconds after a failure to follow
_SETTLE = 0.01  # seconds: changes come in bursts, and one look serves a burst


def run(
    tree: PinTree,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    *,
    keep: bool,
    ready: Callable[[Instance], None],
) -> None:
    """Answer on an interface until SIGINT or SIGTERM.

    keep: leave the program attached, answering on its own. ready: called once, when it answers.
    NdxdpError if it cannot attach, or if the interface goes away.
    """
    # Held back until _serve() listens for them: an attach half done is nobody's wish.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    with contextlib.ExitStack() as at_exit:
        # Listening comes first: what changes while we attach is seen afterwards.
        monitor = netlink.Monitor()
        at_exit.callback(monitor.close)
        instance = responder.attach_interface(
            tree,
            interface,
            options,
            rules,
            owned_source=RUN_SOURCE,
            keep=keep,
            holding=at_exit,
        )
        at_exit.callback(instance.close)
        monitor.ifindex = instance.maps.settings().ifindex
        if not keep:
            at_exit.callback(_leave, tree, instance)
            allmulti = Allmulti(monitor.ifindex)
            at_exit.callback(allmulti.close)
        asyncio.run(_serve(tree, instance, monitor, ready))


def _leave(tree: PinTree, instance: Instance) -> None:
    with tree.lock():
        responder.release(tree, instance)


async def _serve(
    tree: PinTree, instance: Instance, monitor: Monitor, ready: Callable[[Instance], None]
) -> None:
    loop = asyncio.get_running_loop()
    stop, changed = asyncio.Event(), asyncio.Event()
    for number in _ENDING:
        loop.add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)

    def on_netlink() -> None:
        if monitor.drain():
            changed.set()

    loop.add_reader(monitor.fileno(), on_netlink)
    ready(instance)
    stopping = asyncio.ensure_future(stop.wait())
    follower = _Follower(tree, instance)
    try:
        while not stop.is_set():
            changing = asyncio.ensure_future(changed.wait())
            await asyncio.wait({changing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            if changed.is_set() and not stop.is_set():
                await asyncio.sleep(_SETTLE)
                changed.clear()
                try:
                    # In a thread: pyroute2 brings a loop of its own.
                    await asyncio.to_thread(follower.follow)
                except InterfaceGone:
                    raise
                except (NdxdpError, OSError) as error:  # answering goes on
                    log.error("not in step with the network: %s", error)
                    loop.call_later(_RETRY, changed.set)
    finally:
        # asyncio is about to give both back to their defaults: nothing shall interrupt the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        stopping.cancel()
        loop.remove_reader(monitor.fileno())


class InterfaceGone(NdxdpError):
    """It was deleted or renamed: there is nothing to answer on."""


class _Follower:
    """Keeps holes, MAC and link-local address as the network has them."""

    def __init__(self, tree: PinTree, instance: Instance) -> None:
        self._tree, self._instance = tree, instance
        self._seen: tuple[object, ...] = ()

    def follow(self) -> None:
        """Look, and write what has changed; a look that finds nothing new reads no rule."""
        instance = self._instance
        link = netlink.find_link(instance.interface)
        if link is None or link.ifindex != instance.maps.settings().ifindex:
            raise InterfaceGone(f"{instance.interface} has gone", "start again when it is back")
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
