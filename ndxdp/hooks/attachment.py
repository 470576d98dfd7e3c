"""Attaching a program to an interface, and detaching it, without replacing one of others.

A BPF link where the kernel has them for the hook (XDP 5.9, tcx 6.6), else netlink: XDP with
"only if nobody is there", and a clsact filter with a handle of its own for tc. A link lives as
long as its descriptor or its pin; what netlink attached stays until it is detached.

At tc, where several programs share the hook, a new attachment takes the first place that can be
had: a program that returns TC_ACT_OK ends the chain, and those after it see no frame.
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError, from_os, gone, is_exhausted
from ndxdp.hooks import hook_order
from ndxdp.kernel import bpf_hooks, bpf_programs
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.kernel.libbpf import BpfError
from ndxdp.netlink import tc_filters

log = logging.getLogger(__name__)

TC_HANDLE = 0x6E64  # "nd"
_TRIES = 3  # of a place that somebody else takes at the same moment
_PATIENCE = 2.0  # seconds for the link of a process that was killed to go

_XDP_FLAGS = {
    Mode.NATIVE: bpf_hooks.XDP_FLAGS_DRV_MODE,
    Mode.GENERIC: bpf_hooks.XDP_FLAGS_SKB_MODE,
}


class Attachment(NamedTuple):
    """A program at a hook. program: its id. is_tcx: by a link at tc, not by a filter."""

    mode: Mode
    program: int
    is_tcx: bool = False


def attachments(ifindex: int, programs: Collection[int]) -> Iterator[Attachment]:
    """Yield where on an interface these programs (by id) are attached.

    What others than root may not see comes last.

    Raises:
        BpfError: EPERM for a process without CAP_NET_ADMIN, to which the kernel shows no tcx.
    """
    xdp = bpf_hooks.xdp_programs(ifindex)
    for mode, program in ((Mode.NATIVE, xdp.native), (Mode.GENERIC, xdp.generic)):
        if program in programs:
            yield Attachment(mode, program)
    for each in tc_filters.at_ingress(ifindex):
        if each.program is not None and each.program in programs:
            yield Attachment(Mode.TC, each.program)
    for program in bpf_hooks.tcx_program_ids(ifindex) or ():
        if program in programs:
            yield Attachment(Mode.TC, program, is_tcx=True)


def attach(
    interface: str, ifindex: int, mode: Mode, prog_fd: int, *, links: bool = True
) -> tuple[int | None, Restore]:
    """Attach to an interface that has nothing of ours.

    Returns the link's descriptor (None where netlink did it) and what detach() must know.
    links: False takes the way of a kernel without BPF links. ModeUnavailable if someone else holds
    the hook or the driver refuses; then nothing has changed.
    """
    if mode is not Mode.TC:
        refuse_foreign(interface, ifindex)
    if links:
        try:
            return _create_link(ifindex, mode, prog_fd), Restore(0)
        except BpfError as error:
            if is_exhausted(error):
                raise
            if error.errno in (errno.EBUSY, errno.EEXIST) and mode is not Mode.TC:
                refuse_foreign(interface, ifindex)
            # Anything else: a kernel that has no such link says EINVAL, and so does many a
            # driver, without a word. Netlink serves the first and gives the second's reason.
            log.debug("no BPF link on %s: %s", interface, error)
    try:
        if mode is Mode.TC:
            return None, _attach_filter(ifindex, prog_fd) | Restore.NETLINK
        flags = _XDP_FLAGS[mode] | bpf_hooks.XDP_FLAGS_UPDATE_IF_NOEXIST
        bpf_hooks.xdp_attach(ifindex, prog_fd, flags)
        return None, Restore.NETLINK
    except BpfError as error:
        if error.errno in (errno.EBUSY, errno.EEXIST) and mode is not Mode.TC:
            refuse_foreign(interface, ifindex)
        raise _refusal(interface, mode, error) from error


def replace(
    interface: str, ifindex: int, mode: Mode, prog_fd: int, link_fd: int | None, old_prog_fd: int
) -> None:
    """Put a new program in the place of our old one, between two frames."""
    try:
        if link_fd is not None:
            bpf_hooks.link_update(link_fd, prog_fd)
        elif mode is Mode.TC:
            filters = tc_filters.at_ingress(ifindex)
            place = _place_of(filters, bpf_programs.info_of(old_prog_fd).id) or _best(filters)
            bpf_hooks.tc_attach(ifindex, prog_fd, place.handle, place.priority, replace=True)
        else:
            flags = _XDP_FLAGS[mode] | bpf_hooks.XDP_FLAGS_REPLACE
            bpf_hooks.xdp_attach(ifindex, prog_fd, flags, old_prog_fd)
    except BpfError as error:
        raise _refusal(interface, mode, error) from error


def is_attached(ifindex: int, prog_fd: int, link_fd: int | None = None) -> bool:
    """Return True if our program is attached to the interface, in any mode.

    A link whose interface has gone, or that hangs on another one, is not. Without `link_fd` the
    hooks are asked, whoever holds the link.
    """
    if link_fd is not None:
        return bpf_hooks.link_info(link_fd).ifindex == ifindex
    info = bpf_programs.info_of(prog_fd)
    if info.type == bpf_programs.BPF_PROG_TYPE_XDP:  # tcx, which it cannot be at, is not for all
        return info.id in bpf_hooks.xdp_program_ids(ifindex)
    return any(attachments(ifindex, (info.id,)))


def program_id(prog_fd: int, link_fd: int | None) -> int:
    """Return the id of our attached program: the link's where there is one."""
    if link_fd is not None:
        return bpf_hooks.link_info(link_fd).prog_id
    return bpf_programs.info_of(prog_fd).id


