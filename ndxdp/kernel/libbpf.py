"""bpf(2) through libbpf: the only ctypes of the project.

One thin function per call. Every call that fails raises BpfError with the kernel's errno, and
with what libbpf had to say (the verifier's log, netlink's extended message). Descriptors are
plain ints that the caller closes. Constants are linux/bpf.h's, linux/if_link.h's and
linux/pkt_sched.h's, under their names there.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import threading
from collections.abc import Iterator
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, NamedTuple

from ndxdp.errors import ModeUnavailable
from ndxdp.kernel.abi import MapSpec

BPF_PROG_TYPE_SCHED_CLS = 3
BPF_PROG_TYPE_XDP = 6
BPF_XDP = 37
BPF_TCX_INGRESS = 46
BPF_F_XDP_HAS_FRAGS = 1 << 5

XDP_FLAGS_UPDATE_IF_NOEXIST = 1 << 0
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2
XDP_FLAGS_REPLACE = 1 << 4

BPF_F_RDONLY = 1 << 3
BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1

BPF_TC_INGRESS = 1
BPF_TC_F_REPLACE = 1

_BATCH = 16384
_RECORDS = 1024
# Bytes, the most that every kernel takes. Where the verifier's log does not fit, the kernel says
# ENOSPC and not what is wrong.
_LOG_SIZE = (1 << 24) - 1
_ENOTSUPP = 524  # the kernel's own "not supported", which libc does not know


class BpfError(OSError):
    """A call failed. `operation` says which, `log` what libbpf printed on the way."""

    def __init__(self, code: int, operation: str, log: str = "") -> None:
        super().__init__(code, os.strerror(code) if code != _ENOTSUPP else "Not supported")
        self.operation = operation
        self.log = log

    def __str__(self) -> str:
        return f"{self.operation}: {self.strerror}"

    def __repr__(self) -> str:
        return f"BpfError({self})"


class _Opts(ctypes.Structure):
    """An options struct of libbpf: its first field is its own size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(sz=ctypes.sizeof(self), **values)


class _LinkCreateOpts(_Opts):
    """As far as we fill it."""

    _fields_ = [("sz", c_size_t), ("flags", c_uint32), ("_pad", c_uint32)]


class _MapCreateOpts(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    ]


