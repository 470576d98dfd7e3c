"""The type of the file system that a path is on, by statfs(2), without the mount table."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_BPF_FS_MAGIC = 0xCAFE4A11  # linux/magic.h
_SIZE = 256  # bytes: struct statfs is smaller on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statfs.argtypes = (ctypes.c_char_p, ctypes.c_char_p)


def is_bpf(path: Path) -> bool:
    """Return True if a path is on a BPF file system; raise OSError if the kernel refuses."""
    buffer = ctypes.create_string_buffer(_SIZE)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    # f_type is the first field: a long, or an unsigned int on s390x, which is big-endian.
    return int.from_bytes(buffer.raw[:4], sys.byteorder) == _BPF_FS_MAGIC
