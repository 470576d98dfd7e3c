"""Facts that processes of ndxdp publish for `status` and `doctor`, without writing a file.

An exporter publishes the address on which it listens; a daemon publishes the source address of its
gateway care. A fact is the name of an abstract Unix socket, which accepts no data. The socket ends
with its process, and every process in the network namespace can read the name in /proc/net/unix.
Every process there can also create such a socket, so ndxdp only shows these facts and makes no
decision by them.
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
    """A fact that other processes can read, until close()."""

    def __init__(self, name: str) -> None:
        """Publish a fact by the name of a socket."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._socket.bind(f"\0{name}")
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            log.debug("cannot publish %s for status: %s", name, error)

    def close(self) -> None:
        """Withdraw the fact."""
        self._socket.close()


def publish_exporter(where: str) -> Publication:
    """Publish the address on which an exporter listens."""
    return Publication(_EXPORTER + where)


def publish_care(interface: str, status: CareStatus) -> Publication:
    """Publish the status of the gateway care on an interface."""
    word = status.why.value if status.why else _FROM
    source = socket.inet_ntop(socket.AF_INET6, status.source) if status.source else _NONE
    return Publication(f"{_CARE}{interface}/{word}/{source}")


def exporters() -> list[str]:
    """Return the addresses on which the exporters of this network namespace listen."""
    return sorted({where for where in _names(_EXPORTER) if _SHOWN.fullmatch(where)})


def care(interface: str) -> CareStatus | None:
    """Return the published status of the gateway care on an interface; None without one."""
    for name in _names(f"{_CARE}{interface}/"):
        with contextlib.suppress(ValueError, OSError):
            word, _, text = name.partition("/")
            source = None if text == _NONE else socket.inet_pton(socket.AF_INET6, text)
            return CareStatus(source, None if word == _FROM else NoSource(word))
    return None


def _names(prefix: str) -> Iterator[str]:
    """Yield the names of abstract sockets that begin with `prefix`, without the prefix."""
    with contextlib.suppress(OSError):
        for line in _SOCKETS.read_text(errors="replace").splitlines():
            _, found, name = line.partition(f" @{prefix}")
            if found:
                yield name
