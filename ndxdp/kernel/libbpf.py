"""The library libbpf, and the calls that bpf_maps, bpf_programs and bpf_hooks share.

Each call of libbpf has one thin function. A call that fails raises BpfError with the kernel's errno
and with the messages of libbpf (the verifier's log, netlink's extended message). Descriptors are
plain integers, which the caller closes. Constants have their names in linux/bpf.h, linux/if_link.h
and linux/pkt_sched.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import threading
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any

from ndxdp.errors import ModeUnavailable

ENOTSUPP = 524  # an errno of the kernel that libc does not know

BPF_F_RDONLY = 1 << 3

LOG_SIZE = (1 << 24) - 1
"""Bytes, the most that every kernel accepts. If the verifier's log does not fit, the error is
ENOSPC instead of the cause."""


class BpfError(OSError):
    """A call of libbpf failed: `operation` is the call, `log` the messages of libbpf."""

    def __init__(self, code: int, operation: str, log: str = "") -> None:
        super().__init__(code, os.strerror(code) if code != ENOTSUPP else "Not supported")
        self.operation = operation
        self.log = log

    def __str__(self) -> str:
        return f"{self.operation}: {self.strerror}"

    def __repr__(self) -> str:
        return f"BpfError({self})"


class Opts(ctypes.Structure):
    """An options struct of libbpf, whose first field is its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(sz=ctypes.sizeof(self), **values)


class _ObjGetOpts(Opts):
    _fields_ = (("sz", c_size_t), ("file_flags", c_uint32), ("_pad", c_uint32))


class _Printed(threading.local):
    """The messages of libbpf since the thread's last call began."""

    def __init__(self) -> None:
        self.lines: list[str] = []


_printed = _Printed()
_PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
SAMPLE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "libbpf_num_possible_cpus": ([], c_int),
    "bpf_map_create": ([c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p], c_int),
    "bpf_map_lookup_elem": ([c_int, c_char_p, c_void_p], c_int),
    "bpf_map_update_elem": ([c_int, c_char_p, c_char_p, c_uint64], c_int),
    "bpf_map_delete_elem": ([c_int, c_char_p], c_int),
    "bpf_map_lookup_and_delete_elem": ([c_int, c_char_p, c_char_p], c_int),
    "bpf_map_get_next_key": ([c_int, c_char_p, c_void_p], c_int),
    "bpf_map_lookup_batch": (
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
        c_int,
    ),
    "bpf_map_update_batch": (
        [c_int, c_char_p, c_char_p, POINTER(c_uint32), c_void_p],
        c_int,
    ),
    "bpf_map_delete_batch": ([c_int, c_void_p, POINTER(c_uint32), c_void_p], c_int),
    "bpf_map_get_fd_by_id": ([c_uint32], c_int),
    "bpf_obj_pin": ([c_int, c_char_p], c_int),
    "bpf_obj_get_opts": ([c_char_p, c_void_p], c_int),
    "bpf_obj_get_info_by_fd": ([c_int, c_void_p, POINTER(c_uint32)], c_int),
    "bpf_prog_get_fd_by_id": ([c_uint32], c_int),
    "bpf_prog_load": (
        [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p],
        c_int,
    ),
    "bpf_prog_test_run_opts": ([c_int, c_void_p], c_int),
    "bpf_prog_query": (
        [c_int, c_int, c_uint32, c_void_p, c_void_p, POINTER(c_uint32)],
        c_int,
    ),
    "bpf_link_create": ([c_int, c_int, c_int, c_void_p], c_int),
    "bpf_link_detach": ([c_int], c_int),
    "bpf_link_update": ([c_int, c_int, c_void_p], c_int),
    "bpf_xdp_attach": ([c_int, c_int, c_uint32, c_void_p], c_int),
    "bpf_xdp_detach": ([c_int, c_uint32, c_void_p], c_int),
    "bpf_tc_hook_create": ([c_void_p], c_int),
    "bpf_tc_hook_destroy": ([c_void_p], c_int),
    "bpf_tc_attach": ([c_void_p, c_void_p], c_int),
    "bpf_tc_detach": ([c_void_p, c_void_p], c_int),
    "bpf_tc_query": ([c_void_p, c_void_p], c_int),
    "bpf_object__open_mem": ([c_char_p, c_size_t, c_void_p], c_void_p),
    "bpf_object__load": ([c_void_p], c_int),
    "bpf_object__close": ([c_void_p], None),
    "bpf_object__next_program": ([c_void_p, c_void_p], c_void_p),
    "bpf_object__find_map_by_name": ([c_void_p, c_char_p], c_void_p),
    "bpf_program__name": ([c_void_p], c_char_p),
    "bpf_program__set_autoload": ([c_void_p, ctypes.c_bool], c_int),
    "bpf_program__flags": ([c_void_p], c_uint32),
    "bpf_program__set_flags": ([c_void_p, c_uint32], c_int),
    "bpf_program__fd": ([c_void_p], c_int),
    "bpf_map__reuse_fd": ([c_void_p, c_int], c_int),
    "ring_buffer__new": ([c_int, SAMPLE_FN, c_void_p, c_void_p], c_void_p),
    "ring_buffer__epoll_fd": ([c_void_p], c_int),
    "ring_buffer__consume": ([c_void_p], c_int),
    "ring_buffer__free": ([c_void_p], None),
}


