"""Private namespaces (network, mount, process) that vanish with everything in them.

The kernel cleans up: the first process inside is the init of a process namespace and dies with its
parent. So nothing outlives the program, whatever signal ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from types import FrameType

_OUTER_NAMESPACE = "NDXDP_LAB_OUTER_NETNS"

_TEMPORARY = "/var/tmp"
"""Where temporary files go, which vanish with the namespaces, however they end. Namespaces within
others have the same, so that what is started in them finds the files of who has started it."""

# `unshare --mount` has made every mount private already, so these stay inside. The machine's own
# BPF file systems go first: below ours they would come to light where ours is taken away.
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


def run(command: Sequence[str]) -> int:
    """Run `command` in fresh namespaces, with an empty /run and an empty /sys/fs/bpf.

    Returns its exit code; SIGINT and SIGTERM end it and everything it started. Needs root. The
    command finds these signals and SIGQUIT as they are by default, also where they are ignored
    here, as in a shell's background job.
    """
    stopped_by = 0
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_by
        stopped_by = number
        if process:
            process.kill()

    # What is handled here is back at its default in the new process, what is ignored stays so.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    # unshare blocks SIGTERM and SIGINT while it waits, so it cannot take our place by exec: we
    # stay, and kill it. setpriv covers our own death by SIGKILL.
    process = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", _MOUNTS, "sh", *command),
        ],
        env=os.environ | {_OUTER_NAMESPACE: _here(), "TMPDIR": _TEMPORARY},
    )
    if stopped_by:
        process.kill()
    code = process.wait()
    if stopped_by:
        return 128 + stopped_by
    return code if code >= 0 else 128 - code


def _here() -> str:
    return os.readlink("/proc/self/ns/net")