class _BatchOpts(_Opts):
    _fields_ = [("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64)]


class _ObjGetOpts(_Opts):
    _fields_ = [("sz", c_size_t), ("file_flags", c_uint32), ("_pad", c_uint32)]


class _ProgLoadOpts(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("_pad", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    ]


class _TestRunOpts(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_char_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    ]


class _XdpAttachOpts(_Opts):
    _fields_ = [("sz", c_size_t), ("old_prog_fd", c_int), ("_pad", c_uint32)]


class _XdpQueryOpts(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", c_uint8),
        ("_pad", c_uint8 * 7),
    ]


class _TcHook(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_uint32),
        ("parent", c_uint32),
        ("_pad", c_uint32),
    ]


class _TcOpts(_Opts):
    _fields_ = [
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
        ("_pad", c_uint32),
    ]


class _ProgInfo(ctypes.Structure):
    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", c_uint32),
        ("gpl_compatible", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("nr_jited_ksyms", c_uint32),
        ("nr_jited_func_lens", c_uint32),
        ("jited_ksyms", c_uint64),
        ("jited_func_lens", c_uint64),
        ("btf_id", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("func_info", c_uint64),
        ("nr_func_info", c_uint32),
        ("nr_line_info", c_uint32),
        ("line_info", c_uint64),
        ("jited_line_info", c_uint64),
        ("nr_jited_line_info", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("jited_line_info_rec_size", c_uint32),
        ("nr_prog_tags", c_uint32),
        ("prog_tags", c_uint64),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    ]


class _MapInfo(ctypes.Structure):
    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    ]


class _LinkInfo(ctypes.Structure):
    """Up to the first field of the union, which for XDP and tcx is the ifindex."""

    _fields_ = [
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("_pad", c_uint32),
        ("ifindex", c_uint32),
        ("attach_type", c_uint32),
    ]


class ProgInfo(NamedTuple):
    """id: the kernel's number. tag: of the instructions, 16 hex digits. name: up to 15 bytes.

    run_time_ns, run_count: of real frames, while the sysctl kernel.bpf_stats_enabled was 1.
    """

    id: int
    tag: str
    name: str
    run_time_ns: int = 0
    run_count: int = 0


class LinkInfo(NamedTuple):
    """ifindex is 0 when the interface has gone from under the link."""

    id: int
    prog_id: int
    ifindex: int


class Run(NamedTuple):
    """What a program returned, the frame that it left, and the ns of a run on average."""

    retval: int
    data: bytes
    duration: int = 0


class _Printed(threading.local):
    """What libbpf has printed since the thread's last call began."""

    def __init__(self) -> None:
        self.lines: list[str] = []


_printed = _Printed()
_PRINT_FN = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_SAMPLE_FN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "libbpf_num_possible_cpus": ([], c_int),
    "bpf_map_create": ([c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p], c_int),
    "bpf_map_lookup_elem": ([c_int, c_char_p, c_void_p], c_int),
    "bpf_map_update_elem": ([c_int, c_char_p, c_char_p, c_uint64], c_int),
    "bpf_map_delete_elem": ([c_int, c_char_p], c_int),
    "bpf_map_get_next_key": ([c_int, c_char_p, c_void_p], c_int),
    "bpf_map_lookup_batch": (
        [c_int, c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_uint32), c_void_p],
        c_int,
    ),
    "bpf_map_update_batch": (
        [c_int, c_char_p, c_char_p, POINTER(c_uint32), c_void_p],
        c_int,
    ),
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
    "bpf_xdp_query": ([c_int, c_int, c_void_p], c_int),
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
    "ring_buffer__new": ([c_int, _SAMPLE_FN, c_void_p, c_void_p], c_void_p),
    "ring_buffer__epoll_fd": ([c_void_p], c_int),
    "ring_buffer__consume": ([c_void_p], c_int),
    "ring_buffer__free": ([c_void_p], None),
}


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise ModeUnavailable(
            "libbpf.so.1 is not installed", "on Debian and Ubuntu: apt install libbpf1"
        ) from None
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    # libbpf hands over a format string and a va_list, which only C can join.
    vsnprintf = ctypes.CDLL(None).vsnprintf
    vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]

    def keep(level: int, text: bytes, arguments: int) -> int:
        if level <= 1:  # LIBBPF_WARN, LIBBPF_INFO
            size = _LOG_SIZE if b"BEGIN PROG LOAD LOG" in text else 1 << 12
            buffer = ctypes.create_string_buffer(size)
            vsnprintf(buffer, size, text, arguments)
            _printed.lines.append(buffer.value.decode(errors="replace"))
        return 0

    library.libbpf_set_print.argtypes = [_PRINT_FN]
    library.libbpf_set_print.restype = c_void_p
    callback = _PRINT_FN(keep)
    library.libbpf_set_print(callback)
    setattr(library, "_callback", callback)  # noqa: B010 - C holds it: it must live as long
    return library


def _call(name: str, *arguments: Any) -> int:
    """Call a function of libbpf 1.x, which returns a value or -errno."""
    library = _library()
    _printed.lines.clear()
    result: int = getattr(library, name)(*arguments)
    if result < 0:
        raise BpfError(-result, name, "".join(_printed.lines))
    return result


@functools.cache
def possible_cpus() -> int:
    """How many values an element of a per-CPU map has."""
    return _call("libbpf_num_possible_cpus")


# ---- maps ---------------------------------------------------------------------------------------


def map_create(spec: MapSpec) -> int:
    opts = _MapCreateOpts(map_flags=spec.flags)
    return _call(
        "bpf_map_create",
        spec.type,
        spec.name.encode()[:15],
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        byref(opts),
    )


def map_spec(fd: int) -> MapSpec:
    """What an open map really is; its name is cut to 15 bytes."""
    info = _info(fd, _MapInfo)
    return MapSpec(
        info.name.decode(),
        info.type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.map_flags,
    )


def map_lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """The value of `size` bytes (for a per-CPU map: of all CPUs), None without one."""
    value = ctypes.create_string_buffer(size)
    try:
        _call("bpf_map_lookup_elem", fd, key, value)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes) -> None:
    _call("bpf_map_update_elem", fd, key, value, 0)


