"""Calls of libbpf for the hooks of an interface, XDP and tc; see libbpf.py."""

from __future__ import annotations

import errno
from ctypes import Structure, byref, c_int, c_size_t, c_uint32
from typing import NamedTuple

from ndxdp.kernel import libbpf
from ndxdp.kernel.libbpf import BpfError, Opts, call

BPF_XDP = 37
BPF_TCX_INGRESS = 46

BPF_F_BEFORE = 1 << 3  # before all other programs, if no program is named

XDP_FLAGS_UPDATE_IF_NOEXIST = 1 << 0
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_REPLACE = 1 << 4

BPF_TC_INGRESS = 1
BPF_TC_F_REPLACE = 1


class _LinkCreateOpts(Opts):
    """The first fields of struct bpf_link_create_opts."""

    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("_pad", c_uint32))


class _XdpAttachOpts(Opts):
    _fields_ = (("sz", c_size_t), ("old_prog_fd", c_int), ("_pad", c_uint32))


class _TcHook(Opts):
    _fields_ = (
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_uint32),
        ("parent", c_uint32),
        ("_pad", c_uint32),
    )


class _TcOpts(Opts):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
        ("_pad", c_uint32),
    )


class _LinkInfo(Structure):
    """The first fields of struct bpf_link_info, with the union of XDP and tcx links."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
    )


class LinkInfo(NamedTuple):
    """The kernel's description of a link; ifindex is 0 after the interface was deleted."""

    id: int
    prog_id: int
    ifindex: int


def link_create(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attach by a link, which exists as long as a descriptor or a pin; return the descriptor."""
    return call(
        "bpf_link_create", prog_fd, ifindex, attach_type, byref(_LinkCreateOpts(flags=flags))
    )


def link_update(link_fd: int, prog_fd: int) -> None:
    """Replace the program of a link between two frames."""
    call("bpf_link_update", link_fd, prog_fd, None)


def link_detach(link_fd: int) -> None:
    """Detach a link's program at once, even if other processes have the link open."""
    call("bpf_link_detach", link_fd)


def link_info(fd: int) -> LinkInfo:
    """Return the kernel's description of an open link."""
    found = libbpf.info(fd, _LinkInfo)
    return LinkInfo(found.id, found.prog_id, found.ifindex)


def xdp_attach(ifindex: int, prog_fd: int, flags: int, old_prog_fd: int | None = None) -> None:
    """Attach by netlink; with XDP_FLAGS_REPLACE, only in place of `old_prog_fd`."""
    opts = _XdpAttachOpts(old_prog_fd=-1 if old_prog_fd is None else old_prog_fd)
    call(
        "bpf_xdp_attach",
        ifindex,
        prog_fd,
        flags,
        byref(opts) if flags & XDP_FLAGS_REPLACE else None,
    )


def xdp_detach(ifindex: int, flags: int, old_prog_fd: int) -> None:
    """Detach by netlink; raise BpfError (EEXIST) if `old_prog_fd` is not attached."""
    opts = _XdpAttachOpts(old_prog_fd=old_prog_fd)
    call("bpf_xdp_detach", ifindex, flags | XDP_FLAGS_REPLACE, byref(opts))


def tcx_program_ids(ifindex: int) -> list[int] | None:
    """Return the ids of the programs at tcx ingress, in the order in which the kernel runs them.

    Returns:
        None on a kernel without tcx (before 6.6), and if the interface does not exist.
    """
    ids = (c_uint32 * 64)()  # BPF_MPROG_MAX, the kernel's limit
    count = c_uint32(len(ids))
    try:
        call("bpf_prog_query", ifindex, BPF_TCX_INGRESS, 0, None, ids, byref(count))
    except BpfError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return None
        raise
    return list(ids[: count.value])


def clsact_create(ifindex: int) -> bool:
    """Create the clsact qdisc; return False if it exists already."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    try:
        call("bpf_tc_hook_create", byref(hook))
    except BpfError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def clsact_destroy(ifindex: int) -> None:
    """Delete the clsact qdisc with all its filters."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS | 2)
    call("bpf_tc_hook_destroy", byref(hook))


def tc_attach(ifindex: int, prog_fd: int, handle: int, priority: int, replace: bool) -> None:
    """Attach a program by a clsact filter at ingress."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    flags = BPF_TC_F_REPLACE if replace else 0
    opts = _TcOpts(prog_fd=prog_fd, flags=flags, handle=handle, priority=priority)
    call("bpf_tc_attach", byref(hook), byref(opts))


def tc_detach(ifindex: int, handle: int, priority: int) -> None:
    """Delete a clsact filter at ingress."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    call("bpf_tc_detach", byref(hook), byref(_TcOpts(handle=handle, priority=priority)))
