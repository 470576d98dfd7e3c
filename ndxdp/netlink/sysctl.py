"""Sysctls of this network namespace: their values, and commands that set them."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/proc/sys")


def read(*name: str) -> int | None:
    """Return the number in a sysctl; None if this kernel or namespace does not have or show it.

    Args:
        name: The parts of its name; the name of an interface may contain dots.
    """
    try:
        return int(_ROOT.joinpath(*name).read_text())
    except (OSError, ValueError):
        return None


def conf(interface: str, key: str) -> int:
    """Return an IPv6 sysctl of an interface, of `all` or of `default`; 0 if it does not exist."""
    return read("net", "ipv6", "conf", interface, key) or 0


def setting(interface: str, key: str, value: int) -> str:
    """Return an argument of `sysctl -w`, with slashes if the interface's name contains a dot."""
    between = "/" if "." in interface else "."
    return between.join(("net", "ipv6", "conf", interface, key)) + f"={value}"


def cure(*settings: str) -> str:
    """Return the command that sets sysctls.

    Args:
        settings: Arguments of `sysctl -w`, such as those of setting().
    """
    return " ".join(("sysctl -w", *settings))
