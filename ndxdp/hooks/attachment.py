"""Attachment of the program to an interface, without replacing a foreign program.

The attachment is a BPF link if the kernel has links for the hook (XDP: 5.9, tcx: 6.6). Otherwise
netlink attaches: XDP with XDP_FLAGS_UPDATE_IF_NOEXIST, tc by a clsact filter with a handle of its
own. A link exists as long as a descriptor or a pin; netlink's attachment stays until it is removed.

At tc several programs share the hook. A new attachment takes the first place that is free, because
a program that returns TC_ACT_OK ends the chain, and later programs do not see the frame.
"""

from __future__ import annotations

import errno
import itertools
import logging
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ndxdp.errors import ModeUnavailable, NdxdpError, from_os, interface_gone, is_exhausted
from ndxdp.hooks import hook_order
from ndxdp.kernel import bpf_hooks, bpf_programs
from ndxdp.kernel.abi import Mode, Restore
from ndxdp.kernel.libbpf import BpfError
from ndxdp.netlink import tc_filters, xdp
from ndxdp.netlink.qdisc import has_clsact

log = logging.getLogger(__name__)

TC_HANDLE = 0x6E64  # "nd"
_TRIES = 3  # to take a place, as another program may take it at the same moment
_PATIENCE = 2.0  # seconds until the kernel has detached the link of a killed process

_XDP_FLAGS = {
    Mode.NATIVE: bpf_hooks.XDP_FLAGS_DRV_MODE,
    Mode.GENERIC: bpf_hooks.XDP_FLAGS_SKB_MODE,
}


class Attachment(NamedTuple):
    """The attachment of a program.

    Attributes:
        mode: The hook.
        program: The id of the program.
        is_tcx: Attached by a link at tc, not by a filter.
    """

    mode: Mode
    program: int
    is_tcx: bool = False


def attachments(ifindex: int, programs: Collection[int]) -> Iterator[Attachment]:
    """Yield where on an interface these programs (by id) are attached; tcx comes last.

    Raises:
        BpfError: EPERM at tcx, which the kernel does not show without CAP_NET_ADMIN.
    """
    at_xdp = xdp.programs(ifindex)
    for mode, program in ((Mode.NATIVE, at_xdp.native), (Mode.GENERIC, at_xdp.generic)):
        if program in programs:
            yield Attachment(mode, program)
    for each in tc_filters.at_ingress(ifindex):
        if each.program is not None and each.program in programs:
            yield Attachment(Mode.TC, each.program)
    for program in bpf_hooks.tcx_program_ids(ifindex) or ():
        if program in programs:
            yield Attachment(Mode.TC, program, is_tcx=True)


def program_ids(ifindex: int) -> set[int]:
    """Return the ids of all programs that see an interface's frames come in, foreign ones too.

    Raises:
        BpfError: EPERM at tcx, which the kernel does not show without CAP_NET_ADMIN.
    """
    found = {*xdp.program_ids(ifindex), *(bpf_hooks.tcx_program_ids(ifindex) or ())}
    return found | {each.program for each in tc_filters.at_ingress(ifindex) if each.program}


def attach(
    interface: str, ifindex: int, mode: Mode, prog_fd: int, *, links: bool = True
) -> tuple[int | None, Restore]:
    """Attach a program to an interface to which ndxdp is not attached.

    Args:
        interface: The interface's name, for errors.
        ifindex: The interface.
        mode: The hook.
        prog_fd: The program.
        links: False to attach as on a kernel without BPF links.

    Returns:
        The link's descriptor (None if netlink attached), and what detaching restores.

    Raises:
        ModeUnavailable: A foreign program has the hook, or the driver refuses. Nothing has changed.
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
            # A kernel without such links returns EINVAL, and so do many drivers, without a message.
            # Netlink works on such a kernel, and gives the driver's reason.
            log.debug("cannot create a BPF link on %s: %s", interface, error)
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


def needs_clsact(mode: Mode, ifindex: int, *, links: bool = True) -> bool:
    """Return True if attach() would create a clsact qdisc on an interface."""
    has_tcx = links and bpf_hooks.tcx_program_ids(ifindex) is not None
    return mode is Mode.TC and not has_tcx and not has_clsact(ifindex)


def replace(
    interface: str, ifindex: int, mode: Mode, prog_fd: int, link_fd: int | None, old_prog_fd: int
) -> None:
    """Replace the attached program of ndxdp by a new program, between two frames."""
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
    """Return True if the program of ndxdp is attached to the interface, in any mode.

    Args:
        ifindex: The interface.
        prog_fd: The program.
        link_fd: The link, if it is open; else the hooks of the interface are queried.
    """
    if link_fd is not None:
        return bpf_hooks.link_info(link_fd).ifindex == ifindex
    info = bpf_programs.info_of(prog_fd)
    if info.type == bpf_programs.BPF_PROG_TYPE_XDP:  # without tcx, which needs CAP_NET_ADMIN
        return info.id in xdp.program_ids(ifindex)
    return any(attachments(ifindex, (info.id,)))


def program_id(prog_fd: int, link_fd: int | None) -> int:
    """Return the id of the attached program of ndxdp: the link's program, if there is a link."""
    if link_fd is not None:
        return bpf_hooks.link_info(link_fd).prog_id
    return bpf_programs.info_of(prog_fd).id


