"""A shared address in one JSON value: the keys of a rule, `hosts` and `failback`. Pure."""

from __future__ import annotations

from ndxdp.config.etcd_tables import parse_name
from ndxdp.config.json_table import JsonDocument
from ndxdp.config.rule_value import KindReader, read_value
from ndxdp.config.toml_table import Table
from ndxdp.fleet.shared_address import SharedAddress
from ndxdp.ndp.profile import Answer
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import SHARED_ORIGIN

_EXAMPLE = '"hosts": ["node7", "node8"]'


class SharedValueReader(KindReader[SharedAddress]):
    """A reader of the values of one segment's shared addresses."""

    def __init__(self, segment: str) -> None:
        """Have read nothing yet.

        Args:
            segment: The segment. The rules are counted under its name, unless a value says
                `"count": false`.
        """
        super().__init__()
        self._segment = segment

    def read_document(self, document: JsonDocument) -> SharedAddress:
        """Return what a value says; raise UsageError if it is wrong."""
        table = document.root
        found = read_value(table, SHARED_ORIGIN, self._segment)
        if found is not None and found.rule.answer is Answer.NEVER:
            table.complain(
                "no host would answer for this shared address",
                'remove answer = "never", or delete the key',
                "answer",
            )
        hosts = _hosts(table)
        failback = table.boolean("failback", False)
        document.finish()
        assert found is not None
        return SharedAddress(*found, hosts, failback)

    def with_prefix(self, found: SharedAddress, prefix: Prefix) -> SharedAddress:
        """Return the same with another prefix."""
        return found._replace(prefix=prefix)


def _hosts(table: Table) -> tuple[str, ...]:
    """Return the hosts that may answer, the first choice first; () for any host."""
    if table.is_empty("hosts"):
        table.complain(
            "this names no host", f"write it as in {_EXAMPLE}, or remove hosts for any", "hosts"
        )
    found: dict[str, int] = {}
    for number, host in table.parsed_all("hosts", lambda text: parse_name(text, "host")):
        if host in found:
            table.complain(f"{host} is given twice", "name each host once", "hosts", number)
        found.setdefault(host, number)
    return tuple(found)
