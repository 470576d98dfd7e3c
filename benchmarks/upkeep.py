"""Answers lost during a restart, a reload, an upgrade or a kill, while a router solicits."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.wire import (
    HOST_CPU,
    LINK,
    NDXDP,
    PREFIX,
    REPOSITORY,
    SPREAD,
    Wire,
    host_command,
    in_host,
)

RATE = 20_000
"""Solicitations a second, during the whole measurement."""

_BEFORE, _AFTER = 0.3, 0.5  # seconds of answers before and after the action

_MORE = "2001:db8:0:1:d::/80"
_NDPPD = f"proxy {LINK} {{ rule {PREFIX}/80 {{ static }} }}\n"


class _Process:
    """A responder that can be started repeatedly."""

    def __init__(self, command: list[str], word: str) -> None:
        self._command, self._word = command, word
        self.start()

    def start(self) -> None:
        self._running = subprocess.Popen(
            host_command(*self._command),
            preexec_fn=lambda: os.sched_setaffinity(0, {HOST_CPU}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=REPOSITORY,
        )
        assert self._running.stdout is not None
        if not self._word:
            time.sleep(0.5)  # it prints nothing when it is ready
        elif not self._running.stdout.readline().startswith(self._word):
            raise SystemExit(f"It did not start: {' '.join(self._command)}")

    def end(self, number: int = signal.SIGTERM) -> None:
        self._running.send_signal(number)
        self._running.communicate(timeout=20)

    def restart(self, number: int = signal.SIGTERM) -> None:
        self.end(number)
        self.start()

    def send_hangup(self) -> None:
        self._running.send_signal(signal.SIGHUP)
        time.sleep(0.3)


def losses(wire: Wire, modes: tuple[str, ...], repeats: int) -> dict[str, list[dict[str, float]]]:
    """Return the solicitations sent during an action, and the number without an answer."""
    wire.spread(SPREAD)
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for mode in modes:
            one = _Process([*NDXDP, "run", "-c", str(_configure(folder, mode))], "ready")
            try:
                for _ in range(repeats):
                    for what, act in _actions(one, folder, mode).items():
                        found.setdefault(f"{mode}: {what}", []).append(_while(wire, act))
            finally:
                one.end()
                if mode != "userspace":
                    in_host(*NDXDP, "-q", "detach", LINK)
        (folder / "ndppd.conf").write_text(_NDPPD)
        other = _Process(["ndppd", "-c", str(folder / "ndppd.conf")], "")
        try:
            found["ndppd: restart"] = [_while(wire, other.restart) for _ in range(repeats)]
        finally:
            other.end()
    return found


def _actions(one: _Process, folder: Path, mode: str) -> dict[str, Callable[[], None]]:
    def reload() -> None:
        _configure(folder, mode, _MORE)
        one.send_hangup()
        _configure(folder, mode)
        one.send_hangup()

    def upgrade() -> None:
        one.end()
        in_host(*NDXDP, "-q", "attach", LINK)  # loads the program again, and replaces the old one
        one.start()

    acts: dict[str, Callable[[], None]] = {
        "reload": reload,
        "restart": one.restart,
        "kill and start": lambda: one.restart(signal.SIGKILL),
    }
    return acts if mode == "userspace" else acts | {"upgrade": upgrade}


def _configure(folder: Path, mode: str, *more: str) -> Path:
    file = folder / f"{mode}.toml"
    tables = "".join(
        f'[[interface.prefix]]\nprefix = "{prefix}"\n' for prefix in (f"{PREFIX}/80", *more)
    )
    file.write_text(f'[[interface]]\nname = "{LINK}"\nmode = "{mode}"\n{tables}')
    return file


def _while(wire: Wire, act: Callable[[], None]) -> dict[str, float]:
    failed: list[BaseException] = []

    def acting() -> None:
        os.sched_setaffinity(0, {HOST_CPU})  # of this thread
        try:
            time.sleep(_BEFORE)
            act()
            time.sleep(_AFTER)
        except BaseException as error:
            failed.append(error)
        finally:
            wire.stop()

    thread = threading.Thread(target=acting)
    thread.start()
    flood = wire.flood(RATE, 60)
    thread.join()
    if failed:
        raise failed[0]
    if not flood.counts.answers:
        raise SystemExit("Nothing was answered.")
    return {"sent": flood.sent, "lost": flood.sent - flood.counts.answers}
