"""The network namespace of this process."""

from __future__ import annotations

import os

_NETNS = "/proc/thread-self/ns/net"


def netns() -> int:
    """Return the inode number of this process's network namespace."""
    return os.stat(_NETNS).st_ino
