"""Commands and processes of the lab, and its errors."""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence


class LabError(Exception):
    """A lab that cannot be built or used: one sentence, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)


def exit_code(main: Callable[[], int]) -> Callable[[], int]:
    """Decorate a program's main(): print a LabError and return 1, return 130 after Ctrl-C."""

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except LabError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130

    return guarded


HANG = 120.0
"""Seconds after which a command hangs. The kernel's rtnl lock, which all network namespaces of the
machine share, may keep a command waiting for half a minute on a busy one."""


def enter(namespace: str, args: Sequence[str]) -> list[str]:
    """Return the command that runs a command in a namespace."""
    # Not `ip netns exec`: that mounts a new /sys, which hides the bpffs.
    return ["nsenter", f"--net=/run/netns/{namespace}", *args]


def run_command(
    args: list[str], *, check: bool = True, stdin: str = "", timeout: float = HANG
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return its output.

    Raises LabError if it is not installed, takes longer than `timeout` seconds, or fails and
    `check` is set.
    """
    try:
        done = subprocess.run(args, input=stdin, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError as error:
        raise LabError(f"{args[0]} is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{' '.join(args)}` did not end within {timeout:g} s.") from error
    if check and done.returncode != 0:
        output = done.stderr.strip() or done.stdout.strip()
        raise LabError(f"`{' '.join(args)}` failed ({done.returncode}).", output)
    return done


def missing_tools() -> list[str]:
    """Return the commands that the lab needs and this machine lacks."""
    needed = ("setpriv", "unshare", "nsenter", "ip", "bridge", "sysctl", "nft", "ping", "clang")
    return [name for name in needed if not shutil.which(name)]


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that the lab started, by SIGKILL if it ignores SIGTERM."""
    process.terminate()
    try:
        process.wait(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
