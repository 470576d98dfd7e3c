"""One interface's responder: attached, kept in step, detached.

This joins what the kernel layer and netlink know; the command line and the daemon stand on it.
The life of the kernel objects:

- `attach` pins maps, program and link, and returns. The pins hold them; `detach` removes the
  pins, and with them everything is gone.
- `run` pins maps and program but holds the link itself, so that it ends with the process,
  whatever ends that. `run --keep` pins the link too.
- Whoever runs holds a lock on the interface's pin directory for as long.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ndxdp import ndp
from ndxdp.errors import NdxdpError
from ndxdp.kernel import abi, attach, libbpf, loader, pins
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.libbpf import BpfError
from ndxdp.kernel.loader import Loader
from ndxdp.kernel.maps import Explained, Maps, Settings
from ndxdp.kernel.pins import PinTree
from ndxdp.policy import (
    HOST_SOURCE,
    Difference,
    Prefix,
    Rule,
    Rules,
    difference,
    hold,
    hole,
)
from ndxdp.wire import netlink
from ndxdp.wire.netlink import Link

log = logging.getLogger(__name__)

_TX = {Mode.NATIVE: 3, Mode.GENERIC: 3, Mode.TC: 7}  # XDP_TX, TC_ACT_REDIRECT


@dataclass(frozen=True, slots=True)
class Options:
    """How to attach.

    rate: answers per second and soliciting MAC, 0 for no limit; burst: how many at once.
    max_addresses: size of the table of exact addresses; None: as it is, or the default.
    links: False takes the way of a kernel without BPF links. image: another object than the
    shipped one.
    """

    mode: Mode = Mode.NATIVE
    loader: Loader = Loader.PREBUILT
    rate: float = 0
    burst: int = 100
    max_addresses: int | None = None
    links: bool = True
    image: bytes | None = None


@dataclass
class Instance:
    """An interface's open kernel objects. link_fd: None without a link, or somebody else's."""

    interface: str
    maps: Maps
    prog_fd: int
    link_fd: int | None

    def close(self) -> None:
        self.maps.close()
        os.close(self.prog_fd)
        if self.link_fd is not None:
            os.close(self.link_fd)

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def is_attached(self, settings: Settings) -> bool:
        """The program at our place on the hook is ours."""
        return attach.is_attached(settings.ifindex, settings.mode, self.prog_fd, self.link_fd)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the loaded program makes of a made-up solicitation. reply: its NA, if it answers."""

    solicitation: bytes
    verdict: Explained
    reply: bytes | None


def open_instance(tree: PinTree, interface: str) -> Instance:
    """The pinned objects of an interface; NdxdpError where there are none."""
    path = tree.path(interface)
    if not path.is_dir():
        others = tree.other_versions(interface)
        if others:
            raise _other_version(interface, tree.root / others[0])
        raise NdxdpError(f"ndxdp is not attached to {interface}", f"ndxdp attach {interface}")
    try:
        maps = Maps.open(path)
        try:
            prog_fd = libbpf.get_pinned(str(path / pins.PROGRAM))
            link_fd = None
            if (path / pins.LINK).exists():
                link_fd = libbpf.get_pinned(str(path / pins.LINK))
        except BaseException:
            maps.close()
            raise
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NdxdpError(
                f"the pins of {interface} may not be opened", "run this as root"
            ) from error
        raise NdxdpError(
            f"the pins of {interface} are incomplete ({error})", f"ndxdp detach {interface}"
        ) from error
    return Instance(interface, maps, prog_fd, link_fd)


# ---- attaching ----------------------------------------------------------------------------------


def attach_interface(
    tree: PinTree,
    interface: str,
    options: Options,
    rules: Mapping[Prefix, Rule],
    *,
    owned_source: str | None = None,
    keep: bool = True,
) -> Instance:
    """Attach to an interface, or renew what is attached there without losing a frame.

    rules: added to those that are there; a rule that is there already is not touched.
    owned_source: rules of this source that are not among `rules` are removed.
    keep: pin the link, so that it outlives this process, and switch allmulti on for as long;
    else the returned instance holds the link, and allmulti is the caller's.

    NdxdpError if it cannot be done; then the kernel's state is what it was.
    """
    link = netlink.answering_link(interface)
    tree.check()
    others = tree.other_versions(interface)
    if others:
        raise _other_version(interface, tree.root / others[0])
    with tree.lock():
        present = _present(tree, link, options.mode, keep)
        if present is None:
            return _attach_anew(tree, link, options, rules, keep)
        with present:
            return _renew(tree, present, link, options, rules, owned_source, keep)