@functools.cache
def library() -> ctypes.CDLL:
    """Load libbpf; raise ModeUnavailable if it is not installed."""
    try:
        found = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise ModeUnavailable(
            "libbpf.so.1 is not installed", "on Debian and Ubuntu: apt install libbpf1"
        ) from None
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    # libbpf passes a format string and a va_list, which only C can format.
    vsnprintf = ctypes.CDLL(None).vsnprintf
    vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]

    def keep(level: int, text: bytes, arguments: int) -> int:
        if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
            size = LOG_SIZE if b"BEGIN PROG LOAD LOG" in text else 1 << 12
            buffer = ctypes.create_string_buffer(size)
            vsnprintf(buffer, size, text, arguments)
            _printed.lines.append(buffer.value.decode(errors="replace"))
        return 0

    found.libbpf_set_print.argtypes = [_PRINT_FN]
    found.libbpf_set_print.restype = c_void_p
    callback = _PRINT_FN(keep)
    found.libbpf_set_print(callback)
    setattr(found, "_callback", callback)  # noqa: B010 - keeps the callback alive for C
    return found


def call(name: str, *arguments: Any) -> int:
    """Call a function of libbpf 1.x that returns a value or -errno."""
    libbpf = library()
    _printed.lines.clear()
    result: int = getattr(libbpf, name)(*arguments)
    if result < 0:
        raise BpfError(-result, name, "".join(_printed.lines))
    return result


def pointer(name: str, *arguments: Any) -> int:
    """Call a function of libbpf 1.x that returns a pointer, or NULL and sets errno."""
    libbpf = library()
    _printed.lines.clear()
    ctypes.set_errno(0)
    result: int | None = getattr(libbpf, name)(*arguments)
    if not result:
        raise BpfError(ctypes.get_errno() or errno.EINVAL, name, "".join(_printed.lines))
    return result


def info(fd: int, kind: type[Any]) -> Any:
    """Return the kernel's description of an object, as the structure `kind`."""
    found = kind()
    call("bpf_obj_get_info_by_fd", fd, byref(found), byref(c_uint32(ctypes.sizeof(found))))
    return found


# ---- pins ---------------------------------------------------------------------------------------


def pin(fd: int, path: str) -> None:
    """Pin an object at a path of a BPF file system."""
    call("bpf_obj_pin", fd, path.encode())


def get_pinned(path: str, *, readonly: bool = False) -> int:
    """Open a pinned object, and return its descriptor.

    Args:
        path: The pin.
        readonly: Open a map or a program for reading, for which read permission suffices; a link
            always needs both permissions.
    """
    opts = _ObjGetOpts(file_flags=BPF_F_RDONLY if readonly else 0)
    return call("bpf_obj_get_opts", path.encode(), byref(opts))
