"""Values of keys that are more than a string: addresses to listen on, sockets, networks, labels."""

from __future__ import annotations

import re
import socket

from ndxdp.config.model import Metrics
from ndxdp.errors import UsageError
from ndxdp.rules.address import parse_unicast
from ndxdp.rules.interface_name import check_interface, is_pattern
from ndxdp.rules.interface_pattern import check_pattern
from ndxdp.rules.prefix import AddressPattern, parse_pattern

_PORT_MAX = 65535
_UNIX_PATH_MAX = 107  # bytes, unix(7)


def parse_interface(text: str) -> str:
    """Return the name of an interface, or a pattern; raise UsageError for other texts."""
    (check_pattern if is_pattern(text) else check_interface)(text)
    return text


def parse_listen(text: str) -> Metrics:
    """Read `[::1]:9877`, `127.0.0.1:9877` or `localhost:9877`; raise UsageError for other texts."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", text, re.ASCII)
    if match is None or not 1 <= int(match[3]) <= _PORT_MAX:
        raise UsageError(
            f"'{text}' is not an address and a port", "write it as in [::1]:9877 or 127.0.0.1:9877"
        )
    host = match[1] or match[2]
    if match[1]:
        good = _is_address(socket.AF_INET6, host.partition("%")[0])
    elif re.fullmatch(r"[0-9.]+", host):
        good = _is_address(socket.AF_INET, host)
    else:
        good = re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})", host) is not None
    if not good:
        raise UsageError(
            f"'{text}' names no host to listen on", "[::]:9877 is every address of this host"
        )
    return Metrics(host, int(match[3]))


def _is_address(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def parse_socket(text: str) -> str:
    """Return the path of a unix socket, written alone or as in DOCKER_HOST.

    Raises:
        UsageError: The text is not an absolute path that a socket can have.
    """
    path = text.removeprefix("unix://")
    too_long = len(path.encode(errors="replace")) > _UNIX_PATH_MAX
    if not path.startswith("/") or "\0" in path or too_long:
        raise UsageError(
            f"'{text}' is not the path of a unix socket", "write it as in /run/docker.sock"
        )
    return path


def parse_network(text: str) -> str:
    """Return the name of a Docker network; raise UsageError for a blank or unprintable text."""
    if not text.strip() or not text.isprintable():  # the engine permits all others
        raise UsageError(f"'{text}' is not the name of a Docker network", "see: docker network ls")
    return text


def parse_label(text: str) -> str:
    """Return a label, `key` or `key=value`; raise UsageError for other texts."""
    key, _, value = text.partition("=")
    bad_key = not key.strip() or key != key.strip() or not key.isprintable()
    if bad_key or "\0" in value:
        raise UsageError(f"'{text}' is not a label", "write it as in key or key=value")
    return text


def parse_preferred(text: str) -> AddressPattern:
    """Read a pattern; an address alone must be one that a host can send from."""
    if "/" not in text:
        return AddressPattern(parse_unicast(text), 128)
    return parse_pattern(text)
