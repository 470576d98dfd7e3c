"""The backend in userspace: this process answers, with files where the kernel backend has pins."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ndxdp.errors import Damaged, ModeUnavailable, NdxdpError, UsageError
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.netlink import links
from ndxdp.netlink.links import Link
from ndxdp.rules.difference import difference
from ndxdp.session import modes
from ndxdp.session.backend import Attached
from ndxdp.session.former_layout import take_over
from ndxdp.session.modes import ModeRefusal, NoMode
from ndxdp.session.plan import AttachPlan, CarriedState, attached_otherwise, carry_over, too_small
from ndxdp.session.recovery import recover
from ndxdp.session.rename import adopt
from ndxdp.session.request import AttachRequest
from ndxdp.session.restore import detach_instance
from ndxdp.session.signals import uninterrupted
from ndxdp.sockets.packet import PacketSocket
from ndxdp.store.directories import FileTree, PinTree, Tree, Trees
from ndxdp.store.instance import UserspaceInstance, open_instance, open_pinned, refuse_other_version
from ndxdp.store.maps import Maps
from ndxdp.store.ownership import refuse_if_locked
from ndxdp.store.records import Settings

log = logging.getLogger(__name__)


class UserspaceBackend:
    """Answers by this process."""

    def __init__(self, trees: Trees, refusals: Sequence[ModeRefusal] = ()) -> None:
        """Do nothing until attach().

        Args:
            trees: Where the state of interfaces is kept.
            refusals: The kernel modes that were refused before.
        """
        self._pins, self._tree, self._refusals = trees.pins, trees.files, refusals

    def attach(self, request: AttachRequest, locked: Tree | None) -> Attached:
        """Open a packet socket and the interface's files; see Backend.attach().

        Pins that this process has locked stay, and their program goes on: the caller detaches them
        once this process answers.
        """
        refuse_without_process(request)
        link = links.answering_link(request.interface, down=request.down)
        with contextlib.ExitStack() as undo:
            packets = self._packet_socket(link)
            undo.callback(packets.close)
            attached = self._open_files(request, link, locked)
            attached.packets = packets
            undo.pop_all()
        log.info("answering on %s in userspace mode", link.name)
        if self._refusals:
            reasons = "; ".join(modes.format_refusals(self._refusals))
            log.warning("answering from userspace (%s)", reasons)
        return attached

    def _packet_socket(self, link: Link) -> PacketSocket:
        try:
            with links.interface_errors(link.name):
                return PacketSocket(link.ifindex)
        except ModeUnavailable as error:
            raise no_socket(link.name, self._refusals, error) from error

    def _open_files(self, request: AttachRequest, link: Link, locked: Tree | None) -> Attached:
        """Open the interface's files, and write rules and settings to them."""
        tree, pins, name = self._tree, self._pins, link.name
        with _pins_locked(pins), tree.lock.exclusive(), contextlib.ExitStack() as undo:
            take_over(tree, name)
            refuse_other_version(tree, name)
            if locked is not tree:
                refuse_if_locked(tree, name)
            if locked is not pins:
                with contextlib.suppress(ModeUnavailable):
                    pins.check()
                    take_over(pins, name)
                    adopt(pins, link)
            has_pins = _has_pins(pins, name)
            if has_pins and locked is not pins:
                _recover_detached(pins, name)
            carried = carry_over(pins, name) if has_pins else CarriedState()
            maps = _maps_of(tree, name, undo)
            plan = AttachPlan(
                request,
                link,
                request.addresses_of(link),
                Mode.USERSPACE,
                tree.path(name),
                modes.encode(self._refusals),
                carried,
            )
            actual, settings = maps.rules(), plan.settings(maps.settings())
            desired = plan.rules(actual, attached=False)
            _resize(maps, request.options.max_addresses, len(actual), len(actual.addresses))
            lock = contextlib.ExitStack()
            if locked is not tree:
                # The files may be older than the boot, whose clock the end of the lease is of.
                maps.write_lease(0)
            with uninterrupted():
                maps.apply(difference(desired, actual), actual)
                maps.set_settings(settings)
                _receive_multicast(undo, link, maps, settings)
                if locked is not tree:
                    lock.enter_context(tree.locked(name))
                undo.pop_all()
                if has_pins:
                    _hand_over(pins, name, detach=locked is not pins)
        return Attached(tree, UserspaceInstance(name, maps, is_locked=True), lock)


