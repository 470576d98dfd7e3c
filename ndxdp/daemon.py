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
from ndxdp.policy import RUN_SOURCE, Prefix, Rule, hold
from ndxdp.responder import Options
from ndxdp.wire import netlink
from ndxdp.wire.membership import Allmulti
from ndxdp.wire.netlink import Monitor

log = logging.getLogger(__name__)

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
    with contextlib.ExitStack() as at_exit:
        # Listening comes first: what changes while we attach is seen afterwards.
        monitor = netlink.Monitor()
        at_exit.callback(monitor.close)
        instance = responder.attach_interface(
            tree, interface, options, rules, owned_source=RUN_SOURCE, keep=keep
        )
        at_exit.callback(instance.close)
        if not keep:
            at_exit.callback(_leave, tree, instance)
            allmulti = Allmulti(instance.maps.settings().ifindex)
            at_exit.callback(allmulti.close)
        at_exit.enter_context(tree.held(interface))
        asyncio.run(_serve(tree, instance, monitor, ready))


def _leave(tree: PinTree, instance: Instance) -> None:
    with tree.lock():
        responder.release(tree, instance)


async def _serve(
    tree: PinTree, instance: Instance, monitor: Monitor, ready: Callable[[Instance], None]
) -> None:
    loop = asyncio.get_running_loop()
    stop, changed = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def on_netlink() -> None:
        if monitor.drain():
            changed.set()

    loop.add_reader(monitor.fileno(), on_netlink)
    ready(instance)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        while not stop.is_set():
            changing = asyncio.ensure_future(changed.wait())
            await asyncio.wait({changing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            changing.cancel()
            if changed.is_set() and not stop.is_set():
                await asyncio.sleep(_SETTLE)
                changed.clear()
                # In a thread: pyroute2 brings a loop of its own.
                if not await asyncio.to_thread(_followed, tree, instance):
                    raise NdxdpError(
                        f"{instance.interface} has gone", "start again when it is back"
                    )
    finally:
        # asyncio is about to give both back to their defaults: nothing shall interrupt the end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        stopping.cancel()
        loop.remove_reader(monitor.fileno())


def _followed(tree: PinTree, instance: Instance) -> bool:
    """_follow(), but a failure is said and answering goes on: the next change tries again."""
    try:
        return _follow(tree, instance)
    except NdxdpError as error:
        log.error("not in step with the network: %s; %s", error.message, error.hint)
    except OSError as error:
        log.error("not in step with the network: %s", error)
    return True


def _follow(tree: PinTree, instance: Instance) -> bool:
    """Bring holes, MAC and link-local address up to date; False if the interface has gone."""
    link = netlink.find_link(instance.interface)
    if link is None or link.ifindex != instance.maps.settings().ifindex:
        return False
    with tree.lock():
        actual = instance.maps.rules()
        change = hold(netlink.owned_addresses(link), actual)
        if change.write or change.remove:
            instance.maps.apply(change, actual)
            for prefix, rule in change.write.items():
                held = rule.held
                log.info("%s is %s", prefix, f"{rule.label}: a hole" if held else "free again")
            for prefix in change.remove:
                log.info("%s: the hole is gone", prefix)
        settings = instance.maps.settings()
        fresh = replace(settings, mac=link.mac, link_local=netlink.link_local(link.ifindex))
        if fresh != settings:
            instance.maps.set_settings(fresh)
            log.info("%s has MAC %s now", link.name, link.mac.hex(":"))
    return True
