"""Facts that processes of ndxdp publish for `status` and `doctor`, without writing a file.

An exporter publishes where it listens, a daemon from which address it solicits a gateway.
Each fact is the name of an abstract Unix socket, which accepts nothing. The socket ends with its
process, and every process in the network namespace can read its name in /proc/net/unix. Any
process there can also make one: people read these facts, and ndxdp decides nothing by them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from ndxdp.runtime.daemon_status import CareStatus, NoSource

log = logging.getLogger(__name__)

_EXPORTER = "ndxdp-exporter/"
_CARE = "ndxdp-gateway/"
_SHOWN = re.compile(r"[\w\[\].:%/, -]{1,90}")
_FROM, _NONE = "from", "-"
_SOCKETS = Path("/proc/thread-self/net/unix")


class Publication:
    """A fact that other processes can read, until close(): where an exporter listens."""

    def __init__(self, where: str) -> None:
        self._show(_EXPORTER + where)

    def _show(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0{name}")
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("status will not tell of %s: %s", name, error)

    def close(self) -> None:
        self._socket.close()


class CarePublication(Publication):
    """A fact about the gateway care of an interface."""

    def __init__(self, interface: str, news: CareStatus) -> None:
        word = news.why.value if news.why else _FROM
        source = socket.inet_ntop(socket.AF_INET6, news.source) if news.source else _NONE
        self._show(f"{_CARE}{interface}/{word}/{source}")


def exporters() -> list[str]:
    """Return where the exporters of this network namespace listen."""
    return sorted({where for where in _names(_EXPORTER) if _SHOWN.fullmatch(where)})


def care(interface: str) -> CareStatus | None:
    """Return what the daemon tells of the gateway care of an interface; None if there is none."""
    for name in _names(f"{_CARE}{interface}/"):
        with contextlib.suppress(ValueError, OSError):
            word, _, text = name.partition("/")
            source = None if text == _NONE else socket.inet_pton(socket.AF_INET6, text)
            return CareStatus(source, None if word == _FROM else NoSource(word))
    return None


def _names(prefix: str) -> Iterator[str]:
    """Read the names of abstract sockets that begin with `prefix`, without it."""
    with contextlib.suppress(OSError):
        for line in _SOCKETS.read_text(errors="replace").splitlines():
            _, found, name = line.partition(f" @{prefix}")
            if found:
                yield name
