"""The files of a table each that userspace mode had before the file of the rules.

A table's file has its capacity, 4 bytes of zeros and the entries, in no order. Attaching writes
them into the file of the rules (store/rule_file.py).
"""

from __future__ import annotations

import struct
from pathlib import Path

from ndxdp.errors import Damaged
from ndxdp.kernel import abi
from ndxdp.kernel.abi import not_ours
from ndxdp.store.rule_file import FILE_NAME, RuleFile
from ndxdp.store.rule_format import TABLES

_HEADER = struct.Struct("=II")


def has_tables(directory: Path) -> bool:
    """Return True if an interface's directory has such files."""
    return any((directory / name).is_file() for name in TABLES)


def join_tables(directory: Path) -> None:
    """Turn the files of the tables in an interface's directory into one; do nothing without.

    If this process is killed, the next call goes on. The caller has the tree's lock.

    Raises:
        Damaged: One of the files is missing, or another program wrote it.
        OSError: The new file cannot be written.
    """
    paths = [directory / name for name in TABLES]
    if has_tables(directory) and not (directory / FILE_NAME).exists():
        limits: dict[str, int] = {}
        entries: dict[str, bytes] = {}
        for path in paths:
            limits[path.name], entries[path.name] = _read(path)
        RuleFile.create_with(directory / FILE_NAME, limits, entries)
    for path in paths:
        path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[int, bytes]:
    """Return the capacity of a table, and its entries."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise Damaged(*not_ours(path)) from error
    spec = abi.FILES[path.name]
    if len(data) < _HEADER.size or (len(data) - _HEADER.size) % (spec.key_size + spec.value_size):
        raise Damaged(*not_ours(path))
    return _HEADER.unpack_from(data)[0], data[_HEADER.size :]