def _present(tree: PinTree, link: Link, mode: Mode, keep: bool) -> Instance | None:
    """What is pinned for an interface, whether or not it is attached; debris is removed."""
    if not tree.path(link.name).is_dir():
        return None
    _refuse_if_run(tree, link.name)
    try:
        present = open_instance(tree, link.name)
    except NdxdpError as error:
        if not isinstance(error.__cause__, BpfError) or error.__cause__.errno != errno.ENOENT:
            raise
        tree.remove(link.name)  # an attach that was killed half-way
        return None
    settings = present.maps.settings()
    refusal = None
    if settings.netns != netlink.netns():
        refusal = NdxdpError(
            f"{tree.path(link.name)} belongs to an interface of another network namespace",
            "give this one a BPF file system of its own: --bpffs",
        )
    elif settings.ifindex == link.ifindex and present.is_attached(settings):
        if settings.mode is not mode:
            refusal = NdxdpError(
                f"ndxdp is attached to {link.name} in {settings.mode.label} mode, not {mode.label}",
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


def _attach_anew(
    tree: PinTree, link: Link, options: Options, rules: Mapping[Prefix, Rule], keep: bool
) -> Instance:
    with contextlib.ExitStack() as undo:
        maps = Maps.create(options.max_addresses or abi.MAX_ADDRESSES)
        undo.callback(maps.close)
        settings = _settings(link, options)
        maps.set_settings(settings)
        desired = _add(rules, {})
        desired |= hold(owned_addresses(link), desired).write
        maps.apply(Difference(desired, []), {})
        prog_fd = loader.load(options.loader, options.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        path = tree.make(link.name)
        undo.callback(tree.remove, link.name)
        maps.pin(path)
        _pin_program(path, prog_fd)
        link_fd = _hang(undo, path, link, options, prog_fd, settings, maps, keep)
        undo.pop_all()
        return Instance(link.name, maps, prog_fd, link_fd)


def _renew(
    tree: PinTree,
    present: Instance,
    link: Link,
    options: Options,
    rules: Mapping[Prefix, Rule],
    owned_source: str | None,
    keep: bool,
) -> Instance:
    """Put a new program in the place of the present one, on the same maps."""
    path = tree.path(link.name)
    before = present.maps.settings()
    attached = before.ifindex == link.ifindex and present.is_attached(before)
    grown = options.max_addresses and options.max_addresses != present.maps.max_entries("addresses")
    with contextlib.ExitStack() as undo:
        actual = present.maps.rules()
        desired = _add(rules, actual)
        if owned_source:
            for prefix, rule in actual.items():
                if rule.source == owned_source and prefix not in rules:
                    del desired[prefix]
        holes = hold(owned_addresses(link), desired)
        for prefix in holes.remove:
            del desired[prefix]
        desired |= holes.write

        maps = present.maps
        if grown:
            maps = _with_addresses(present.maps, options.max_addresses or 0)
            undo.callback(maps.close)
        prog_fd = loader.load(options.loader, options.mode, maps.fds, options.image)
        undo.callback(os.close, prog_fd)
        maps.apply(difference(desired, actual), actual)
        undo.callback(maps.apply, difference(actual, desired), desired)
        settings = _settings(link, options, before if attached else None)
        maps.set_settings(settings)
        undo.callback(maps.set_settings, before)
        if attached:
            attach.replace(
                link.name, link.ifindex, options.mode, prog_fd, present.link_fd, present.prog_fd
            )
            link_fd = os.dup(present.link_fd) if present.link_fd is not None else None
        else:
            (path / pins.LINK).unlink(missing_ok=True)
            link_fd = _hang(undo, path, link, options, prog_fd, settings, maps, keep)
        undo.pop_all()
    if grown:
        _repin(maps.fds["addresses"], path / "addresses")
    _repin(prog_fd, path / pins.PROGRAM)
    if not grown:
        maps = Maps({name: os.dup(fd) for name, fd in maps.fds.items()})
    return Instance(link.name, maps, prog_fd, link_fd)


def _hang(
    undo: contextlib.ExitStack,
    path: Path,
    link: Link,
    options: Options,
    prog_fd: int,
    settings: Settings,
    maps: Maps,
    keep: bool,
) -> int | None:
    """Attach, pin the link, switch allmulti on; returns the link's descriptor."""
    if options.mode is Mode.NATIVE and link.kind == "veth":
        log.warning(
            "%s is a veth: native XDP sends only if its peer runs an XDP program too", link.name
        )
    link_fd, left = attach.attach(
        link.name, link.ifindex, options.mode, prog_fd, links=options.links
    )
    if link_fd is None:
        undo.callback(_take_off, link.ifindex, options.mode, prog_fd, left)
    else:
        undo.callback(os.close, link_fd)
        if keep:
            libbpf.pin(link_fd, str(path / pins.LINK))
    if keep and not link.allmulti:
        netlink.set_allmulti(link.ifindex, True)
        undo.callback(netlink.set_allmulti, link.ifindex, False)
        left |= Left.ALLMULTI
    maps.set_settings(replace(settings, left=left))
    return link_fd


def _with_addresses(maps: Maps, max_addresses: int) -> Maps:
    """The same maps with a larger or smaller table of addresses that holds the same entries."""
    have = sum(1 for prefix in maps.rules() if prefix.length == 128)
    if have > max_addresses:
        raise NdxdpError(
            f"{have} addresses are there, more than the {max_addresses} asked for",
            "choose a larger --max-addresses",
        )
    spec = abi.MAPS["addresses"]._replace(max_entries=max_addresses)
    fds = {name: os.dup(fd) for name, fd in maps.fds.items() if name != spec.name}
    larger = Maps(fds | {spec.name: libbpf.map_create(spec)})
    try:
        larger.copy_addresses(maps)
    except BaseException:
        larger.close()
        raise
    return larger


def _settings(link: Link, options: Options, before: Settings | None = None) -> Settings:
    interval = round(1e9 / options.rate) if options.rate else 0
    return Settings(
        mac=link.mac,
        ifindex=link.ifindex,
        netns=netlink.netns(),
        mode=options.mode,
        link_local=link_local(link),
        paused=before.paused if before else False,
        rate_interval=interval,
        rate_credit=interval * (options.burst - 1),
        left=before.left if before else Left(0),
        bcc=options.loader is Loader.BCC,
    )


def _add(rules: Mapping[Prefix, Rule], actual: Mapping[Prefix, Rule]) -> Rules:
    """`actual` with `rules` added; NdxdpError where both say different things."""
    desired = dict(actual)
    for prefix, rule in rules.items():
        there = actual.get(prefix)
        if there is None:
            desired[prefix] = rule
        elif there.source == HOST_SOURCE:
            desired[prefix] = replace(rule, held=True)
        elif there.source != rule.source or not there.same_words(rule):
            raise NdxdpError(
                f"{prefix} has a rule already: {there.answer.name.lower()}, by '{there.source}'",
                "ndxdp prefix list shows it; remove it there where it comes from",
            )
    return desired


def _pin_program(path: Path, prog_fd: int) -> None:
    libbpf.pin(prog_fd, str(path / pins.PROGRAM))


def _repin(fd: int, path: Path) -> None:
    """Put another object behind a pin: at no moment is the path missing."""
    fresh = path.with_name(f"{path.name}:new")
    fresh.unlink(missing_ok=True)
    libbpf.pin(fd, str(fresh))
    pins.set_mode(fresh)
    fresh.rename(path)


def _take_off(ifindex: int, mode: Mode, prog_fd: int, left: Left) -> None:
    attach.detach(ifindex, mode, prog_fd)
    if left & Left.CLSACT and not netlink.has_filters(ifindex):
        libbpf.clsact_destroy(ifindex)


def _other_version(interface: str, path: Path) -> NdxdpError:
    return NdxdpError(
        f"{interface} is held by an ndxdp of another ABI version ({path.name},"
        f" this one has v{abi.VERSION})",
        f"detach it with the ndxdp that attached it, or: rm -r {path}/{interface}",
    )


# ---- detaching ----------------------------------------------------------------------------------


def detach_interface(tree: PinTree, interface: str) -> None:
    """Take the program off, remove the pins, put allmulti back as it was found."""
    tree.check()
    with tree.lock():
        if tree.path(interface).is_dir():
            _refuse_if_run(tree, interface)
        try:
            instance = open_instance(tree, interface)
        except NdxdpError as error:
            if not isinstance(error.__cause__, BpfError) or error.__cause__.errno != errno.ENOENT:
                raise
            tree.remove(interface)
            return
        with instance:
            release(tree, instance)


def release(tree: PinTree, instance: Instance) -> None:
    """Undo what attach_interface() did, as far as it is still there."""
    settings = instance.maps.settings()
    if instance.link_fd is None and instance.is_attached(settings):
        _take_off(settings.ifindex, settings.mode, instance.prog_fd, settings.left)
    tree.remove(instance.interface)
    if settings.left & Left.ALLMULTI:
        netlink.set_allmulti(settings.ifindex, False)


@contextlib.contextmanager
def running(tree: PinTree, interface: str) -> Iterator[None]:
    """Mark an interface as held by this process."""
    fd = os.open(tree.path(interface), os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _is_run(interface) from None
        yield
    finally:
        os.close(fd)


def is_run(tree: PinTree, interface: str) -> bool:
    """A living process holds the interface."""
    fd = os.open(tree.path(interface), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _refuse_if_run(tree: PinTree, interface: str) -> None:
    if is_run(tree, interface):
        raise _is_run(interface)


def _is_run(interface: str) -> NdxdpError:
    return NdxdpError(f"{interface} is held by a running `ndxdp run`", "stop that process first")


# ---- keeping in step ----------------------------------------------------------------------------


def owned_addresses(link: Link) -> dict[Prefix, str]:
    """Exact addresses that are never answered for: the interface's own and its gateways'."""
    owned = {Prefix(address, 128): "gateway" for address in netlink.gateways(link.name)}
    owned |= {Prefix(address, 128): "own" for address, _ in netlink.addresses(link.ifindex)}
    return owned


def link_local(link: Link) -> bytes:
    """The interface's link-local address, :: while it has none."""
    usable = (address for address, is_usable in netlink.addresses(link.ifindex) if is_usable)
    return next(usable, ndp.UNSPECIFIED)


def keep_in_step(tree: PinTree, instance: Instance) -> bool:
    """Bring holes, MAC and link-local address up to date; False if the interface has gone."""
    link = netlink.find_link(instance.interface)
    if link is None or link.ifindex != instance.maps.settings().ifindex:
        return False
    with tree.lock():
        actual = instance.maps.rules()
        change = hold(owned_addresses(link), actual)
        if change.write or change.remove:
            instance.maps.apply(change, actual)
            for prefix, rule in change.write.items():
                held = rule.held
                log.info("%s is %s", prefix, f"{rule.label}: a hole" if held else "free again")
            for prefix in change.remove:
                log.info("%s: the hole is gone", prefix)
        settings = instance.maps.settings()
        fresh = replace(settings, mac=link.mac, link_local=link_local(link))
        if fresh != settings:
            instance.maps.set_settings(fresh)
            log.info("%s has MAC %s now", link.name, link.mac.hex(":"))
    return True


# ---- rules and explanations ---------------------------------------------------------------------


def add_rules(tree: PinTree, instance: Instance, rules: Mapping[Prefix, Rule]) -> None:
    """Add rules to live maps; NdxdpError if any is there already, and none is added then."""
    with tree.lock():
        actual = instance.maps.rules()
        for prefix, rule in rules.items():
            there = actual.get(prefix)
            if there and there.source == rule.source and there.same_words(rule):
                raise NdxdpError(f"{prefix} has that rule already", "nothing was added")
        desired = _add(rules, actual)
        instance.maps.apply(difference(desired, actual), actual)


def delete_rules(
    tree: PinTree, instance: Instance, prefixes: list[Prefix] | None, source: str
) -> int:
    """Remove a source's rules, all of them for None; NdxdpError if one is not there or not its."""
    with tree.lock():
        actual = instance.maps.rules()
        if prefixes is None:
            prefixes = [prefix for prefix, rule in actual.items() if rule.source == source]
        desired = dict(actual)
        for prefix in prefixes:
            rule = actual.get(prefix)
            if rule is None:
                raise NdxdpError(f"{prefix} has no rule", "ndxdp prefix list shows all")
            if rule.source != source:
                raise NdxdpError(
                    f"the rule of {prefix} is not of source '{source}' but of '{rule.source}'",
                    "the host's own and its gateway's addresses are never answered for"
                    if rule.source == HOST_SOURCE
                    else f"name it if you mean it: --source {rule.source}",
                )
            if rule.held:
                desired[prefix] = hole("own")  # the host has the address still
            else:
                desired.pop(prefix, None)
        instance.maps.apply(difference(desired, actual), actual)
    return len(prefixes)


def explain(tree: PinTree, instance: Instance, solicitation: bytes) -> Explanation:
    """Run a made-up solicitation through the loaded program; it is not counted."""
    with tree.lock():
        try:
            run = libbpf.run_once(instance.prog_fd, solicitation)
        except BpfError as error:
            raise NdxdpError(
                f"the kernel did not run the program ({error.strerror})", "run this as root"
            ) from error
        verdict = instance.maps.explained()
    answered = run.retval == _TX[instance.maps.settings().mode]
    return Explanation(solicitation, verdict, run.data if answered else None)
