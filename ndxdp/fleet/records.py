"""The values of members, holders, moves and drained hosts in etcd: JSON objects. Pure."""

from __future__ import annotations

import json
from typing import NamedTuple

_BYTES_MAX = 4096


class Member(NamedTuple):
    """A host that is alive, and may answer on a segment.

    Attributes:
        host: The name.
        version: The version of ndxdp.
        since: time.time() when it joined the segment.
        identity: Tells two hosts apart that have one name by mistake.
    """

    host: str
    version: str
    since: float
    identity: str


class Holder(NamedTuple):
    """The host that answers for a shared address.

    Attributes:
        host: The name.
        since: time.time() when it acquired the address.
        prefix: The prefix that it answers for, as a text. The key has a name only, and the prefix
            of that name may have been changed meanwhile.
        moved: Somebody has moved the address to this host, so that the first choice does not get
            it back.
    """

    host: str
    since: float
    prefix: str = ""
    moved: bool = False


def encode(**fields: str | float) -> bytes:
    """Return a value: a JSON object with the fields."""
    return json.dumps(fields, separators=(",", ":")).encode()


def decode_member(host: str, value: bytes) -> Member:
    """Return a member; unknown or wrong fields are empty, as other versions may write others."""
    found = _object(value)
    return Member(host, _text(found, "version"), _time(found, "since"), _text(found, "identity"))


def decode_holder(value: bytes) -> Holder:
    """Return a holder; its host is "" if the value names none."""
    found = _object(value)
    return Holder(
        _text(found, "host"),
        _time(found, "since"),
        _text(found, "prefix"),
        found.get("moved") is True,
    )


def encode_holder(holder: Holder) -> bytes:
    """Return the value of a holder's key."""
    return encode(**holder._asdict())


def decode_move(value: bytes) -> str:
    """Return the host that an address is moved to; "" if the value names none."""
    return _text(_object(value), "host")


def _object(value: bytes) -> dict[str, object]:
    if len(value) > _BYTES_MAX:
        return {}
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(found: dict[str, object], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _time(found: dict[str, object], key: str) -> float:
    value = found.get(key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e12 else 0.0  # type: ignore[operator,arg-type]
