"""The attach ladder: how a program gets onto an interface, and off it, clobbering nobody.

A BPF link where the kernel has them for the hook (XDP 5.9, tcx 6.6), else netlink: XDP with
"only if nobody is there", and a clsact filter of our own number for tc. A link lives as long as
its descriptor or its pin; what netlink attached stays until it is detached.
"""

from __future__ import annotations

import errno
import logging

from ndxdp.errors import ModeUnavailable, NdxdpError, gone
from ndxdp.kernel import bpf_hooks, bpf_programs
from ndxdp.kernel.abi import Left, Mode
from ndxdp.kernel.libbpf import BpfError

log = logging.getLogger(__name__)

TC_HANDLE = 0x6E64  # "nd"
TC_PRIORITY = 0x6E64

_XDP_FLAGS = {
    Mode.NATIVE: bpf_hooks.XDP_FLAGS_DRV_MODE,
    Mode.GENERIC: bpf_hooks.XDP_FLAGS_SKB_MODE,
}


def attach(
    interface: str, ifindex: int, mode: Mode, prog_fd: int, *, links: bool = True
) -> tuple[int | None, Left]:
    """Attach to an interface that has nothing of ours.

    Returns the link's descriptor (None where netlink did it) and what detach() must know.
    links: False takes the way of a kernel without BPF links. ModeUnavailable if someone else holds
    the hook or the driver refuses; then nothing has changed.
    """
    if mode is not Mode.TC:
        refuse_foreign(interface, ifindex)
    if links:
        try:
            return _create_link(ifindex, mode, prog_fd), Left(0)
        except BpfError as error:
            if error.errno in (errno.EBUSY, errno.EEXIST) and mode is not Mode.TC:
                refuse_foreign(interface, ifindex)
            # Anything else: a kernel that has no such link says EINVAL, and so does many a
            # driver, without a word. Netlink serves the first and gives the second's reason.
            log.debug("no BPF link on %s: %s", interface, error)
    try:
        if mode is Mode.TC:
            return None, _attach_filter(ifindex, prog_fd) | Left.NETLINK
        flags = _XDP_FLAGS[mode] | bpf_hooks.XDP_FLAGS_UPDATE_IF_NOEXIST
        bpf_hooks.xdp_attach(ifindex, prog_fd, flags)
        return None, Left.NETLINK
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
            bpf_hooks.tc_attach(ifindex, prog_fd, TC_HANDLE, TC_PRIORITY, replace=True)
        else:
            flags = _XDP_FLAGS[mode] | bpf_hooks.XDP_FLAGS_REPLACE
            bpf_hooks.xdp_attach(ifindex, prog_fd, flags, old_prog_fd)
    except BpfError as error:
        raise _refusal(interface, mode, error) from error


def is_attached(ifindex: int, mode: Mode, prog_fd: int, link_fd: int | None = None) -> bool:
    """Our program is at work on the hook.

    A link whose interface has gone, or that hangs on another one, is not. Without `link_fd` the
    hook is asked, whoever holds the link.
    """
    if link_fd is not None:
        return bpf_hooks.link_info(link_fd).ifindex == ifindex
    ours = bpf_programs.info_of(prog_fd).id
    if mode is not Mode.TC:
        return ours in bpf_hooks.xdp_program_ids(ifindex)
    return ours in bpf_hooks.tcx_program_ids(ifindex) or _is_filter(ifindex, ours)


def detach(ifindex: int, mode: Mode, prog_fd: int) -> None:
    """Take off what netlink attached, if it is still ours. A link goes with its last holder."""
    if mode is Mode.TC:
        if _is_filter(ifindex, bpf_programs.info_of(prog_fd).id):
            bpf_hooks.tc_detach(ifindex, TC_HANDLE, TC_PRIORITY)
    elif is_attached(ifindex, mode, prog_fd):
        bpf_hooks.xdp_detach(ifindex, _XDP_FLAGS[mode], prog_fd)


def refuse_foreign(interface: str, ifindex: int) -> None:
    """ModeUnavailable that names the XDP program on an interface, if there is one."""
    for prog_id in bpf_hooks.xdp_program_ids(ifindex):
        name = bpf_programs.name_of(prog_id)
        called = f"'{name}' (id {prog_id})" if name else f"with id {prog_id}"
        raise ModeUnavailable(
            f"{interface} already runs an XDP program {called}, which is not ours to replace",
            f"--mode tc works beside it; or take it off: ip link set dev {interface} xdp off",
        )


def _create_link(ifindex: int, mode: Mode, prog_fd: int) -> int:
    if mode is Mode.TC:
        return bpf_hooks.link_create(prog_fd, ifindex, bpf_hooks.BPF_TCX_INGRESS)
    return bpf_hooks.link_create(prog_fd, ifindex, bpf_hooks.BPF_XDP, _XDP_FLAGS[mode])


def _attach_filter(ifindex: int, prog_fd: int) -> Left:
    made = Left.CLSACT if bpf_hooks.clsact_create(ifindex) else Left(0)
    try:
        bpf_hooks.tc_attach(ifindex, prog_fd, TC_HANDLE, TC_PRIORITY, replace=False)
    except BpfError:
        if made:
            bpf_hooks.clsact_destroy(ifindex)
        raise
    return made


def _is_filter(ifindex: int, prog_id: int) -> bool:
    return bpf_hooks.tc_program_id(ifindex, TC_HANDLE, TC_PRIORITY) == prog_id


def _refusal(interface: str, mode: Mode, error: BpfError) -> NdxdpError:
    """The kernel's own words, where netlink brought any."""
    if error.errno == errno.ENODEV:
        return gone(interface)
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
