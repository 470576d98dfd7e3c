"""Private namespaces (network, mount, process), which vanish together with their contents.

The kernel cleans up: the first process inside is the init of a process namespace and dies with its
parent. So nothing outlives the program, whichever signal ends it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

_OUTER_NAMESPACE = "NDXDP_LAB_OUTER_NETNS"

_TEMPORARY = "/var/tmp"
"""The directory of temporary files, which vanish with the namespaces, however they end. Nested
namespaces share it, so that processes inside find the files of their parents."""

# `unshare --mount` has made every mount private already, so these mounts stay inside. The machine's
# BPF file systems are unmounted first: otherwise they would reappear when the private one above
# them is unmounted.
_MOUNTS = (
    "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/netns && "
    f"{{ grep -q '^ndxdp-lab {_TEMPORARY} ' /proc/mounts || "
    f"mount -t tmpfs -o mode=1777 ndxdp-lab {_TEMPORARY}; }} && "
    "{ while umount /sys/fs/bpf 2>&-; do :; done; } && "
    'mount -t bpf bpf /sys/fs/bpf && exec "$@"'
)


def inside() -> bool:
    """Return True if `run` started this process."""
    return os.environ.get(_OUTER_NAMESPACE, _here()) != _here()


def run(command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> int:
    """Run `command` in fresh namespaces, with an empty /run and an empty /sys/fs/bpf.

    The command inherits the descriptors of `pass_fds`, such as sockets of the outer namespace.

    Returns its exit code; SIGINT and SIGTERM end it and everything it started. Needs root. The
    command starts with the default handling of these signals and SIGQUIT, even if they are ignored
    here, as in a shell's background job.
    """
    stopped_by = 0
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number
        if process:
            process.kill()

    # A signal with a handler gets its default in the new process; an ignored one stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # unshare blocks SIGTERM and SIGINT while it waits, so this process stays, instead of an exec,
    # and kills it. setpriv handles the death of this process by SIGKILL.
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", _MOUNTS, "sh", *command),
        ],
        env=os.environ | {_OUTER_NAMESPACE: _here(), "TMPDIR": _TEMPORARY},
        pass_fds=pass_fds,
    )
    if stopped_by:
        process.kill()
    code = process.wait()
    if stopped_by:
        return 128 + stopped_by
    return code if code >= 0 else 128 - code


def _here() -> str:
    return os.readlink("/proc/self/ns/net")
