"""Tables [etcd] and [[interface.etcd]]: rules that an inventory keeps in etcd."""

from __future__ import annotations

import re
import socket
from pathlib import Path

from ndxdp.config.toml_table import Table
from ndxdp.errors import UsageError
from ndxdp.rules.rule import LABEL_MAX
from ndxdp.sources.etcd_settings import LEASE, LEASE_MAX, LEASE_MIN, PREFIX, Endpoint, Etcd

_EXAMPLE = 'endpoints = ["https://192.0.2.11:2379"]'
_PORT_MAX = 65535
_ENDPOINTS_MAX = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*", re.ASCII)
_TLS_KEYS = ("ca", "certificate", "key")


def read_etcd(root: Table, directory: Path, segments: bool) -> Etcd | None:
    """Read [etcd]; return None without it, or if it names no valid endpoint.

    Args:
        root: The file.
        directory: The directory of the file, which paths are relative to.
        segments: An interface has an [[interface.etcd]].
    """
    table = root.table("etcd")
    if not table.given:
        if segments:
            root.complain(
                "[[interface.etcd]] needs the table [etcd]", f"write [etcd] with {_EXAMPLE}"
            )
        return None
    if not segments:
        table.complain(
            "no interface has rules in etcd",
            "add [[interface.etcd]] with a segment, or remove this table",
        )
    endpoints = _endpoints(table)
    prefix = table.parsed("prefix", parse_key_prefix)
    host = table.parsed("host", lambda text: parse_name(text, "host"))
    if "host" not in table:
        host = _own_name(table)
    paths = {key: table.parsed(key, lambda text: _path(directory, text)) for key in _TLS_KEYS}
    if endpoints and not any(endpoint.tls for endpoint in endpoints):
        for key in _TLS_KEYS:
            if key in table:
                table.complain(
                    "this key has no effect: no endpoint begins with https://",
                    "write https:// in endpoints, or remove this key",
                    key,
                )
    if "key" in table and "certificate" not in table:
        table.complain(
            "a key without a certificate has no effect", "add certificate, or remove key", "key"
        )
    user = table.parsed("user", _user)
    password = table.parsed("password_file", lambda text: _path(directory, text))
    for key, other in (("user", "password_file"), ("password_file", "user")):
        if key in table and other not in table:
            table.complain(f"{key} needs {other}", f"add {other}, or remove {key}", key)
    lease = table.integer("lease", LEASE_MIN, LEASE_MAX)
    if not endpoints:
        return None
    return Etcd(
        endpoints,
        host or "",
        prefix or PREFIX,
        paths["ca"] or "",
        paths["certificate"] or "",
        paths["key"] or "",
        user or "",
        password or "",
        lease or LEASE,
    )


def _endpoints(table: Table) -> tuple[Endpoint, ...]:
    table.require("endpoints", _EXAMPLE)
    if table.is_empty("endpoints"):
        table.complain("this names no endpoint", f"write it as in {_EXAMPLE}", "endpoints")
    found: dict[Endpoint, int] = {}
    for number, endpoint in table.parsed_all("endpoints", parse_endpoint):
        if endpoint in found:
            first = f"line {table.line('endpoints', found[endpoint])} has it first"
            table.complain(f"{endpoint} is given twice", first, "endpoints", number)
        found.setdefault(endpoint, number)
    if len(found) > _ENDPOINTS_MAX:
        table.complain(
            f"there are more than {_ENDPOINTS_MAX} endpoints", "name the members only", "endpoints"
        )
    return tuple(found)


def parse_endpoint(text: str) -> Endpoint:
    """Read `http://host:port` or `https://host:port`; raise UsageError for other texts."""
    match = re.fullmatch(
        r"(https?)://(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]{1,253}))(?::([0-9]{1,5}))?/?",
        text,
        re.ASCII,
    )
    if match is None:
        raise UsageError(
            f"'{text}' is not the URL of a member of etcd",
            "write it as in https://192.0.2.11:2379 or https://[2001:db8::11]:2379",
        )
    port = int(match[4] or 2379)
    if not 1 <= port <= _PORT_MAX:
        raise UsageError(f"'{text}' has no port from 1 to {_PORT_MAX}", "etcd's port is 2379")
    if match[2]:
        try:
            socket.inet_pton(socket.AF_INET6, match[2])
        except OSError:
            raise UsageError(
                f"'{match[2]}' is not an IPv6 address", "write it as in https://[2001:db8::11]:2379"
            ) from None
    return Endpoint(match[2] or match[3], port, match[1] == "https")


def parse_key_prefix(text: str) -> str:
    """Return the beginning of all keys, as in `/ndxdp`; raise UsageError for other texts."""
    parts = text.removeprefix("/").split("/")
    if not text.startswith("/") or not all(map(_NAME.fullmatch, parts)):
        raise UsageError(
            f"'{text}' is not the beginning of keys",
            f'write it as in prefix = "{PREFIX}": parts of letters, digits and any of _ . : -',
        )
    return text


def parse_name(text: str, what: str) -> str:
    """Return a part of a key; raise UsageError for other texts.

    Args:
        text: The text.
        what: `host` or `segment`, for the message.
    """
    if not _NAME.fullmatch(text) or len(text) > LABEL_MAX:
        raise UsageError(
            f"'{text}' is not the name of a {what}",
            f"use up to {LABEL_MAX} letters, digits, and any of _ . : -",
        )
    return text


def _own_name(table: Table) -> str:
    """Return the host's name; complain if it cannot be part of a key."""
    name = socket.gethostname()
    try:
        return parse_name(name, "host")
    except UsageError:
        table.complain(
            f"the name of this host, '{name}', cannot be part of a key",
            'write the name that the keys have, as in host = "node7"',
        )
        return ""


def _path(directory: Path, text: str) -> str:
    if not text or "\0" in text:
        raise UsageError("this is not the path of a file", "write an absolute path")
    return str(directory / text)


def _user(text: str) -> str:
    if not text:
        raise UsageError("the user has no name", "remove user, or name one")
    return text


def read_segments(interface: Table) -> tuple[str, ...]:
    """Read all [[interface.etcd]]: the segments, each once."""
    found: dict[str, Table] = {}
    for table in interface.tables("etcd"):
        table.require("segment", 'segment = "vlan7"')
        segment = table.parsed("segment", lambda text: parse_name(text, "segment"))
        if segment is None:
            continue
        first = found.setdefault(segment, table)
        if first is not table:
            hint = f"line {first.line('segment')} has it first"
            table.complain(f"{segment} is given twice", hint, "segment")
    return tuple(found)
