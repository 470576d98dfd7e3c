"""Attaching to an interface, renewing what is attached, detaching.

The life of the kernel objects:

- `attach` pins maps, program and link, and returns. The pins hold them; `detach` removes the
  pins, and with them everything is gone.
- `run` pins maps and program but holds the link itself, so that it ends with the process,
  whatever ends that. `run --keep` pins the link too.
- Whoever runs holds a lock on the interface's pin directory for as long.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ndxdp.errors import NdxdpError, UsageError
from ndxdp.instance import IncompletePins, Instance, open_instance, other_version
from ndxdp.kernel import abi, attach, libbpf, loader, pins
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.libbpf import BpfError
from ndxdp.kernel.loader import Loader
from ndxdp.kernel.maps import Maps, Settings
from ndxdp.kernel.pins import PinTree
from ndxdp.policy import RUN_SOURCE, Difference, Prefix, Rule, difference, hold, merged
from ndxdp.wire import netlink
from ndxdp.wire.netlink import Link

log = logging.getLogger(__name__)

_BURST = 100


@dataclass(frozen=True, slots=True)
class Options:
    """How to attach. None: as it is attached now, else the default.

    mode: native is the default. rate: answers per second and soliciting MAC, 0 (the default)
    for no limit; burst: how many at once, 100 by default. max_addresses: size of the table of
    exact addresses. links: False takes the way of a kernel without BPF links. image: another
    object than the shipped one.
    """

    mode: Mode | None = None
    loader: Loader = Loader.PREBUILT
    rate: float | None = None
    burst: int | None = None
    max_addresses: int | None = None
    links: bool = True
    image: bytes | None = None


# ---- attaching ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """One attachment, decided: where, how, and whether it outlives the process."""

    link: Link
    mode: Mode
    options: Options
    keep: bool
    path: Path


def attach_interface(
    tree: PinTree,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    *,
    owned_source: str | None = None,
    keep: bool = True,
    holding: contextlib.ExitStack | None = None,
) -> Instance:
    """Attach to an interface, or renew what is attached there without losing a frame.

    rules: added to those that are there; a rule that is there already is not touched.
    owned_source: rules of this source that are not among `rules` are removed.
    keep: pin the link, so that it outlives this process, and switch allmulti on for as long;
    else the returned instance holds the link, and allmulti is the caller's.
    holding: a stack that takes a hold on the interface, before anybody else may touch it.

    NdxdpError if it cannot be done; then the kernel's state is what it was.
    """
    link = netlink.answering_link(interface)
    tree.check()
    others = tree.other_versions(interface)
    if others:
        raise other_version(tree, interface, others[0])
    with tree.lock():
        _refuse_renamed(tree, link)
        path = tree.path(interface)
        present = _present(tree, link, options.mode, keep)
        if present is None:
            plan = _Plan(link, options.mode or Mode.NATIVE, options, keep, path)
            instance = _attach_anew(tree, plan, rules)
        else:
            with present:
                before = present.maps.settings()
                mode = options.mode or (before.mode if present.is_attached(before) else Mode.NATIVE)
                plan = _Plan(link, mode, options, keep, path)
                instance = _renew(present, plan, rules, owned_source)
        if holding is not None:
            holding.enter_context(tree.held(interface))
        return instance


def _present(tree: PinTree, link: Link, mode: Mode | None, keep: bool) -> Instance | None:
    """What is pinned for an interface, whether or not it is attached; debris is removed."""
    if not tree.path(link.name).is_dir():
        return None
    tree.refuse_if_held(link.name)
    try:
        present = open_instance(tree, link.name)
    except IncompletePins:  # an attach that was killed half-way
        tree.remove(link.name)
        return None
    settings = present.maps.settings()
    attached = present.is_attached(settings)
    refusal = None
    if settings.netns != netlink.netns() and not present.is_dead(settings):
        refusal = _elsewhere(tree.path(link.name))
    elif attached and settings.ifindex != link.ifindex:
        refusal = NdxdpError(
            f"the pins of {link.name} belong to an interface that has another name now",
            f"ndxdp detach {link.name} first",
        )
    elif attached:
        if settings.left & Left.RUN:  # netlink's, which a killed run could not take along
            _take_off(settings.ifindex, settings.mode, present.prog_fd, settings.left)
            present.maps.set_settings(replace(settings, left=settings.left & ~Left.CLSACT))
        elif mode not in (None, settings.mode):
            refusal = NdxdpError(
                f"ndxdp is attached to {link.name} in {settings.mode.label} mode",
                f"ndxdp detach {link.name} first, or --mode {settings.mode.label}",
            )
        elif not keep:
            refusal = NdxdpError(
                f"ndxdp is attached to {link.name} already, and meant to stay",
                f"ndxdp detach {link.name} first, or ndxdp run --keep",
            )
    if refusal:
        present.close()
        raise refusal
    return present


def _refuse_renamed(tree: PinTree, link: Link) -> None:
    """An interface keeps its pins' name when it is renamed: it must not be attached to twice."""
    here = (link.ifindex, netlink.netns())
    for name in tree.interfaces():
        if name == link.name:
            continue
        attached = False
        with contextlib.suppress(NdxdpError), open_instance(tree, name) as other:
            settings = other.maps.settings()
            attached = (settings.ifindex, settings.netns) == here and other.is_attached(settings)
        if attached:
            raise NdxdpError(
                f"ndxdp is attached to {link.name} under its former name, {name}",
                f"ndxdp detach {name} first",
            )