def map_update_batch(fd: int, spec: MapSpec, keys: bytes, values: bytes) -> None:
    """Write entries, given one after the other. On BpfError some, the first, may be written.

    spec: its sizes; of a per-CPU map the value's over all CPUs.
    """
    for key_piece, value_piece in zip(
        _pieces(keys, spec.key_size * _BATCH),
        _pieces(values, spec.value_size * _BATCH),
        strict=True,
    ):
        count = c_uint32(len(key_piece) // spec.key_size)
        try:
            _call(
                "bpf_map_update_batch",
                fd,
                key_piece,
                value_piece,
                byref(count),
                byref(_BatchOpts()),
            )
        except BpfError as error:
            if not _no_batch(error):
                raise
            for key, value in zip(
                _pieces(key_piece, spec.key_size),
                _pieces(value_piece, spec.value_size),
                strict=True,
            ):
                map_update(fd, key, value)


def map_delete(fd: int, key_size: int, keys: bytes) -> None:
    """Remove entries, given one after the other; those that are not there are no error."""
    for key in _pieces(keys, key_size):
        try:
            _call("bpf_map_delete_elem", fd, key)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def map_items(fd: int, spec: MapSpec) -> Iterator[tuple[bytes, bytes]]:
    """All (key, value) of a map. Entries that come or go meanwhile may be missed.

    spec: its sizes; of a per-CPU map the value's over all CPUs.
    """
    key_size, value_size = spec.key_size, spec.value_size
    for keys, values in map_pieces(fd, spec):
        for i in range(len(keys) // key_size):
            yield (
                keys[i * key_size : (i + 1) * key_size],
                values[i * value_size : (i + 1) * value_size],
            )


def map_pieces(fd: int, spec: MapSpec) -> Iterator[tuple[bytes, bytes]]:
    """The same in pieces of many entries: their keys one after the other, and their values."""
    key_size, value_size = spec.key_size, spec.value_size
    most = min(_BATCH, spec.max_entries)
    keys = ctypes.create_string_buffer(key_size * most)
    values = ctypes.create_string_buffer(value_size * most)
    token, after = None, ctypes.create_string_buffer(max(key_size, 4))
    while True:
        count = c_uint32(most)
        finished = False
        try:
            _call(
                "bpf_map_lookup_batch",
                fd,
                token,
                after,
                keys,
                values,
                byref(count),
                byref(_BatchOpts()),
            )
        except BpfError as error:
            if _no_batch(error) and token is None:
                yield from _items_one_by_one(fd, spec)
                return
            if error.errno != errno.ENOENT:
                raise
            finished = True
        # Not `.raw`, which copies the whole buffer, however little it holds.
        yield (
            ctypes.string_at(keys, count.value * key_size),
            ctypes.string_at(values, count.value * value_size),
        )
        if finished:
            return
        token, after = after, ctypes.create_string_buffer(max(key_size, 4))


def _items_one_by_one(fd: int, spec: MapSpec) -> Iterator[tuple[bytes, bytes]]:
    key: bytes | None = None
    following = ctypes.create_string_buffer(spec.key_size)
    while True:
        try:
            _call("bpf_map_get_next_key", fd, key, following)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        key = following.raw
        value = map_lookup(fd, key, spec.value_size)
        if value is not None:
            yield key, value


def _no_batch(error: BpfError) -> bool:
    """Batches came to tries in 5.13 and to hashes in 5.6; before, this is what they answer."""
    return error.errno in (errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP)


class RingBuffer:
    """A ring buffer's only reader. fileno() is readable when consume() has something."""

    def __init__(self, map_fd: int) -> None:
        self._records: list[bytes] = []

        def keep(context: int, data: int, size: int) -> int:
            self._records.append(ctypes.string_at(data, size))
            return 0 if len(self._records) < _RECORDS else -errno.ENOBUFS

        self._callback = _SAMPLE_FN(keep)  # C holds it
        self._ring = _library().ring_buffer__new(map_fd, self._callback, None, None)
        if not self._ring:
            raise BpfError(ctypes.get_errno(), "ring_buffer__new", "".join(_printed.lines))

    def fileno(self) -> int:
        return _call("ring_buffer__epoll_fd", self._ring)

    def consume(self) -> list[bytes]:
        """What has been written since the last time, up to a thousand records."""
        # libbpf reads for as long as somebody writes; an error has it stop behind the record.
        try:
            _call("ring_buffer__consume", self._ring)
        except BpfError as error:
            if error.errno != errno.ENOBUFS:
                raise
        records = self._records[:]
        self._records.clear()
        return records

    def close(self) -> None:
        _library().ring_buffer__free(self._ring)
        self._ring = None


# ---- programs -----------------------------------------------------------------------------------


def load_object(image: bytes, program: str, map_fds: dict[str, int]) -> int:
    """Load one program of an ELF object with its maps replaced by open ones."""
    library = _library()
    _printed.lines.clear()
    ctypes.set_errno(0)
    handle = library.bpf_object__open_mem(image, len(image), None)
    if not handle:
        raise BpfError(
            ctypes.get_errno() or errno.EINVAL, "bpf_object__open_mem", "".join(_printed.lines)
        )
    try:
        chosen = None
        current = library.bpf_object__next_program(handle, None)
        while current:
            wanted = library.bpf_program__name(current) == program.encode()
            _call("bpf_program__set_autoload", current, wanted)
            chosen = current if wanted else chosen
            current = library.bpf_object__next_program(handle, current)
        if chosen is None:
            raise BpfError(errno.ENOENT, f"find program {program}")
        for name, fd in map_fds.items():
            found = library.bpf_object__find_map_by_name(handle, name.encode())
            if not found:
                raise BpfError(errno.ENOENT, f"find map {name}")
            _call("bpf_map__reuse_fd", found, fd)
        _call("bpf_object__load", handle)
        return os.dup(library.bpf_program__fd(chosen))
    finally:
        library.bpf_object__close(handle)


def load_instructions(prog_type: int, name: str, code: bytes, flags: int = 0) -> int:
    """Load raw instructions (8 bytes each) whose map references are open descriptors."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    kind = BPF_XDP if prog_type == BPF_PROG_TYPE_XDP else 0
    opts = _ProgLoadOpts(
        prog_flags=flags,
        expected_attach_type=kind,
        log_size=len(log),
        log_buf=ctypes.cast(log, c_void_p),
    )
    try:
        return _call(
            "bpf_prog_load", prog_type, name.encode(), b"GPL", code, len(code) // 8, byref(opts)
        )
    except BpfError as error:
        error.log += log.value.decode(errors="replace")
        raise


def xdp_has_frags() -> bool:
    """The kernel has XDP for frames in several pieces (5.18), with the helpers that came with it.

    Tried with the smallest program. BpfError where not even a plain one may be loaded.
    """
    passes = bytes.fromhex("b700000002000000 9500000000000000")  # r0 = XDP_PASS; exit
    os.close(load_instructions(BPF_PROG_TYPE_XDP, "probe", passes))
    try:
        fd = load_instructions(BPF_PROG_TYPE_XDP, "probe", passes, BPF_F_XDP_HAS_FRAGS)
    except BpfError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    os.close(fd)
    return True


def prog_info(fd: int) -> ProgInfo:
    info = _info(fd, _ProgInfo)
    return ProgInfo(
        info.id, bytes(info.tag).hex(), info.name.decode(), info.run_time_ns, info.run_cnt
    )


def prog_name(prog_id: int) -> str:
    """The name of any loaded program; '' where CAP_SYS_ADMIN is missing to ask."""
    try:
        fd = _call("bpf_prog_get_fd_by_id", prog_id)
    except BpfError:
        return ""
    try:
        return prog_info(fd).name
    finally:
        os.close(fd)


def run_once(fd: int, frame: bytes) -> Run:
    """Run a program on a frame of 14 bytes or more, as if it came in through `lo`."""
    return run_often(fd, frame, 1)


def run_often(fd: int, frame: bytes, times: int, context: bytes = b"") -> Run:
    """The same so many times, each on what the last left. context: a struct xdp_md, or none."""
    out = ctypes.create_string_buffer(4096)
    opts = _TestRunOpts(
        data_in=frame,
        data_size_in=len(frame),
        data_out=ctypes.cast(out, c_void_p),
        data_size_out=len(out),
        ctx_in=context or None,
        ctx_size_in=len(context),
        repeat=times,
    )
    _call("bpf_prog_test_run_opts", fd, byref(opts))
    return Run(opts.retval, out.raw[: opts.data_size_out], opts.duration)


def run_live(fd: int, frame: bytes, times: int, context: bytes, batch: int = 64) -> None:
    """Run an XDP program on real frames, which go where it says; `batch` of them at once.

    context: a struct xdp_md with the interface on which XDP_TX sends. Each frame is `frame` when
    its page is new, and what the page's last journey left of it after that. Ends early on a signal.
    """
    opts = _TestRunOpts(
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=times,
        flags=BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size=batch,
    )
    try:
        _call("bpf_prog_test_run_opts", fd, byref(opts))
    except BpfError as error:
        if error.errno != errno.EINTR:
            raise


# ---- pins and links -----------------------------------------------------------------------------


def pin(fd: int, path: str) -> None:
    _call("bpf_obj_pin", fd, path.encode())


def get_pinned(path: str, *, readonly: bool = False) -> int:
    """Open what is pinned. readonly: read permission for the file will do; links want both."""
    opts = _ObjGetOpts(file_flags=BPF_F_RDONLY if readonly else 0)
    return _call("bpf_obj_get_opts", path.encode(), byref(opts))


def link_create(prog_fd: int, ifindex: int, attach_type: int, flags: int = 0) -> int:
    """Attach by a link, which is gone with its last descriptor and pin."""
    return _call(
        "bpf_link_create", prog_fd, ifindex, attach_type, byref(_LinkCreateOpts(flags=flags))
    )


def link_update(link_fd: int, prog_fd: int) -> None:
    """Put another program in the link's place between two frames."""
    _call("bpf_link_update", link_fd, prog_fd, None)


def link_detach(link_fd: int) -> None:
    """Take the program off at once, however many have the link open."""
    _call("bpf_link_detach", link_fd)


def link_info(fd: int) -> LinkInfo:
    info = _info(fd, _LinkInfo)
    return LinkInfo(info.id, info.prog_id, info.ifindex)


def xdp_attach(ifindex: int, prog_fd: int, flags: int, old_prog_fd: int | None = None) -> None:
    """Attach by netlink; with `old_prog_fd` and XDP_FLAGS_REPLACE only in that one's place."""
    opts = _XdpAttachOpts(old_prog_fd=-1 if old_prog_fd is None else old_prog_fd)
    _call(
        "bpf_xdp_attach",
        ifindex,
        prog_fd,
        flags,
        byref(opts) if flags & XDP_FLAGS_REPLACE else None,
    )


def xdp_detach(ifindex: int, flags: int, old_prog_fd: int) -> None:
    """Detach by netlink, if `old_prog_fd` is what is attached (EEXIST if not)."""
    opts = _XdpAttachOpts(old_prog_fd=old_prog_fd)
    _call("bpf_xdp_detach", ifindex, flags | XDP_FLAGS_REPLACE, byref(opts))


def xdp_program_ids(ifindex: int) -> list[int]:
    """Ids of the XDP programs on an interface, in any mode; none if it has gone."""
    opts = _XdpQueryOpts()
    try:
        _call("bpf_xdp_query", ifindex, 0, byref(opts))
    except BpfError as error:
        if error.errno in (errno.ENODEV, errno.EINVAL):
            return []
        raise
    ids = (opts.prog_id, opts.drv_prog_id, opts.skb_prog_id, opts.hw_prog_id)
    return sorted({prog_id for prog_id in ids if prog_id})


def tcx_program_ids(ifindex: int) -> list[int]:
    """Ids of the programs at tcx ingress, none on a kernel without tcx (before 6.6)."""
    ids = (c_uint32 * 64)()
    count = c_uint32(len(ids))
    try:
        _call("bpf_prog_query", ifindex, BPF_TCX_INGRESS, 0, None, ids, byref(count))
    except BpfError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV):
            return []
        raise
    return list(ids[: count.value])


def clsact_create(ifindex: int) -> bool:
    """Make the clsact qdisc; False if it was there."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    try:
        _call("bpf_tc_hook_create", byref(hook))
    except BpfError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def clsact_destroy(ifindex: int) -> None:
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS | 2)
    _call("bpf_tc_hook_destroy", byref(hook))


def tc_attach(ifindex: int, prog_fd: int, handle: int, priority: int, replace: bool) -> None:
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    flags = BPF_TC_F_REPLACE if replace else 0
    opts = _TcOpts(prog_fd=prog_fd, flags=flags, handle=handle, priority=priority)
    _call("bpf_tc_attach", byref(hook), byref(opts))


def tc_program_id(ifindex: int, handle: int, priority: int) -> int | None:
    """The program of one filter at clsact ingress, None if there is no such filter."""
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    opts = _TcOpts(handle=handle, priority=priority)
    try:
        _call("bpf_tc_query", byref(hook), byref(opts))
    except BpfError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return None
        raise
    return int(opts.prog_id)


def tc_detach(ifindex: int, handle: int, priority: int) -> None:
    hook = _TcHook(ifindex=ifindex, attach_point=BPF_TC_INGRESS)
    _call("bpf_tc_detach", byref(hook), byref(_TcOpts(handle=handle, priority=priority)))


def _info(fd: int, kind: type[Any]) -> Any:
    info = kind()
    _call("bpf_obj_get_info_by_fd", fd, byref(info), byref(c_uint32(ctypes.sizeof(info))))
    return info