def is_overtaken(
    ifindex: int, mode: Mode, prog_fd: int, link_fd: int | None, *, links: bool = True
) -> bool:
    """Return True if a new attachment would see frames earlier than the present one.

    Also return True if the present attachment cannot be replaced, because it is a link that this
    process does not have open.

    Args:
        ifindex: The interface.
        mode: The present mode.
        prog_fd: The present program.
        link_fd: The present link, if it is open.
        links: False if the new attachment will be a filter.
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
    """Detach a program from an interface, unless a process has its link open.

    The kernel detaches the link of a killed process shortly after the process ends. The function
    waits for that, at most 2 s.
    """
    ours = (bpf_programs.info_of(prog_fd).id,)
    deadline = time.monotonic() + _PATIENCE
    for each in attachments(ifindex, ours):
        if is_by_netlink(ifindex, each, prog_fd):
            _detach_from(ifindex, each, prog_fd)
    while any(attachments(ifindex, ours)) and time.monotonic() < deadline:
        time.sleep(0.01)


def is_by_netlink(ifindex: int, attachment: Attachment, prog_fd: int) -> bool:
    """Return True if netlink made an attachment, which stays when processes end.

    Args:
        ifindex: The interface.
        attachment: The attachment.
        prog_fd: Its program.
    """
    if attachment.mode is Mode.TC:
        return not attachment.is_tcx
    try:  # replacing the program by itself changes nothing, and fails if a link is attached
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
    """Raise ModeUnavailable with the name of the XDP program on an interface, if there is one."""
    for prog_id in xdp.program_ids(ifindex):
        program = hook_order.named("xdp", prog_id)
        if program.name == hook_order.DISPATCHER:
            raise ModeUnavailable(
                f"{interface} already runs a {program}, which ndxdp does not replace",
                "--mode tc works with it, on the frames that its programs pass;"
                f" to list them: xdp-loader status {interface}",
            )
        raise ModeUnavailable(
            f"{interface} already runs an {program}, which ndxdp does not replace",
            f"--mode tc works with it; or detach it: ip link set dev {interface} xdp off",
        )


def _create_link(ifindex: int, mode: Mode, prog_fd: int) -> int:
    if mode is Mode.TC:
        return bpf_hooks.link_create(
            prog_fd, ifindex, bpf_hooks.BPF_TCX_INGRESS, bpf_hooks.BPF_F_BEFORE
        )
    return bpf_hooks.link_create(prog_fd, ifindex, bpf_hooks.BPF_XDP, _XDP_FLAGS[mode])


def _attach_filter(ifindex: int, prog_fd: int) -> Restore:
    created = Restore.CLSACT if bpf_hooks.clsact_create(ifindex) else Restore(0)
    try:
        for remaining in reversed(range(_TRIES)):
            place = _best(tc_filters.at_ingress(ifindex))
            try:
                bpf_hooks.tc_attach(ifindex, prog_fd, place.handle, place.priority, replace=False)
                break
            except BpfError as error:
                if error.errno != errno.EEXIST or not remaining:
                    raise
    except OSError:
        if created:
            bpf_hooks.clsact_destroy(ifindex)
        raise
    return created


class _Place(NamedTuple):
    """The place of a filter: its priority, and its handle at that priority."""

    priority: int
    handle: int


def _place_of(filters: list[tc_filters.Filter], prog_id: int) -> _Place | None:
    """Return the place of a program's filter; an older ndxdp used priority 0x6e64."""
    for each in filters:
        if each.kind == "bpf" and each.program == prog_id:
            return _Place(each.priority, each.handle)
    return None


def _best(filters: list[tc_filters.Filter]) -> _Place:
    """Return the first place that a new filter can take without replacing a filter.

    All filters of a priority have one protocol and one kind. The kernel runs the bpf filters of a
    priority newest first (cls_bpf_change()), so that bpf filters can share a priority.
    """
    for priority in itertools.count(1):
        here = [each for each in filters if each.priority == priority]
        if all((each.kind, each.protocol) == ("bpf", tc_filters.ETH_P_ALL) for each in here):
            break
    handles = {each.handle for each in here}
    free = (handle for handle in itertools.count(TC_HANDLE) if handle not in handles)
    return _Place(priority, next(free))


def _refusal(interface: str, mode: Mode, error: BpfError) -> NdxdpError:
    """Return the error for a refused attachment, with netlink's message if there is one."""
    if error.errno == errno.ENODEV:
        return interface_gone(interface)
    if is_exhausted(error):
        return from_os(error)
    messages = [
        line.partition("Kernel error message:")[2].strip()
        for line in error.log.splitlines()
        if "Kernel error message:" in line
    ]
    why = messages[0] if messages else error.strerror
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
    return ModeUnavailable(f"cannot attach the program to {interface}: {why}", "--debug shows more")
