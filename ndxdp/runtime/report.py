"""Reports of running daemons for other processes, each a file in the run directory.

    <run directory>/report-<8 hexadecimal digits>.json

A daemon locks its file as long as it runs, so a file without a lock is that of a killed daemon. A
change replaces the file by a new file (.new), which is locked before it is renamed. So a reader
always finds a complete report.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from ndxdp.errors import NdxdpError
from ndxdp.files import access, locks
from ndxdp.runtime.daemon_status import DaemonStatus, EtcdStatus, FleetStatus

log = logging.getLogger(__name__)

_FILES, _FRESH = "report-*.json", "report-*.new"
_MODE = 0o640
_FEW = 16  # interfaces for which each change is reported at once
_REMOVED_WITHIN = 1.0  # seconds for another process to remove a file that it took for a stale one


class Daemon(NamedTuple):
    """The report of a daemon; docs/commands.md describes the fields.

    Attributes:
        pid: The daemon's process id, in its own process namespace.
        netns: The inode number of its network namespace.
        config: The path of the configuration file; None without one.
        interfaces: The interfaces of the configuration: `interface`, the name; `problem`, why the
            daemon does not answer there or has not applied a change, or ""; `answered`, whether
            the daemon answers there (absent from reports of older versions); `unanswered`, why
            the daemon does not answer there by intent, or ""; and `multicast`, the fields of
            GroupStatus, or None (absent from reports of older versions).
        reload: `begun`, the number of reloads that have begun; `number`, the number of reloads that
            have ended; `ok` and `error` of the last reload.
        exporter: `where` the exporter listens, and the `problem` with that; None without one.
        docker: `connected`; None if no container is answered for.
        etcd: The fields of EtcdStatus but `confirmed`; None if no interface has rules in etcd
            (absent from reports of older versions).
        fleet: The fields of FleetStatus but `expires` and `lag`; None if no interface has a segment
            (absent from reports of older versions).
    """

    pid: int
    netns: int
    config: str | None
    interfaces: list[dict[str, Any]]
    reload: dict[str, Any]
    exporter: dict[str, str] | None
    docker: dict[str, bool] | None
    etcd: dict[str, Any] | None = None
    fleet: dict[str, Any] | None = None


def daemon_of(state: DaemonStatus, netns: int = 0, config: Path | None = None) -> Daemon:
    """Return the report of this process, a daemon."""
    exporter, connected = state.exporter, state.docker_connected
    etcd, fleet = state.etcd, state.fleet
    return Daemon(
        os.getpid(),
        netns,
        str(config) if config else None,
        [
            {
                "interface": name,
                "problem": status.problem,
                "answered": status.answered,
                "unanswered": status.unanswered,
                "multicast": status.groups._asdict() if status.groups else None,
            }
            for name, status in list(state.interfaces.items())
        ],
        {
            "begun": state.reloads_begun,
            "number": state.reloads,
            "ok": state.reload_ok,
            "error": state.reload_error,
        },
        exporter._asdict() if exporter else None,
        {"connected": connected()} if connected else None,
        _etcd(etcd()) if etcd else None,
        _fleet(fleet()) if fleet else None,
    )


def _etcd(etcd: EtcdStatus) -> dict[str, Any]:
    """Return the fields of EtcdStatus that change with the connection and with keys only."""
    data = etcd._asdict()
    del data["confirmed"]
    for key in ("since", "last_event"):
        if data[key] is not None:
            moment = datetime.fromtimestamp(data[key], UTC)
            data[key] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return data


def _fleet(fleet: FleetStatus) -> dict[str, Any]:
    """Return the fields of FleetStatus that change with members and addresses only."""
    data = fleet._asdict()
    del data["expires"], data["lag"]
    return data | {"segments": [segment._asdict() for segment in fleet.segments]}


class Publisher:
    """The report of this process, updated after each change of a DaemonStatus until close()."""

    def __init__(
        self, directory: Path, netns: int, config: Path | None, state: DaemonStatus
    ) -> None:
        """Remove the reports of killed daemons, and write the first report."""
        self._path = directory / f"report-{os.urandom(4).hex()}.json"
        self._netns, self._config, self._state = netns, config, state
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._written = b""
        self._note: Callable[[], None] | None = None
        remove_stale(directory)
        state.on_change = self._on_change
        self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def gathering(self, note: Callable[[], None]) -> Iterator[None]:
        """Have one report written for many changes in the block, where there are many interfaces.

        Each interface changes several times while the daemon starts, and a report has all
        interfaces: a report for each change would take the square of their number.

        Args:
            note: Has update() called soon after a change; any thread may call this.
        """
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _on_change(self, urgent: bool) -> None:
        note = self._note
        if note is None or urgent or len(self._state.interfaces) <= _FEW:
            self.update()
        else:
            note()

    def update(self) -> None:
        """Write the report if it has changed, from any thread; log a failure once."""
        with self._lock:
            if self._state.on_change is None:
                return
            data = json.dumps(daemon_of(self._state, self._netns, self._config)._asdict()).encode()
            if data == self._written:
                return
            try:
                self._write(data)
            except (NdxdpError, OSError) as error:
                if not self._written:  # no report was written before
                    log.warning(
                        "cannot write a report to %s: %s; `ndxdp status` does not show this daemon",
                        self._path.parent,
                        error.strerror if isinstance(error, OSError) else error,
                    )
            self._written = data

    def close(self) -> None:
        """Remove the report, and the run directory if it is empty then."""
        with self._lock:
            self._state.on_change = None
            if self._fd is None:
                return
            with contextlib.suppress(OSError):
                self._path.unlink()
            with contextlib.suppress(OSError):  # not empty
                self._path.parent.rmdir()
            os.close(self._fd)
            self._fd = None

    def _write(self, data: bytes) -> None:
        """Write a new file, lock it, and rename it to the report's name."""
        fresh = self._path.with_suffix(".new")

        def opened() -> int | None:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            access.refuse_untrusted(self._path.parent)
            try:
                return os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
            except FileNotFoundError:  # another process has just removed the empty directory
                return None

        fd = locks.acquire(fresh, opened, lambda fd: locks.take(fd, _REMOVED_WITHIN))
        if fd is None:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(fresh))
        try:
            os.write(fd, data)
            fresh.rename(self._path)
        except BaseException:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd


def daemons(directory: Path, netns: int | None = None) -> list[Daemon]:
    """Return the reports of the running daemons, as far as this process may read them.

    Args:
        directory: The run directory.
        netns: Return only the reports of this network namespace; None for all.
    """
    found = []
    for path in sorted(directory.glob(_FILES)):
        with contextlib.suppress(OSError, ValueError, TypeError):
            data = _read(path)
            if data is not None:
                found.append(Daemon(**json.loads(data)))
    return [each for each in found if netns in (None, each.netns)]


def remove_stale(directory: Path) -> None:
    """Remove the reports of killed daemons, and the run directory if it is empty then."""
    removed = False
    for path in [*directory.glob(_FILES), *directory.glob(_FRESH)]:
        with contextlib.suppress(OSError):
            removed = _read(path, remove=True) is None or removed
    if removed:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _read(path: Path, *, remove: bool = False) -> bytes | None:
    """Return the text of a report; None if its daemon has ended.

    Args:
        path: The report.
        remove: Remove the report of a daemon that has ended.

    Raises:
        OSError: The file cannot be read, or its owner is neither root nor this user.
    """
    text = b""

    def opened() -> int:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        made = os.fstat(fd)
        if not stat.S_ISREG(made.st_mode) or made.st_uid not in (0, os.geteuid()):
            os.close(fd)
            raise PermissionError(f"{path} is not a daemon's")
        return fd

    def is_free(fd: int) -> bool:
        nonlocal text
        if locks.is_free(fd):
            return True
        text = os.pread(fd, os.fstat(fd).st_size, 0)
        return False

    fd = locks.acquire(path, opened, is_free)
    if fd is None:
        return text
    try:
        if remove:  # before the lock ends: a daemon that has just made the file waits for that
            path.unlink()
    finally:
        os.close(fd)
    return None