def is_overtaken(
    ifindex: int, mode: Mode, prog_fd: int, link_fd: int | None, *, links: bool = True
) -> bool:
    """Return True if a new attachment would see frames earlier than the present one does.

    Also if the present one cannot be replaced: a link of a process that has just ended.
    links: False if the new attachment is to be a filter.
    """
    if mode is not Mode.TC:
        return False
    ours = program_id(prog_fd, link_fd)
    tcx = bpf_hooks.tcx_program_ids(ifindex)
    if tcx and ours in tcx:
        return link_fd is None or (links and tcx[0] != ours)
    filters = tc_filters.at_ingress(ifindex)
    if _place_of(filters, ours) is None:
        return True
    ahead = hook_order.filters_before(filters, ours)
    if links and tcx is not None:
        return bool(tcx or ahead)
    priority = _best([each for each in filters if each.program != ours]).priority
    return any(each.priority >= priority for each in ahead)


def detach(ifindex: int, prog_fd: int) -> None:
    """Detach a program from an interface. A link that a process holds keeps it.

    The kernel takes a killed process's link off a moment after the process: that is waited for.
    """
    ours = (bpf_programs.info_of(prog_fd).id,)
    give_up = time.monotonic() + _PATIENCE
    for each in attachments(ifindex, ours):
        if is_by_netlink(ifindex, each, prog_fd):
            _detach_from(ifindex, each, prog_fd)
    while any(attachments(ifindex, ours)) and time.monotonic() < give_up:
        time.sleep(0.01)


def is_by_netlink(ifindex: int, attachment: Attachment, prog_fd: int) -> bool:
    """Return True if netlink attached a program, and so it stays there.

    Args:
        prog_fd: that program.
    """
    if attachment.mode is Mode.TC:
        return not attachment.is_tcx
    try:  # to put it in its own place, which changes nothing, and fails while a link is there
        flags = _XDP_FLAGS[attachment.mode] | bpf_hooks.XDP_FLAGS_REPLACE
        bpf_hooks.xdp_attach(ifindex, prog_fd, flags, prog_fd)
    except BpfError as error:
        if error.errno not in (errno.EBUSY, errno.EEXIST):
            raise
        return False
    return True


