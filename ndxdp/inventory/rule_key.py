"""Keys whose values are rules, as `ndxdp fleet` names them: below `PREFIX/v1/`. Pure."""

from __future__ import annotations

from typing import NamedTuple

from ndxdp.config.etcd_tables import parse_name
from ndxdp.errors import UsageError
from ndxdp.fleet.keys import DRAINED, HOLDERS, MEMBERS, MOVES, SHARED
from ndxdp.printable import printable

HOSTS = "hosts"

_NAME_MAX = 256  # bytes
_HINT = "write shared/SEGMENT/NAME or hosts/HOST/SEGMENT/NAME"
_OTHERS = {
    MEMBERS: "the daemons write it",
    HOLDERS: "the daemons write it; to move an address: ndxdp fleet move SEGMENT/NAME HOST",
    MOVES: "to move an address: ndxdp fleet move SEGMENT/NAME HOST",
    DRAINED: "to drain a host: ndxdp fleet drain HOST",
}


class RuleKey(NamedTuple):
    """The key of a rule of one host, or of a shared address.

    Attributes:
        host: The host; "" for a shared address.
        segment: The segment.
        name: The rest of the key.
    """

    host: str
    segment: str
    name: str

    @property
    def table(self) -> str:
        """The beginning of all keys that must not have the same prefix: `shared/SEGMENT/`."""
        return f"{HOSTS}/{self.host}/{self.segment}/" if self.host else f"{SHARED}/{self.segment}/"

    def __str__(self) -> str:
        return f"{self.table}{self.name}"


def split_rule_key(text: str) -> RuleKey:
    """Return the parts of a key that etcd has, valid or not; a missing part is ""."""
    kind, _, rest = text.partition("/")
    host, _, rest = rest.partition("/") if kind == HOSTS else ("", "", rest)
    segment, _, name = rest.partition("/")
    return RuleKey(host, segment, name)


def parse_rule_key(text: str, root: str = "") -> RuleKey:
    """Return the parts of a key.

    Args:
        text: The key below `PREFIX/v1/`, or the whole key.
        root: `PREFIX/v1/`.

    Raises:
        UsageError: The text is no such key.
    """
    below = text.removeprefix(root) if root else text
    kind, (host, segment, name) = below.partition("/")[0], split_rule_key(below)
    if kind not in (HOSTS, SHARED) or not segment or not name or (kind == HOSTS and not host):
        raise UsageError(f"'{text}' is not the key of a rule", _OTHERS.get(kind, _HINT))
    if host:
        parse_name(host, "host")
    parse_name(segment, "segment")
    if printable(name) != name or len(name.encode(errors="replace")) > _NAME_MAX:
        raise UsageError(
            f"the name in '{text}' is not usable",
            f"use up to {_NAME_MAX} bytes that can be printed",
        )
    return RuleKey(host, segment, name)


def parse_address_name(text: str) -> tuple[str, str]:
    """Return segment and name of a shared address, from `SEGMENT/NAME` or the key of it.

    Raises:
        UsageError: The text is neither.
    """
    segment, _, name = text.removeprefix(f"{SHARED}/").partition("/")
    if not segment or not name:
        raise UsageError(f"'{text}' is not the name of a shared address", "write SEGMENT/NAME")
    return parse_name(segment, "segment"), name
