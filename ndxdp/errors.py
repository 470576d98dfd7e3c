"""The one exception that reaches the user."""

from __future__ import annotations

import errno
import logging
import os

log = logging.getLogger(__name__)


class NdxdpError(Exception):
    """Something foreseeable went wrong: one sentence, and a hint what to do about it.

    The command line prints both and exits with `exit_code`: 1, or 2 where the user's words
    (arguments, prefixes, files) are at fault. also: what else went wrong, where several things
    were found in one go; each a sentence of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", also: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.also = also


class UsageError(NdxdpError):
    """The words of a command, a file or a rule are wrong; nothing was touched."""

    exit_code = 2


class ModeUnavailable(NdxdpError):
    """A mode cannot be had on this interface or this host: another one may."""


class InterfaceGone(NdxdpError):
    """There is no such interface: it was deleted or renamed, or has not been there yet."""


class NotAttached(NdxdpError):
    """There is nothing of ndxdp on the interface."""


class Damaged(NdxdpError):
    """Pins or files are missing, or hold what ndxdp did not write."""


def gone(interface: str) -> InterfaceGone:
    return InterfaceGone(f"{interface} has gone", "start again when it is back")


_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def is_exhausted(error: OSError) -> bool:
    """Return True if this process, or the host, has no descriptor left for another open file."""
    return error.errno in _EXHAUSTED


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def not_written(path: object, error: OSError) -> NdxdpError:
    """Return the error that a file could not be written, with what mends the cause."""
    directory = os.path.dirname(str(path)) or "."
    hint = "see: ls -l, namei -l"
    if error.errno in _NO_ROOM:
        hint = f"make room there: df -h {directory}; df -i {directory}"
    elif error.errno == errno.EROFS:
        hint = f"its file system is read-only: findmnt -T {directory}"
    elif error.errno in (errno.EPERM, errno.EACCES):
        hint = "run this as root"
    return NdxdpError(f"{path} could not be written ({error.strerror})", hint)


def from_os(error: OSError) -> NdxdpError:
    """Return the error with which the user is told of a system call that failed."""
    if is_exhausted(error):
        return NdxdpError(
            f"no more files can be opened ({error.strerror})",
            "raise the limit: ulimit -n, or LimitNOFILE= of the service",
        )
    if error.filename and error.errno in (*_NO_ROOM, errno.EROFS):
        return not_written(error.filename, error)
    if error.errno in _NO_ROOM:
        return NdxdpError(
            f"there is no room for the output ({error.strerror})", "where does it go? see: df -h"
        )
    text = str(error).partition("] ")[2] or str(error)  # without Python's "[Errno 28] "
    what = f"{error.filename}: {error.strerror}" if error.filename else text
    if error.errno in (errno.EPERM, errno.EACCES):
        return NdxdpError(
            f"not permitted ({what})", "run this as root, or with CAP_BPF and CAP_NET_ADMIN"
        )
    return NdxdpError(what, "--debug names the call")


def problem_of(error: BaseException) -> str:
    """Return the sentence about an error; the traceback of an unexpected one is logged at debug."""
    if isinstance(error, NdxdpError):
        return error.message
    if isinstance(error, OSError):
        return from_os(error).message
    log.debug("internal error", exc_info=error)
    return f"internal error: {type(error).__name__}: {error}"
