"""Pins of BPF objects, written so that a path with a pin is never without one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ndxdp.errors import is_exhausted
from ndxdp.files.access import unwritable
from ndxdp.kernel import bpf_programs, libbpf

PROGRAM = "program"
LINK = "link"
MODE = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP
"""The permissions of a pin: its group may read it; only its owner may write to the object."""

STAGED = ":new"
"""The end of the name of a pin that will replace another pin."""


def pin(fd: int, path: Path) -> None:
    """Pin an object, with the permissions MODE."""
    try:
        libbpf.pin(fd, str(path))
    except libbpf.BpfError as error:
        if error.errno == errno.EROFS:
            raise unwritable(path, error) from error
        raise
    path.chmod(MODE)


def repin(fd: int, path: Path) -> None:
    """Replace the object that is pinned at a path. The path exists at every moment."""
    stage(fd, path).rename(path)


def stage(fd: int, path: Path) -> Path:
    """Pin an object under the staged name of a path, and return that name."""
    fresh = staged(path)
    fresh.unlink(missing_ok=True)
    pin(fd, fresh)
    return fresh


def staged(path: Path) -> Path:
    """Return the path of the pin that will replace the pin at `path`."""
    return path.with_name(f"{path.name}{STAGED}")


def program_ids(directory: Path) -> set[int]:
    """Return the ids of the programs that are pinned in an interface's directory, or staged."""
    found = set()
    for path in (directory / PROGRAM, staged(directory / PROGRAM)):
        try:
            fd = libbpf.get_pinned(str(path), readonly=True)
        except libbpf.BpfError as error:
            if is_exhausted(error):
                raise
            continue  # there is no such pin, or this process may not open it
        try:
            found.add(bpf_programs.info_of(fd).id)
        finally:
            os.close(fd)
    return found