def no_socket(
    interface: str, refusals: Sequence[ModeRefusal], error: ModeUnavailable
) -> ModeUnavailable:
    """Return the error where no packet socket can be opened, after refusals of other modes."""
    if not refusals:
        return error
    hint = "run this as root, or with CAP_NET_RAW; with CAP_BPF and CAP_NET_ADMIN for a program"
    return NoMode(interface, [*refusals, modes.refusal(Mode.USERSPACE, error)], hint)


def refuse_without_process(request: AttachRequest) -> None:
    """Raise UsageError if no process stays to answer."""
    if not request.lock:
        raise UsageError(
            "in userspace mode a process answers, and attach leaves none",
            f"ndxdp run {request.interface} --mode userspace",
        )


@contextlib.contextmanager
def _pins_locked(tree: PinTree) -> Iterator[None]:
    """Lock the pins against an attach of another process, if this process may use BPF."""
    with contextlib.ExitStack() as locked:
        with contextlib.suppress(ModeUnavailable):
            tree.check()
            locked.enter_context(tree.lock.exclusive())
        yield


def _has_pins(tree: PinTree, interface: str) -> bool:
    """Return True if the interface has pins, and only root can have made them."""
    if not tree.path(interface).is_dir():
        return False
    try:
        tree.check()
    except ModeUnavailable as error:
        log.debug("pins are ignored: %s", error)
        return False
    return True


def _recover_detached(tree: PinTree, interface: str) -> None:
    """Recover pins; raise NdxdpError if a program is attached, as two would answer then."""
    refuse_if_locked(tree, interface)
    try:
        with recover(tree, interface) as former:
            settings = former.maps.settings()
            if former.is_attached(settings):
                raise attached_otherwise(interface, settings.mode)
    except Damaged:
        tree.remove(interface)


def _maps_of(tree: FileTree, interface: str, undo: contextlib.ExitStack) -> Maps:
    """Open the interface's files; create them if they are missing or incomplete."""
    try:
        former = open_instance(tree, interface)
        undo.callback(former.close)
        return former.maps
    except Damaged:
        tree.remove(interface)
    except NdxdpError:
        if tree.path(interface).is_dir():
            raise
    path = tree.make(interface)
    undo.callback(tree.remove, interface)
    maps = Maps.create_files(path)
    undo.callback(maps.close)
    return maps


def _resize(maps: Maps, max_addresses: int | None, rules: int, addresses: int) -> None:
    """Give the table of exact addresses the requested size; `rules` rules are present."""
    if max_addresses is None:
        return
    if max_addresses < addresses:
        raise too_small(max_addresses, rules, "too small")
    maps.resize_addresses(max_addresses)


def _receive_multicast(
    undo: contextlib.ExitStack, link: Link, maps: Maps, settings: Settings
) -> None:
    """Have a bridge forward all multicast frames to its port, even with MLD snooping."""
    if link.mcast_router != 1:
        return
    # The settings are written first, so that detaching restores it after a kill.
    maps.set_settings(replace(settings, restore=settings.restore | Restore.MCAST_ROUTER))
    try:
        links.set_mcast_router(link.ifindex, 2)
        undo.callback(links.set_mcast_router, link.ifindex, 1)
    except NdxdpError as error:
        maps.set_settings(settings)
        log.warning("MLD snooping may keep solicitations from %s: %s", link.name, error)


def _hand_over(tree: PinTree, interface: str, *, detach: bool) -> None:
    """Let the files own what pins were to restore; detach the pins if the caller does not."""
    if not tree.path(interface).is_dir():
        return
    with open_pinned(tree, interface) as former:
        settings = former.maps.settings()
        restore = settings.restore & ~Restore.MCAST_ROUTER
        former.maps.set_settings(replace(settings, restore=restore))
        if detach:
            detach_instance(tree, former)