def _detach_from(ifindex: int, attachment: Attachment, prog_fd: int) -> None:
    if attachment.mode is not Mode.TC:
        bpf_hooks.xdp_detach(ifindex, _XDP_FLAGS[attachment.mode], prog_fd)
        return
    found = _place_of(tc_filters.at_ingress(ifindex), attachment.program)
    if found:
        bpf_hooks.tc_detach(ifindex, found.handle, found.priority)


def refuse_foreign(interface: str, ifindex: int) -> None:
    """ModeUnavailable that names the XDP program on an interface, if there is one."""
    for prog_id in bpf_hooks.xdp_program_ids(ifindex):
        program = hook_order.named("xdp", prog_id)
        if program.name == hook_order.DISPATCHER:
            raise ModeUnavailable(
                f"{interface} already runs a {program}, which is not ours to replace",
                "--mode tc works beside it, and sees what its programs let pass;"
                f" they are shown by: xdp-loader status {interface}",
            )
        raise ModeUnavailable(
            f"{interface} already runs an {program}, which is not ours to replace",
            f"--mode tc works beside it; or take it off: ip link set dev {interface} xdp off",
        )


def _create_link(ifindex: int, mode: Mode, prog_fd: int) -> int:
    if mode is Mode.TC:
        return bpf_hooks.link_create(
            prog_fd, ifindex, bpf_hooks.BPF_TCX_INGRESS, bpf_hooks.BPF_F_BEFORE
        )
    return bpf_hooks.link_create(prog_fd, ifindex, bpf_hooks.BPF_XDP, _XDP_FLAGS[mode])


def _attach_filter(ifindex: int, prog_fd: int) -> Restore:
    made = Restore.CLSACT if bpf_hooks.clsact_create(ifindex) else Restore(0)
    try:
        for left in reversed(range(_TRIES)):
            place = _best(tc_filters.at_ingress(ifindex))
            try:
                bpf_hooks.tc_attach(ifindex, prog_fd, place.handle, place.priority, replace=False)
                break
            except BpfError as error:
                if error.errno != errno.EEXIST or not left:
                    raise
    except OSError:
        if made:
            bpf_hooks.clsact_destroy(ifindex)
        raise
    return made


class _Place(NamedTuple):
    """A filter's place: its priority, and its handle there."""

    priority: int
    handle: int


def _place_of(filters: list[tc_filters.Filter], prog_id: int) -> _Place | None:
    """Return where our filter is; an older ndxdp put it at priority 0x6e64."""
    for each in filters:
        if each.kind == "bpf" and each.program == prog_id:
            return _Place(each.priority, each.handle)
    return None


def _best(filters: list[tc_filters.Filter]) -> _Place:
    """Return the first place that a new filter can have without replacing one.

    A priority is of one protocol and one kind of filter. The kernel runs the bpf filters of one
    priority newest first (cls_bpf_change()), so that a priority of bpf filters can be shared.
    """
    for priority in itertools.count(1):
        here = [each for each in filters if each.priority == priority]
        if all((each.kind, each.protocol) == ("bpf", tc_filters.ETH_P_ALL) for each in here):
            break
    handles = {each.handle for each in here}
    free = (handle for handle in itertools.count(TC_HANDLE) if handle not in handles)
    return _Place(priority, next(free))


def _refusal(interface: str, mode: Mode, error: BpfError) -> NdxdpError:
    """The kernel's own words, where netlink brought any."""
    if error.errno == errno.ENODEV:
        return gone(interface)
    if is_exhausted(error):
        return from_os(error)
    said = [
        line.partition("Kernel error message:")[2].strip()
        for line in error.log.splitlines()
        if "Kernel error message:" in line
    ]
    why = said[0] if said else error.strerror
    log.debug("%s: %s", error, error.log.strip())
    if error.errno == errno.EPERM:
        return ModeUnavailable(
            f"the kernel does not let this process attach to {interface}",
            "run this as root, or with CAP_BPF and CAP_NET_ADMIN",
        )
    if mode is Mode.NATIVE:
        return ModeUnavailable(
            f"{interface} does not run XDP in its driver ({why})",
            "--mode tc works on every Ethernet interface",
        )
    return ModeUnavailable(f"{interface} did not take the program ({why})", "--debug shows more")
