"""sd_notify(3): telling systemd how the daemon fares. Without systemd it tells nobody."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from ndxdp.printable import printable


class Notifier:
    """Datagrams to $NOTIFY_SOCKET, which are all that the protocol is."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # of the abstract namespace
            self._address = "\0" + self._address[1:]
        watchdog = os.environ.pop("WATCHDOG_USEC", "")
        meant = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._is_ready = False
        self.watchdog = int(watchdog) / 1e6 if watchdog.isdecimal() and meant else 0.0
        """Seconds within which alive() must be called; 0 for never."""

    def ready(self, status: str) -> None:
        self._is_ready = True
        self._say("READY=1", f"STATUS={printable(status)}")

    def reloading(self) -> None:
        """ready() says when it is done."""
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def status(self, text: str) -> None:
        self._say(f"STATUS={printable(text)}")

    def alive(self) -> None:
        """Feed the watchdog, which begins when the daemon is ready."""
        if self._is_ready:
            self._say("WATCHDOG=1")

    def _say(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),  # nobody listens: that is no reason to stop answering
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.sendto("\n".join(lines).encode(), self._address)
