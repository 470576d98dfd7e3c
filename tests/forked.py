"""Run `ndxdp` commands in forks of a process that has imported it already.

The tests run thousands of commands, and starting Python takes longer than most of them. A server,
one for each process of tests, imports ndxdp and calls nothing of it; each command is a fork, with
arguments, environment, standard files and exit code of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
_PRELOADED = ("ndxdp.cli", "ndxdp.status", "ndxdp.responder", "ndxdp.wire.netlink")


class Server:
    """The process that forks, which ends with this one."""

    def __init__(self) -> None:
        self._started_in = _surroundings()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=_REPOSITORY,
            )
        atexit.register(self.close)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()

    @property
    def is_like_us(self) -> bool:
        """Return True if a command would find there what it would find as our own child."""
        return self._process.poll() is None and self._started_in == _surroundings()

    def run(self, args: Sequence[str], stdin: bytes, timeout: float) -> tuple[int, bytes, bytes]:
        """Run a command; return exit code, stdout and stderr. Raises TimeoutExpired."""
        files = [os.memfd_create(name) for name in ("args", "stdin", "stdout", "stderr")]
        reading, writing = os.pipe()
        try:
            for file, content in zip(files, (json.dumps(args).encode(), stdin), strict=False):
                with open(file, "wb", closefd=False) as written:
                    written.write(content)
                os.lseek(file, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [b"x"], [*files, writing])
            os.close(writing)
            writing = -1
            pid = int(os.read(reading, 8))
            if not select.select([reading], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(args, timeout)
            code = int(os.read(reading, 8))
            out, err = (_content(file) for file in files[2:])
        finally:
            for file in (*files, reading, *([writing] if writing >= 0 else [])):
                os.close(file)
        return code, out, err


def _surroundings() -> tuple[object, ...]:
    """Return what a child process inherits and tests change."""
    return (
        {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        resource.getrlimit(resource.RLIMIT_NOFILE),
        *(os.readlink(f"/proc/thread-self/ns/{kind}") for kind in ("net", "mnt")),
    )


def _content(file: int) -> bytes:
    os.lseek(file, 0, os.SEEK_SET)
    with open(file, "rb", closefd=False) as read:
        return read.read()


# ---- the server's side --------------------------------------------------------------------------


def _serve(requests: socket.socket) -> None:
    """Fork for each request, and write pid and exit code to the pipe that comes with it."""
    for module in _PRELOADED:
        __import__(module)
    waiting = selectors.DefaultSelector()
    waiting.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is requests:
                data, fds, _, _ = socket.recv_fds(requests, 1, 5)
                if not data:
                    return
                pid = os.fork()
                if pid == 0:
                    _become(fds[:4])
                for fd in fds[:4]:
                    os.close(fd)
                _tell(fds[4], pid)
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, fds[4]))
            else:
                pid, pipe = key.data
                _, status = os.waitpid(pid, 0)
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                _tell(pipe, os.waitstatus_to_exitcode(status))
                os.close(pipe)


def _tell(pipe: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked waits no longer
        os.write(pipe, b"%-8d" % number)


def _become(files: list[int]) -> None:
    """Become a command: never returns."""
    code = 1
    try:
        args = json.loads(_content(files[0]))
        for number, file in enumerate(files[1:]):
            os.dup2(file, number)
        os.closerange(3, 1024)
        sys.argv = ["ndxdp", *args]
        code = _run()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _run() -> int:
    """Run `python -m ndxdp` here; return the exit code."""
    try:
        runpy.run_module("ndxdp", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
