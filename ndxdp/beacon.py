"""Where exporters listen, for `ndxdp status` to see: an exporter needs no right to write a file.

Each has an abstract Unix socket, which takes nothing and has what is to be told for its name. It
goes with its process, and whoever is in the network namespace reads it in /proc/net/unix. So can
any process there make one: it is for people, and nothing is decided by it.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from pathlib import Path

log = logging.getLogger(__name__)

_PREFIX = "ndxdp-exporter/"
_SHOWN = re.compile(rf"@{re.escape(_PREFIX)}([\w\[\].:%/, -]{{1,90}})$")
_SOCKETS = Path("/proc/thread-self/net/unix")


class Beacon:
    """Tells of `where` until close()."""

    def __init__(self, where: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0{_PREFIX}{where}")
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("status will not tell of %s: %s", where, error)

    def close(self) -> None:
        self._socket.close()


def seen() -> list[str]:
    """What each beacon of this network namespace tells."""
    told = set()
    with contextlib.suppress(OSError):
        for line in _SOCKETS.read_text(errors="replace").splitlines():
            match = _SHOWN.search(line)
            if match:
                told.add(match[1])
    return sorted(told)
