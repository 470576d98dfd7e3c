"""A virtual machine of the lab: QEMU, a disk of its own, network cards, and commands in it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

from lab import image
from lab.agent import PORT, Agent, AgentError, Done
from lab.commands import LabError

BOOT = 900  # seconds for a boot, which takes about 30 on an idle machine
PATIENCE = 600  # seconds for a command


class Card(NamedTuple):
    """A virtio-net card on a cable that is a Unix socket; one of its ends listens.

    `options` are those of QEMU's virtio-net-pci.
    """

    cable: Path
    mac: str
    listens: bool = False
    options: str = ""


class Machine:
    """A machine that runs from construction until `close`. Its disk survives a reboot."""

    def __init__(
        self,
        name: str,
        folder: Path,
        cards: Sequence[Card],
        *,
        memory: int,
        processors: int = 1,
    ) -> None:
        """Start the machine. `folder` exists and takes its disk and its console's log."""
        self.name = name
        self.console = folder / f"{name}.console"
        base, disk = image.debian(), folder / f"{name}.qcow2"
        image.overlay(base / "disk", disk)
        # A guest in trouble ends at once.
        parameters = (
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet panic=1 oops=panic"
            f" systemd.hostname={name}"
        )
        port = folder / f"{name}.agent"
        command = [
            *("setpriv", "--pdeathsig", "KILL", "nice", "qemu-system-x86_64"),
            *("-accel", "tcg,thread=multi", "-smp", str(processors), "-m", str(memory)),
            *("-nodefaults", "-display", "none", "-device", "virtio-rng-pci"),
            *("-serial", f"file:{self.console}"),
            *("-kernel", str(base / "kernel"), "-initrd", str(base / "initrd")),
            *("-append", parameters),
            *("-drive", f"file={disk},format=qcow2,if=virtio,cache=unsafe"),
            *("-drive", f"file={folder}/repository,format=raw,if=virtio,readonly=on"),
            *("-chardev", f"socket,id=agent,path={port},server=on,wait=off"),
            *("-device", "virtio-serial", "-device", f"virtserialport,chardev=agent,name={PORT}"),
        ]
        for number, card in enumerate(cards):
            cable = (
                f"addr.type=unix,addr.path={card.cable},server={'on' if card.listens else 'off'}"
            )
            device = f"virtio-net-pci,netdev=net{number},mac={card.mac},romfile={card.options}"
            command += ["-netdev", f"stream,id=net{number},{cable}", "-device", device]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._agent = Agent(port)
        # The listening end of a cable must exist before the other.
        for path in (port, *(card.cable for card in cards if card.listens)):
            self._wait_for(path)

    def _wait_for(self, path: Path) -> None:
        for _ in range(200):
            if path.exists():
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self.close()
        raise LabError(f"The machine {self.name} did not start.", "QEMU's output is above.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine."""
        self._agent.close()
        self._process.kill()
        self._process.wait()

    def wait_until_booted(self) -> str:
        """Return what `systemctl is-system-running` prints: "running" or "degraded"."""
        try:
            self._agent.synchronize(BOOT)
        except AgentError as error:
            output = self.console.read_text(errors="replace")[-2000:]
            raise LabError(f"The machine {self.name} did not boot: {error}.", output) from error
        return self.run("systemctl is-system-running --wait", check=False, within=BOOT).out.strip()

    def reboot(self) -> str:
        """Reboot the machine as a user does, and wait as `wait_until_booted` does."""
        before = self.run("cat /proc/sys/kernel/random/boot_id").out
        with contextlib.suppress(AgentError):
            self._agent.start("systemctl reboot")
        deadline = time.monotonic() + BOOT
        while time.monotonic() < deadline:
            time.sleep(2)
            with contextlib.suppress(AgentError):
                self._agent.synchronize(10)
                if self._agent.run("cat /proc/sys/kernel/random/boot_id", 10).out != before:
                    return self.wait_until_booted()
        raise LabError(f"The machine {self.name} did not reboot.", f"See {self.console}.")

    def run(self, script: str, *, check: bool = True, within: float = PATIENCE) -> Done:
        """Run a shell script to its end; LabError if it fails, unless `check` is false."""
        try:
            done = self._agent.run(script, within)
        except AgentError as error:
            raise LabError(f"{self.name}: {script}", str(error)) from error
        if check and done.code:
            output = f"{done.out}{done.err}".strip()[-3000:]
            raise LabError(f"{self.name}: {script} ended with {done.code}.", output)
        return done

    def start(self, script: str) -> int:
        """Start a script that continues to run; `finish` waits for its end."""
        try:
            return self._agent.start(script)
        except AgentError as error:
            raise LabError(f"{self.name}: {script}", str(error)) from error

    def finish(self, pid: int, within: float = PATIENCE) -> Done:
        """Wait for the end of a script from `start`."""
        deadline = time.monotonic() + within
        try:
            while (done := self._agent.poll(pid)) is None:
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: a command did not end in {within:g} s.")
                time.sleep(0.2)
        except AgentError as error:
            raise LabError(f"{self.name}: no word of a command's end.", str(error)) from error
        return done
