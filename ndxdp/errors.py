"""The exceptions that the command line prints: a sentence and a hint."""

from __future__ import annotations

import errno
import logging
import os
import resource

log = logging.getLogger(__name__)


class NdxdpError(Exception):
    """An expected error: one sentence, and a hint that names the cure.

    The command line prints both and exits with `exit_code`.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", also: tuple[str, ...] = ()) -> None:
        """Create the error.

        Args:
            message: What failed, and why.
            hint: The cure, where possible as a command.
            also: Other errors that were found at the same time, a sentence each.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.also = also

    @property
    def summary(self) -> str:
        """The message, and how many further errors there are."""
        return f"{self.message} (and {len(self.also)} more)" if self.also else self.message


class UsageError(NdxdpError):
    """An error in the arguments of a command, in a file or in a rule; nothing was changed."""

    exit_code = 2


class ModeUnavailable(NdxdpError):
    """A mode that is unavailable on this interface or host; another mode may be available."""


class InterfaceGone(NdxdpError):
    """An interface that does not exist: it was deleted or renamed, or is not created yet."""


class NotAttached(NdxdpError):
    """An interface to which ndxdp is not attached."""


class LimitReached(NdxdpError):
    """A limit that a setting raises; the hint has the setting, and a daemon logs the hint, too."""


class NoRoom(LimitReached):
    """Rules that do not fit into the maps.

    Attributes:
        max_addresses: The size of the table of addresses that makes room; 0 if none does.
    """

    def __init__(self, message: str, hint: str, max_addresses: int = 0) -> None:
        """Create the error; see NdxdpError."""
        super().__init__(message, hint)
        self.max_addresses = max_addresses


class Damaged(NdxdpError):
    """Pins or files that are missing, or that another program wrote."""


def interface_gone(interface: str) -> InterfaceGone:
    """Return the error for an interface that was deleted."""
    return InterfaceGone(f"{interface} has gone", "start again when it is back")


_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


def is_exhausted(error: OSError) -> bool:
    """Return True if this process or the host has reached the limit of open files."""
    return error.errno in _EXHAUSTED


def twice(sysctl: str) -> str:
    """Return the command that doubles a sysctl."""
    try:
        with open(f"/proc/sys/{sysctl.replace('.', '/')}") as file:
            return f"sysctl {sysctl}={2 * int(file.read())}"
    except (OSError, ValueError):  # /proc is not mounted, or is another system's
        return f"sysctl {sysctl}"


def _more_files(error: OSError) -> str:
    """Return the hint that doubles the limit of open files."""
    if error.errno == errno.ENFILE:
        return f"raise the limit of this host: {twice('fs.file-max')}"
    soft = 2 * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"raise the limit: ulimit -n {soft}, or LimitNOFILE={soft} of the service"


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def not_written(path: object, error: OSError) -> NdxdpError:
    """Return the error for a file that cannot be written, with the cure for the cause."""
    directory = os.path.dirname(str(path)) or "."
    hint = f"to see its permissions: namei -l {path}"
    if error.errno in _NO_ROOM:
        hint = f"free some space: df -h {directory}; df -i {directory}"
    elif error.errno == errno.EROFS:
        hint = f"its file system is read-only: findmnt -T {directory}"
    elif error.errno in (errno.EPERM, errno.EACCES):
        hint = "run this as root"
    return NdxdpError(f"cannot write {path}: {error.strerror}", hint)


def from_os(error: OSError) -> NdxdpError:
    """Return the error for a system call that failed."""
    if is_exhausted(error):
        return LimitReached(f"cannot open more files: {error.strerror}", _more_files(error))
    if error.filename and error.errno in (*_NO_ROOM, errno.EROFS):
        return not_written(error.filename, error)
    if error.errno in _NO_ROOM:
        return NdxdpError(f"cannot write the output: {error.strerror}", "free some space: df -h")
    text = str(error).partition("] ")[2] or str(error)  # without Python's "[Errno 28] "
    detail = f"{error.filename}: {error.strerror}" if error.filename else text
    if error.errno in (errno.EPERM, errno.EACCES):
        return NdxdpError(
            f"not permitted: {detail}", "run this as root, or with CAP_BPF and CAP_NET_ADMIN"
        )
    return NdxdpError(detail, "--debug names the call")


def problem_of(error: BaseException) -> str:
    """Return the sentence for an error; log the traceback of an unexpected error at debug level."""
    if isinstance(error, NoRoom) and error.max_addresses:
        return f"{error.message}; max_addresses = {error.max_addresses} makes room"
    if isinstance(error, OSError):
        error = from_os(error)
    if isinstance(error, LimitReached) and not isinstance(error, NoRoom):
        return f"{error.message}; {error.hint}"
    if isinstance(error, NdxdpError):
        return error.message
    log.debug("internal error", exc_info=error)
    return f"internal error: {type(error).__name__}: {error}"
