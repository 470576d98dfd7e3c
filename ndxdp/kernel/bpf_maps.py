"""BPF maps: created, opened, read and written by calls of libbpf; see libbpf.py."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import time
from collections.abc import Iterator
from ctypes import byref, c_size_t, c_uint32, c_uint64
from pathlib import Path
from typing import Self

from ndxdp import progress
from ndxdp.errors import NdxdpError
from ndxdp.kernel.abi import ARRAY, PERCPU_ARRAY, PERCPU_HASH, MapSpec, not_ours
from ndxdp.kernel.libbpf import (
    ENOTSUPP,
    BpfError,
    Opts,
    call,
    get_pinned,
    info,
)

_BATCH = 16384  # entries of one call, at most
_FEW, _GROWTH = 64, 8
"""Entries that the first call for a map has room for, and by how much that grows with each call.

Most maps have few entries or none. To clear the buffers for a batch takes longer than to read them.
"""
_WAIT, _WAITS = 0.001, 100  # seconds, and how often in a row, to wait for memory of the kernel


class _MapCreateOpts(Opts):
    _fields_ = (
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
    )


class _BatchOpts(Opts):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", ctypes.c_char * 16),
    )


@functools.cache
def possible_cpus() -> int:
    """Return the number of possible CPUs, which is that of the values in a per-CPU element."""
    return call("libbpf_num_possible_cpus")


def value_size(spec: MapSpec) -> int:
    """Return the bytes of a value; of a per-CPU map, of the values of all CPUs."""
    return spec.value_size * (possible_cpus() if spec.type in (PERCPU_ARRAY, PERCPU_HASH) else 1)


def create(spec: MapSpec, inner_fd: int = 0) -> int:
    """Create a map, and return its descriptor.

    Args:
        spec: The map.
        inner_fd: For a map of maps, one like those that will be its elements.
    """
    opts = _MapCreateOpts(map_flags=spec.flags, inner_map_fd=inner_fd)
    return call(
        "bpf_map_create",
        spec.type,
        spec.name.encode()[:15],
        spec.key_size,
        spec.value_size,
        spec.max_entries,
        byref(opts),
    )


def spec_of(fd: int) -> MapSpec:
    """Return the kernel's description of an open map; its name is cut to 15 bytes."""
    found = info(fd, _MapInfo)
    return MapSpec(
        found.name.decode(),
        found.type,
        found.key_size,
        found.value_size,
        found.max_entries,
        found.map_flags,
    )


def open_id(number: int) -> int:
    """Open a map by its number, which takes CAP_SYS_ADMIN; return the descriptor."""
    return call("bpf_map_get_fd_by_id", number)


