"""Calls of libbpf for BPF programs; see libbpf.py."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import NamedTuple

from ndxdp.kernel.libbpf import LOG_SIZE, BpfError, Opts, call, info, library, pointer

BPF_PROG_TYPE_SCHED_CLS = 3
BPF_PROG_TYPE_XDP = 6
BPF_F_XDP_HAS_FRAGS = 1 << 5
BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1
_BPF_XDP = 37
_MAPS_MAX = 64  # of one program, MAX_USED_MAPS


class _ProgLoadOpts(Opts):
    _fields_ = (
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
    )


class _TestRunOpts(Opts):
    _fields_ = (
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
    )


class _ProgInfo(ctypes.Structure):
    _fields_ = (
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
    )


class ProgInfo(NamedTuple):
    """The kernel's description of a program.

    Attributes:
        id: The kernel's number of the program.
        tag: The hash of the instructions, 16 hexadecimal digits.
        name: Up to 15 bytes.
        run_time_ns: The time spent on frames while the sysctl kernel.bpf_stats_enabled was 1.
        run_count: The number of these frames.
        type: BPF_PROG_TYPE_*.
    """

    id: int
    tag: str
    name: str
    run_time_ns: int = 0
    run_count: int = 0
    type: int = 0


class Run(NamedTuple):
    """The result of a test run: the return value, the frame, and the mean ns of a run."""

    retval: int
    data: bytes
    duration: int = 0


def load_object(image: bytes, program: str, map_fds: dict[str, int]) -> int:
    """Load one program of an ELF object, and return its descriptor.

    Args:
        image: The ELF object.
        program: The name of the program.
        map_fds: The descriptors of open maps by name; they replace the maps of the object.
    """
    handle = pointer("bpf_object__open_mem", image, len(image), None)
    libbpf = library()
    try:
        chosen = None
        current = libbpf.bpf_object__next_program(handle, None)
        while current:
            wanted = libbpf.bpf_program__name(current) == program.encode()
            call("bpf_program__set_autoload", current, wanted)
            chosen = current if wanted else chosen
            current = libbpf.bpf_object__next_program(handle, current)
        if chosen is None:
            raise BpfError(errno.ENOENT, f"find program {program}")
        for name, fd in map_fds.items():
            found = libbpf.bpf_object__find_map_by_name(handle, name.encode())
            if not found:
                raise BpfError(errno.ENOENT, f"find map {name}")
            call("bpf_map__reuse_fd", found, fd)
        call("bpf_object__load", handle)
        return os.dup(libbpf.bpf_program__fd(chosen))
    finally:
        libbpf.bpf_object__close(handle)


def load_instructions(prog_type: int, name: str, code: bytes, flags: int = 0) -> int:
    """Load instructions (8 bytes each) that refer to maps by descriptor; return the descriptor."""
    log = ctypes.create_string_buffer(LOG_SIZE)
    kind = _BPF_XDP if prog_type == BPF_PROG_TYPE_XDP else 0
    opts = _ProgLoadOpts(
        prog_flags=flags,
        expected_attach_type=kind,
        log_size=len(log),
        log_buf=ctypes.cast(log, c_void_p),
    )
    try:
        return call(
            "bpf_prog_load", prog_type, name.encode(), b"GPL", code, len(code) // 8, byref(opts)
        )
    except BpfError as error:
        error.log += log.value.decode(errors="replace")
        raise


def xdp_has_frags() -> bool:
    """Return True if the kernel supports XDP for frames in several buffers (Linux 5.18).

    The kernel is asked to load the smallest program.

    Raises:
        BpfError: This process may not load any XDP program.
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


def info_of(fd: int) -> ProgInfo:
    """Return the kernel's description of an open program."""
    found = info(fd, _ProgInfo)
    return ProgInfo(
        found.id,
        bytes(found.tag).hex(),
        found.name.decode(),
        found.run_time_ns,
        found.run_cnt,
        found.type,
    )


def map_ids(fd: int) -> set[int]:
    """Return the kernel's numbers of the maps that an open program uses."""
    ids = (c_uint32 * _MAPS_MAX)()
    found = _ProgInfo(nr_map_ids=_MAPS_MAX, map_ids=ctypes.addressof(ids))
    call("bpf_obj_get_info_by_fd", fd, byref(found), byref(c_uint32(ctypes.sizeof(found))))
    return set(ids[: min(found.nr_map_ids, _MAPS_MAX)])


def name_of(prog_id: int) -> str:
    """Return the name of a loaded program; "" if this process does not have CAP_SYS_ADMIN."""
    try:
        fd = call("bpf_prog_get_fd_by_id", prog_id)
    except BpfError:
        return ""
    try:
        return info_of(fd).name
    finally:
        os.close(fd)


def run_once(fd: int, frame: bytes) -> Run:
    """Run a program on a frame of at least 14 bytes, as if `lo` had received it."""
    return run_often(fd, frame, 1)


def run_often(fd: int, frame: bytes, times: int, context: bytes = b"") -> Run:
    """Run a program several times on a frame; each run gets the frame that the last run left.

    Args:
        fd: The program.
        frame: At least 14 bytes.
        times: How often to run it.
        context: A struct xdp_md; empty for none.
    """
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
    call("bpf_prog_test_run_opts", fd, byref(opts))
    return Run(opts.retval, out.raw[: opts.data_size_out], opts.duration)


def run_live(fd: int, frame: bytes, times: int, context: bytes, batch: int = 64) -> None:
    """Run an XDP program on real frames, which are forwarded as it returns; end on a signal.

    The kernel reuses pages. So a frame is `frame` only if its page is new; otherwise it is what the
    last run left in the page.

    Args:
        fd: The program.
        frame: At least 14 bytes.
        times: How many frames.
        context: A struct xdp_md with the interface on which XDP_TX sends.
        batch: How many frames at once.
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
        call("bpf_prog_test_run_opts", fd, byref(opts))
    except BpfError as error:
        if error.errno != errno.EINTR:
            raise