def _elsewhere(path: Path) -> NdxdpError:
    return NdxdpError(
        f"{path} belongs to an interface of another network namespace",
        f"give this one a BPF file system of its own (--bpffs); if that one has gone: rm -r {path}",
    )


def _attach_anew(tree: PinTree, plan: _Plan, rules: Mapping[Prefix, Rule]) -> Instance:
    link, options = plan.link, plan.options
    with contextlib.ExitStack() as undo:
        maps = Maps.create(options.max_addresses or abi.MAX_ADDRESSES)
        undo.callback(maps.close)
        settings = _settings(plan, None)
        maps.set_settings(settings)
        desired = merged(rules, {})
        desired |= hold(netlink.owned_addresses(link), desired).write
        maps.apply(Difference(desired, []), {})
        prog_fd = loader.load(options.loader, plan.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        with _uninterrupted():
            tree.make(link.name)
            undo.callback(tree.remove, link.name)
            maps.pin(plan.path)
            pins.pin(prog_fd, plan.path / pins.PROGRAM)
            link_fd = _hang(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
        log.info("attached to %s, %s mode", link.name, plan.mode.label)
        return Instance(link.name, maps, prog_fd, link_fd)


def _renew(
    present: Instance, plan: _Plan, rules: Mapping[Prefix, Rule], owned_source: str | None
) -> Instance:
    """Put a new program in the place of the present one, on the same maps."""
    link, options = plan.link, plan.options
    before = present.maps.settings()
    attached = before.ifindex == link.ifindex and present.is_attached(before)
    size = present.maps.max_entries("addresses")
    resized = options.max_addresses not in (None, size)
    with contextlib.ExitStack() as undo:
        actual = present.maps.rules()
        stale = {owned_source} if attached else {owned_source, RUN_SOURCE}
        kept = {prefix: rule for prefix, rule in actual.items() if rule.source not in stale}
        desired = merged(rules, kept)
        holes = hold(netlink.owned_addresses(link), desired)
        for prefix in holes.remove:
            del desired[prefix]
        desired |= holes.write

        maps = _with_room(present.maps, options.max_addresses or size, len(actual))
        undo.callback(maps.close)
        prog_fd = loader.load(options.loader, plan.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        with _uninterrupted():
            maps.apply(difference(desired, actual), actual)
            undo.callback(maps.apply, difference(actual, desired), desired)
            settings = _settings(plan, before)
            maps.set_settings(settings)
            undo.callback(maps.set_settings, before)
            if attached:
                attach.replace(
                    link.name, link.ifindex, plan.mode, prog_fd, present.link_fd, present.prog_fd
                )
                link_fd = os.dup(present.link_fd) if present.link_fd is not None else None
            else:
                (plan.path / pins.LINK).unlink(missing_ok=True)
                link_fd = _hang(undo, plan, prog_fd, settings, maps)
            undo.pop_all()
            if resized:
                pins.repin(maps.fds["addresses"], plan.path / "addresses")
            pins.repin(prog_fd, plan.path / pins.PROGRAM)
    log.info("renewed the program on %s, %s mode", link.name, plan.mode.label)
    return Instance(link.name, maps, prog_fd, link_fd)


def _hang(
    undo: contextlib.ExitStack, plan: _Plan, prog_fd: int, settings: Settings, maps: Maps
) -> int | None:
    """Attach, pin the link, switch allmulti on; returns the link's descriptor."""
    link = plan.link
    if plan.mode is Mode.NATIVE and link.kind == "veth":
        log.warning(
            "%s is a veth: native XDP sends only if its peer runs an XDP program too", link.name
        )
    # Written down first: who is killed in between leaves word of what is to be put back.
    left = settings.left & ~Left.NETLINK & ~Left.RUN
    if not plan.keep:
        left |= Left.RUN
    if plan.keep and not link.allmulti:
        left |= Left.ALLMULTI
    planned = left
    if plan.mode is Mode.TC and not netlink.has_clsact(link.ifindex):
        planned |= Left.CLSACT
    maps.set_settings(replace(settings, left=planned))
    link_fd, how = attach.attach(
        link.name, link.ifindex, plan.mode, prog_fd, links=plan.options.links
    )
    left |= how
    if link_fd is None:
        undo.callback(_take_off, link.ifindex, plan.mode, prog_fd, how)
    else:
        undo.callback(os.close, link_fd)
        if plan.keep:
            pins.pin(link_fd, plan.path / pins.LINK)
    if plan.keep and not link.allmulti:
        netlink.set_allmulti(link.ifindex, True)
        undo.callback(netlink.set_allmulti, link.ifindex, False)
    maps.set_settings(replace(settings, left=left))
    return link_fd


def _with_room(maps: Maps, max_addresses: int, have: int) -> Maps:
    """The same maps, opened once more, with room for so many addresses.

    Another size takes another map, into which the entries are copied. have: rules there are.
    """
    spec = abi.MAPS["addresses"]
    fds = {name: os.dup(fd) for name, fd in maps.fds.items()}
    again = Maps(fds)
    if max_addresses == maps.max_entries(spec.name):
        return again
    try:
        os.close(fds.pop(spec.name))
        fds[spec.name] = libbpf.map_create(spec._replace(max_entries=max_addresses))
        again.copy_addresses(maps)
    except BpfError as error:
        again.close()
        raise NdxdpError(
            f"a table of {max_addresses} addresses could not be filled ({error.strerror})",
            f"{have} rules are there: is --max-addresses too small, or memory short?",
        ) from error
    return again


def _settings(plan: _Plan, before: Settings | None) -> Settings:
    """Settings for a plan; what it does not say stays as it was before."""
    rate, burst, link = plan.options.rate, plan.options.burst, plan.link
    settings = before or Settings(link.mac, link.ifindex, netlink.netns(), plan.mode)
    if rate is None and burst and not settings.rate_interval:
        raise UsageError("--burst without a rate limits nothing", "give --rate, too")
    interval = settings.rate_interval
    if rate is not None:
        interval = round(1e9 / rate) if rate else 0
    credit = interval * ((burst or settings.burst or _BURST) - 1)
    settings = replace(settings, rate_interval=interval, rate_credit=credit)
    here = (link.ifindex, netlink.netns())
    if (settings.ifindex, settings.netns) != here:
        settings = replace(settings, ifindex=here[0], netns=here[1], left=Left(0))
    return replace(
        settings,
        mac=link.mac,
        link_local=netlink.link_local(link.ifindex),
        mode=plan.mode,
        bcc=plan.options.loader is Loader.BCC,
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep SIGINT and SIGTERM waiting while several kernel objects change together."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _take_off(ifindex: int, mode: Mode, prog_fd: int, left: Left) -> None:
    attach.detach(ifindex, mode, prog_fd)
    if left & Left.CLSACT and netlink.has_clsact(ifindex) and not netlink.has_filters(ifindex):
        libbpf.clsact_destroy(ifindex)


# ---- detaching ----------------------------------------------------------------------------------


def detach_interface(tree: PinTree, interface: str) -> None:
    """Take the program off, remove the pins, put allmulti back as it was found."""
    tree.check()
    with tree.lock():
        if tree.path(interface).is_dir():
            tree.refuse_if_held(interface)
        try:
            instance = open_instance(tree, interface)
        except IncompletePins:
            tree.remove(interface)
            return
        with instance:
            settings = instance.maps.settings()
            if settings.netns != netlink.netns() and not instance.is_dead(settings):
                raise _elsewhere(tree.path(interface))
            release(tree, instance)
        log.info("detached from %s", interface)


def release(tree: PinTree, instance: Instance) -> None:
    """Undo what attach_interface() did, as far as it is still there."""
    settings = instance.maps.settings()
    with _uninterrupted():
        if settings.netns == netlink.netns():
            if instance.link_fd is None:
                _take_off(settings.ifindex, settings.mode, instance.prog_fd, settings.left)
            if settings.left & Left.ALLMULTI:
                netlink.set_allmulti(settings.ifindex, False)
        tree.remove(instance.interface)