def id_of(fd: int) -> int:
    """Return the kernel's number of an open map, which a map of maps shows for its elements."""
    return int(info(fd, _MapInfo).id)


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """Return the value of `size` bytes (of a per-CPU map: of all CPUs); None without an entry."""
    value = ctypes.create_string_buffer(size)
    try:
        call("bpf_map_lookup_elem", fd, key, value)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Write one entry."""
    call("bpf_map_update_elem", fd, key, value, 0)


def _update_patiently(fd: int, key: bytes, value: bytes) -> None:
    """Write one entry; if the kernel has no memory for it, try again for a moment.

    A hash that takes memory for each entry gets it from a small reserve, which the kernel fills up
    in the background. Many updates in a row can be faster than that.
    """
    for attempt in range(_WAITS):
        try:
            update(fd, key, value)
        except BpfError as error:
            if error.errno != errno.ENOMEM or attempt == _WAITS - 1:
                raise
            time.sleep(_WAIT)
        else:
            return


def push(fd: int, value: bytes) -> None:
    """Append a value to a queue; raise BpfError with E2BIG if the queue is full."""
    call("bpf_map_update_elem", fd, None, value, 0)


def pop(fd: int, size: int) -> bytes | None:
    """Remove the first value, of `size` bytes, from a queue; return None if the queue is empty."""
    value = ctypes.create_string_buffer(size)
    try:
        call("bpf_map_lookup_and_delete_elem", fd, None, value)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def delete(fd: int, key_size: int, keys: bytes) -> None:
    """Remove the entries of concatenated keys; a missing entry is no error."""
    for piece in _pieces(keys, key_size * _BATCH):
        _delete_piece(fd, key_size, piece)
        progress.advance(len(piece) // key_size)


def _delete_piece(fd: int, key_size: int, keys: bytes) -> None:
    """Remove entries by as few calls as possible: a batch ends at the first missing entry."""
    at, end = 0, len(keys) // key_size
    start = ctypes.cast(ctypes.c_char_p(keys), ctypes.c_void_p).value or 0
    while at < end - 1:
        count = c_uint32(end - at)
        try:
            call(
                "bpf_map_delete_batch", fd, start + at * key_size, byref(count), byref(_BatchOpts())
            )
        except BpfError as error:
            if _no_batch(error):
                break
            if error.errno != errno.ENOENT:
                raise
            at += count.value + 1
        else:
            return
    for key in _pieces(keys[at * key_size :], key_size):
        try:
            call("bpf_map_delete_elem", fd, key)
        except BpfError as error:
            if error.errno != errno.ENOENT:
                raise


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def _no_batch(error: BpfError) -> bool:
    """Return True if the kernel has no batches for the map (tries: 5.13, hashes: 5.6)."""
    return error.errno in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP)


class KernelMap:
    """An open BPF map. It exists as long as a descriptor or a pin refers to it.

    Attributes:
        spec: The map as it was created or opened.
        fd: The descriptor.
        value_size: Bytes of a value; of a per-CPU map, of the values of all CPUs.
        batch: How many entries are read at a time.
    """

    batch = _BATCH

    def __init__(self, spec: MapSpec, fd: int) -> None:
        """Take over a descriptor of the map that `spec` describes."""
        self.fd = fd
        self.spec = spec
        self.value_size = value_size(spec)

    @classmethod
    def create(cls, spec: MapSpec) -> Self:
        """Create an empty map."""
        return cls(spec, create(spec))

    @classmethod
    def open(cls, path: Path, spec: MapSpec, *, readonly: bool = False) -> Self:
        """Open a pinned map; raise NdxdpError if it is not the map that `spec` describes."""
        opened = cls(spec, get_pinned(str(path), readonly=readonly))
        expected = spec._replace(name=spec.name[:15], max_entries=0)
        if spec_of(opened.fd)._replace(max_entries=0) != expected:
            opened.close()
            raise NdxdpError(*not_ours(path))
        return opened

    def using(self, fd: int) -> Self:
        """Return the same map with another descriptor, which it takes over."""
        return type(self)(self.spec, fd)

    def duplicate(self) -> Self:
        """Return the same map with a descriptor of its own."""
        return self.using(os.dup(self.fd))

    @property
    def max_entries(self) -> int:
        """How many entries the map can have, from the kernel."""
        return spec_of(self.fd).max_entries

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value; of a per-CPU map, the values of all CPUs. None if there is no entry."""
        return lookup(self.fd, key, self.value_size)

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries. After a BpfError, the first entries may have been written."""
        key_size, value_size = self.spec.key_size, self.value_size
        if len(keys) == key_size:
            _update_patiently(self.fd, keys, values)
            return
        for key_piece, value_piece in zip(
            _pieces(keys, key_size * _BATCH), _pieces(values, value_size * _BATCH), strict=True
        ):
            try:
                self._update_batch(key_piece, value_piece)
            except BpfError as error:
                if not _no_batch(error):
                    raise
                for key, value in zip(
                    _pieces(key_piece, key_size), _pieces(value_piece, value_size), strict=True
                ):
                    _update_patiently(self.fd, key, value)
            progress.advance(len(key_piece) // key_size)

    def _update_batch(self, keys: bytes, values: bytes) -> None:
        """Write entries by as few calls as possible; see _update_patiently()."""
        waits = 0
        while keys:
            count = c_uint32(len(keys) // self.spec.key_size)
            try:
                call(
                    "bpf_map_update_batch",
                    self.fd,
                    keys,
                    values,
                    byref(count),
                    byref(_BatchOpts()),
                )
            except BpfError as error:
                if error.errno != errno.ENOMEM or waits == _WAITS:
                    raise
                waits = 0 if count.value else waits + 1
                time.sleep(_WAIT)
            keys = keys[count.value * self.spec.key_size :]
            values = values[count.value * self.value_size :]

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        delete(self.fd, self.spec.key_size, keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see pieces()."""
        key_size, value_size = self.spec.key_size, self.value_size
        for keys, values in self.pieces():
            yield from zip(_pieces(keys, key_size), _pieces(values, value_size), strict=True)

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time: concatenated keys, and concatenated values.

        Entries that are added or removed during the iteration may be missed.
        """
        key_size, value_size = self.spec.key_size, self.value_size
        limit = min(self.batch, self.spec.max_entries)
        most = limit if self.spec.type in (ARRAY, PERCPU_ARRAY) else min(_FEW, limit)
        keys, values = self._buffers(most)
        token, after = None, ctypes.create_string_buffer(max(key_size, 4))
        while True:
            count = c_uint32(most)
            finished = False
            try:
                call(
                    "bpf_map_lookup_batch",
                    self.fd,
                    token,
                    after,
                    keys,
                    values,
                    byref(count),
                    byref(_BatchOpts()),
                )
            except BpfError as error:
                if _no_batch(error) and token is None:
                    yield from self._items_one_by_one()
                    return
                if error.errno == errno.ENOSPC and most < limit:  # more have one hash
                    most = min(most * _GROWTH, limit)
                    keys, values = self._buffers(most)
                    continue
                if error.errno != errno.ENOENT:
                    raise
                finished = True
            # Not `.raw`, which would copy the whole buffer.
            yield (
                ctypes.string_at(keys, count.value * key_size),
                ctypes.string_at(values, count.value * value_size),
            )
            if finished:
                return
            if most < limit:
                most = min(most * _GROWTH, limit)
                keys, values = self._buffers(most)
            token, after = after, ctypes.create_string_buffer(max(key_size, 4))

    def _buffers(
        self, count: int
    ) -> tuple[ctypes.Array[ctypes.c_char], ctypes.Array[ctypes.c_char]]:
        """Return buffers for the keys and the values of so many entries."""
        return (
            ctypes.create_string_buffer(self.spec.key_size * count),
            ctypes.create_string_buffer(self.value_size * count),
        )

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        key: bytes | None = None
        following = ctypes.create_string_buffer(self.spec.key_size)
        while True:
            try:
                call("bpf_map_get_next_key", self.fd, key, following)
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = following.raw
            value = lookup(self.fd, key, self.value_size)
            if value is not None:
                yield key, value

    def leading(self, code: str) -> Iterator[memoryview]:
        """Yield the first integer of each value, many at a time; `code` is struct's H or Q."""
        step = self.spec.value_size // struct.calcsize(code)
        for _, values in self.pieces():
            yield memoryview(values).cast(code)[::step]  # type: ignore[call-overload]

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)
