"""Readiness of an exporter: whether this process can read what it is to show."""

from __future__ import annotations

import errno
import os

from ndxdp.errors import NdxdpError, NotAttached, from_os
from ndxdp.store.directories import Trees
from ndxdp.store.instance import open_instance

_REFUSED = (errno.EPERM, errno.EACCES)


def problem(trees: Trees) -> NdxdpError | None:
    """Return why nothing can be read; None if an interface can be read, or there is none."""
    failed: NdxdpError | None = None
    try:
        for name in trees.interfaces():
            try:
                with open_instance(trees.of(name), name, readonly=True):
                    return None
            except NotAttached:  # detached in this moment
                continue
            except NdxdpError as error:
                failed = failed or error
    except NdxdpError as error:
        return error
    except OSError as error:
        failed = from_os(error)
        failed.__cause__ = error
    return failed


def is_lasting(error: NdxdpError, trees: Trees) -> bool:
    """Return True if an error that problem() found is a lack of rights, which waiting cannot cure.

    Args:
        error: The error.
        trees: The directories that problem() has read.
    """
    if getattr(error.__cause__, "errno", None) in _REFUSED:
        return True
    needed = ((trees.pins.bpffs, os.X_OK), (trees.pins.base, os.R_OK), (trees.files.base, os.R_OK))
    return any(_is_refused(str(path), mode) for path, mode in needed)


def _is_refused(path: str, mode: int) -> bool:
    """Return True if this process lacks a right to an existing path."""
    try:
        os.stat(path)
    except PermissionError:  # a parent directory may not be entered
        return True
    except OSError:
        return False
    return not os.access(path, mode)
