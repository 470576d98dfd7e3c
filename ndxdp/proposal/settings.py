"""The sysctls that answering needs, and the text of their file. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import NamedTuple

from ndxdp.printable import printable
from ndxdp.proposal.facts import Host, Uplink

_ACCEPT = (
    "A host that forwards ignores router advertisements unless accept_ra of the interface is 2."
)
_FORWARD = "The kernel forwards packets between the uplink and what is behind this host."
_FORWARD_ONE = "Rules that ask the kernel's tables need forwarding on the uplink itself."


class Setting(NamedTuple):
    """A sysctl.

    Attributes:
        key: The name, with slashes if an interface's name contains a dot.
        value: The value that is needed.
        present: The present value.
        why: Why it is needed, in a sentence.
    """

    key: str
    value: int
    present: int
    why: str

    @property
    def is_set(self) -> bool:
        """True if the sysctl has the value now."""
        return self.value == self.present


def needed(host: Host, planned: Iterable[Uplink]) -> tuple[Setting, ...]:
    """Return the sysctls in the order in which they are to be set.

    accept_ra is first: turning forwarding on removes the default routes of router advertisements
    where accept_ra is 1 (rt6_purge_dflt_routers), on uplinks without a rule, too.

    Args:
        host: The host.
        planned: The uplinks with rules for what is behind the host.
    """
    return tuple(_needed(host, planned))


def _needed(host: Host, planned: Iterable[Uplink]) -> Iterator[Setting]:
    for uplink in (*host.uplinks, *host.others):
        if uplink.advertised and uplink.accept_ra:
            yield Setting(_conf(uplink, "accept_ra"), 2, uplink.accept_ra, _ACCEPT)
    yield Setting("net.ipv6.conf.all.forwarding", 1, int(host.forwarding), _FORWARD)
    for uplink in planned:
        if host.forwarding and not uplink.forwarding:
            yield Setting(_conf(uplink, "forwarding"), 1, 0, _FORWARD_ONE)


def overridden(
    settings: Iterable[Setting], path: str, files: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield a sentence for each later file that sets a sysctl to another value at each boot.

    Args:
        settings: The sysctls.
        path: The path of their file.
        files: Path and text of each file, in the order of sysctl.d(5).
    """
    wanted = {_normal(each.key): each for each in settings}
    own = PurePath(path).name
    for other, content in files:
        if not is_later(PurePath(other), own):
            continue
        for key, value in _assignments(content):
            setting = wanted.get(key)
            if setting and value != str(setting.value):
                yield f"at each boot, {other} sets {setting.key} to {value} later: change it there"


def is_later(path: PurePath, own: str) -> bool:
    """Return True if a file is applied after that with the name `own`; /etc/sysctl.conf is last."""
    return path.name > own or path == PurePath("/etc/sysctl.conf")


def _assignments(content: str) -> Iterator[tuple[str, str]]:
    """Yield the normal form of the key, and the value, of each line of a file."""
    for line in content.splitlines():
        key, equals, value = line.strip().removeprefix("-").partition("=")
        if equals and key[:1] not in ("#", ";"):
            yield _normal(key.strip()), value.strip()


def _normal(key: str) -> str:
    """Return a key with slashes: the first separator decides what a dot is (sysctl.d(5))."""
    first = next((letter for letter in key if letter in "./"), "/")
    return key if first == "/" else key.translate(str.maketrans("./", "/."))


def _conf(uplink: Uplink, key: str) -> str:
    name = uplink.above or uplink.name
    between = "/" if "." in name else "."
    return between.join(("net", "ipv6", "conf", name, key))


def text(settings: Iterable[Setting], path: str) -> str:
    """Return the text of a file for sysctl.d(5)."""
    command = f"sysctl -p {shlex.quote(printable(path))}"
    lines = [f"# Proposed by `ndxdp init`. It applies at each boot; `{command}` applies it now."]
    last = ""
    for each in settings:
        if each.why != last:
            lines += ["", f"# {each.why}"]
            last = each.why
        lines.append(f"{each.key} = {each.value}")
    return "\n".join([*lines, ""])
