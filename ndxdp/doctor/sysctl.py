"""Sysctls of this network namespace: read, and how a command sets them."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys")


def read(*name: str) -> int | None:
    """A number, by the parts of its name: an interface's may have dots in it.

    None where this kernel or namespace has no such sysctl, or does not show it.
    """
    try:
        return int(_ROOT.joinpath(*name).read_text())
    except (OSError, ValueError):
        return None


def conf(interface: str, key: str) -> int:
    """Of IPv6 on an interface, `all` or `default`; 0 where there is none."""
    return read("net", "ipv6", "conf", interface, key) or 0


def setting(interface: str, key: str, value: int) -> str:
    """As `sysctl -w` takes it. Slashes, where a dot of the name would be taken for one."""
    between = "/" if "." in interface else "."
    return between.join(("net", "ipv6", "conf", interface, key)) + f"={value}"


def cure(*settings: str) -> str:
    return " ".join(("sysctl -w", *settings))
