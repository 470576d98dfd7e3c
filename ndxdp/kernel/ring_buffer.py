"""BPF ring buffers, read by calls of libbpf; see libbpf.py."""

from __future__ import annotations

import ctypes
import errno

from ndxdp.kernel.libbpf import SAMPLE_FN, BpfError, call, library, pointer

_RECORDS = 1024  # records that are read at once


class RingBuffer:
    """The reader of a ring buffer, which can have only one reader."""

    def __init__(self, map_fd: int) -> None:
        """Open the ring buffer."""
        self._records: list[bytes] = []

        def keep(context: int, data: int, size: int) -> int:
            self._records.append(ctypes.string_at(data, size))
            return 0 if len(self._records) < _RECORDS else -errno.ENOBUFS

        self._callback = SAMPLE_FN(keep)  # a reference for C, which has a pointer to the callback
        self._ring = pointer("ring_buffer__new", map_fd, self._callback, None, None)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when consume() returns records."""
        return call("ring_buffer__epoll_fd", self._ring)

    def consume(self) -> list[bytes]:
        """Return the records written since the last call, at most about a thousand."""
        # libbpf reads as long as the program writes; an error of the callback ends the reading.
        try:
            call("ring_buffer__consume", self._ring)
        except BpfError as error:
            if error.errno != errno.ENOBUFS:
                raise
        records = self._records[:]
        self._records.clear()
        return records

    def close(self) -> None:
        """Free the ring buffer's reader."""
        library().ring_buffer__free(self._ring)
        self._ring = 0
