"""Commands in a virtual machine, by the QEMU guest agent in it.

The agent speaks JSON, one line each way, on a virtio-serial port that QEMU offers as a Unix socket.
It needs no network in the machine. Requests made while the machine boots wait in the port.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

PORT = "org.qemu.guest_agent.0"
"""The name under which the agent finds its port."""

_ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
_EVERY = 0.2  # seconds between checks whether a command has ended


class AgentError(Exception):
    """Failure of an agent that does not answer, or refuses."""


class Done(NamedTuple):
    """A command that has ended; a `code` of -1 means that a signal ended it."""

    code: int
    out: str
    err: str


class Agent:
    """A connection for one thread at a time. Every error is an AgentError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._link: socket.socket | None = None
        self._pending = b""
        self._number = 0

    def close(self) -> None:
        """Close the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def synchronize(self, within: float) -> None:
        """Wait until the agent answers, for `within` seconds at the most.

        Answers from before a reboot are discarded.
        """
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self._number += 1
            with contextlib.suppress(AgentError):
                self._send("guest-sync", {"id": self._number})
                until = min(time.monotonic() + 5, deadline)
                while time.monotonic() < until:
                    if self._receive(until).get("return") == self._number:
                        return
        raise AgentError(f"the guest agent was silent for {within:g} s")

    def start(self, script: str) -> int:
        """Start a shell script in / and return its process id for `poll`."""
        arguments = {
            "path": "/bin/sh",
            "arg": ["-c", script],
            "env": list(_ENVIRONMENT),
            "capture-output": True,
        }
        pid: int = self._ask("guest-exec", arguments)["pid"]
        return pid

    def poll(self, pid: int) -> Done | None:
        """Return the outcome of a process, or None while it runs. The agent reports it once."""
        reply = self._ask("guest-exec-status", {"pid": pid})
        if not reply["exited"]:
            return None
        out, err = (
            base64.b64decode(reply.get(name, "")).decode(errors="replace")
            for name in ("out-data", "err-data")
        )
        return Done(reply.get("exitcode", -1), out, err)

    def run(self, script: str, within: float) -> Done:
        """Run a script to its end."""
        pid, deadline = self.start(script), time.monotonic() + within
        while (done := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                raise AgentError(f"it still ran after {within:g} s: {script}")
            time.sleep(_EVERY)
        return done

    def _ask(self, name: str, arguments: dict[str, Any]) -> Any:
        self._send(name, arguments)
        reply = self._receive(time.monotonic() + 60)
        if "error" in reply:
            raise AgentError(f"{name}: {reply['error'].get('desc', reply['error'])}")
        return reply["return"]

    def _send(self, name: str, arguments: dict[str, Any]) -> None:
        try:
            if self._link is None:
                self._pending = b""
                self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._link.settimeout(5)
                self._link.connect(str(self._path))
            line = json.dumps({"execute": name, "arguments": arguments}) + "\n"
            self._link.sendall(line.encode())
        except OSError as error:
            self.close()
            raise AgentError(f"{name}: {error}") from error

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._link is not None
        while b"\n" not in self._pending:
            self._link.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                piece = self._link.recv(65536)
            except OSError as error:
                self.close()
                raise AgentError(f"no answer: {error}") from error
            if not piece:
                self.close()
                raise AgentError("the machine is gone")
            self._pending += piece
        line, self._pending = self._pending.split(b"\n", 1)
        try:
            reply: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        except ValueError as error:
            raise AgentError(f"not an answer: {line[:100]!r}") from error
        return reply
