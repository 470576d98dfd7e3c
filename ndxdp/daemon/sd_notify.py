"""sd_notify(3): the daemon's notifications to systemd."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from ndxdp.printable import printable

_START_TIME = 90  # seconds, as TimeoutStartSec= by default


class Notifier:
    """Sends datagrams to $NOTIFY_SOCKET; without that variable, does nothing."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # a name in the abstract namespace
            self._address = "\0" + self._address[1:]
        watchdog = os.environ.pop("WATCHDOG_USEC", "")
        is_ours = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._is_ready = False
        self.watchdog = int(watchdog) / 1e6 if watchdog.isdecimal() and is_ours else 0.0
        """Seconds within which alive() must be called; 0 for never."""

    def starting(self) -> None:
        """Notify that the start makes progress, so that systemd extends its time limit."""
        self._send(f"EXTEND_TIMEOUT_USEC={_START_TIME * 1_000_000}")

    def ready(self, status: str) -> None:
        """Notify that the daemon is ready, or that a reload has ended."""
        self._is_ready = True
        self._send("READY=1", f"STATUS={printable(status)}")

    def reloading(self) -> None:
        """Notify that a reload has begun; ready() ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Notify that the daemon is ending."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that `systemctl status` shows."""
        self._send(f"STATUS={printable(text)}")

    def alive(self) -> None:
        """Feed the watchdog, which starts once the daemon is ready."""
        if self._is_ready:
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),  # answering must not depend on systemd
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out,
        ):
            out.sendto("\n".join(lines).encode(), self._address)
