"""A host of the lab's network for shared addresses: its daemon and its links."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from ipaddress import IPv6Network
from pathlib import Path

from lab.commands import HANG, LabError, enter, run_command
from lab.nodes import Node, wait_until

SWITCH = "switch"
"""The namespace with the bridges of both networks."""

PREFIX = IPv6Network("2001:db8:1::/64")
"""The prefix of the segment."""

READY_WITHIN = 60.0
"""Seconds within which a daemon begins to answer, on a busy machine, too."""

PATIENT = ("--timeout", "60")
"""Options of `ndxdp fleet move` and `drain` with which a busy machine delays them, no more."""

_READY = re.compile(r"^ready\b", re.MULTILINE)


class FleetHost(Node):
    """A host with a daemon.

    Attributes:
        number: From 1 on.
        address: Its own address on the segment.
        management: Its address on the management network.
        file: The configuration file.
        process: The daemon's process; None while there is none.
    """

    def __init__(self, number: int, folder: Path, ndxdp: Sequence[str]) -> None:
        super().__init__(f"h{number}", f"02:00:00:00:01:{number:02x}")
        self.number, self.address = number, PREFIX[0x100 + number]
        self.management = f"10.0.0.{100 + number}"
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = folder / self.name
        self.folder.mkdir()
        self.file = self.folder / "ndxdp.toml"
        self.bpffs, self.run_directory = self.folder / "bpf", self.folder / "run"
        self._ndxdp = list(ndxdp)
        self._log = self.folder / "log"

    # ---- the daemon

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon; with `wait`, return when it is ready."""
        written = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                enter(self.name, [*self._ndxdp, "run", "-c", str(self.file)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
            )
        if wait:
            wait_until(
                lambda: self.is_ready(written),
                f"ndxdp at {self.name} is not ready",
                READY_WITHIN,
                lambda: self.log(written)[-1500:],
            )

    def log(self, begin: int = 0) -> str:
        """Return what all daemons of this host have printed, from byte `begin` on."""
        return self._log.read_bytes()[begin:].decode(errors="replace") if begin >= 0 else ""

    def is_ready(self, begin: int = 0) -> bool:
        """Return True if a daemon has printed that it is ready, from byte `begin` on."""
        return bool(_READY.search(self.log(begin)))

    def kill(self) -> None:
        """End the daemon by SIGKILL, also if it is stopped."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def suspend(self) -> None:
        """Stop the daemon by SIGSTOP."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a stopped daemon run on."""
        self._signal(signal.SIGCONT)

    def end(self) -> int:
        """End the daemon by SIGTERM, as systemd does; return its exit code."""
        self._signal(signal.SIGTERM)
        assert self.process is not None
        try:
            code = self.process.wait(20)
        except subprocess.TimeoutExpired:
            raise LabError(f"ndxdp at {self.name} does not end.", self.log()[-1500:]) from None
        self.process = None
        return code

    def _signal(self, number: int) -> None:
        if self.process is None:
            raise LabError(f"There is no daemon at {self.name}.")
        self.process.send_signal(number)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the host's processes."""
        own = {"NDXDP_BPFFS": str(self.bpffs), "NDXDP_RUN_DIRECTORY": str(self.run_directory)}
        return os.environ | own

    def ndxdp(
        self, *args: str, check: bool = True, timeout: float = HANG
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of ndxdp on the host. Raises LabError if it fails and `check` is set."""
        own = [f"NDXDP_BPFFS={self.bpffs}", f"NDXDP_RUN_DIRECTORY={self.run_directory}"]
        return self.run("env", *own, *self._ndxdp, *args, check=check, timeout=timeout)

    def drain(self) -> None:
        """Let the host give up all shared addresses, and take none."""
        self.ndxdp("fleet", "drain", "-c", str(self.file), *PATIENT)

    def undrain(self) -> None:
        """Let the host take shared addresses again."""
        self.ndxdp("fleet", "undrain", "-c", str(self.file))

    # ---- the links

    def cut_from_etcd(self) -> None:
        """Take the switch's port of the management link down."""
        at_switch("link", "set", f"mg-{self.name}", "down")

    def join_etcd(self) -> None:
        """Take it up again."""
        at_switch("link", "set", f"mg-{self.name}", "up")

    def cut_from_segment(self) -> None:
        """Take the switch's port of the uplink down: the uplink has no carrier."""
        at_switch("link", "set", f"to-{self.name}", "down")

    def join_segment(self) -> None:
        """Take it up again."""
        at_switch("link", "set", f"to-{self.name}", "up")

    def restore(self) -> None:
        """Undo every fault: the links are up, the daemon runs."""
        self.join_etcd()
        self.join_segment()
        if self.process is not None and self.process.poll() is None:
            self.resume()
        else:
            self.process = None
            self.start()


def at_switch(*words: str) -> None:
    """Run ip in the namespace with the bridges."""
    run_command(enter(SWITCH, ["ip", *words]))
