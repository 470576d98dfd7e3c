"""Reader of the configuration file: from TOML to the dataclasses of config/model.py, or an error.

The reader reads only the file and the lists that it names, and asks the kernel nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ndxdp.config.etcd_tables import read_etcd, read_segments
from ndxdp.config.model import (
    ANNOUNCEMENTS,
    DEADLINE,
    JOIN,
    Addresses,
    Announce,
    Config,
    Gateway,
    Interface,
    Limit,
    Metrics,
    Resolve,
)
from ndxdp.config.rule_tables import read_rules, read_selectors
from ndxdp.config.share_tables import read_shares
from ndxdp.config.text_file import read_text
from ndxdp.config.toml_table import Document, Table
from ndxdp.config.values import parse_interface, parse_listen, parse_preferred, parse_socket
from ndxdp.kernel.abi import MAX_ADDRESSES, MAX_RULE_CLASSES
from ndxdp.rules.address import parse_unicast
from ndxdp.rules.capacity import ADDRESSES_MAX, Capacity
from ndxdp.rules.prefix import AddressPattern, parse_pattern
from ndxdp.rules.rule import OWNED_LABELS
from ndxdp.rules.ruleset import Rules

LOG_LEVELS = ("error", "warning", "info", "debug")
LOG_FORMATS = ("text", "json")
MODES = ("auto", "native", "generic", "tc", "userspace")
LOADERS = ("prebuilt", "bcc")
ON_STOP = ("keep", "detach")

_DAY = 86400.0


def load(path: str | Path) -> Config:
    """Return the configuration of a file.

    Raises:
        UsageError: The file is wrong. The message names the file, and the line and key if possible.
    """
    return parse(read_text(Path(path)), str(path))


def parse(text: str, name: str) -> Config:
    """Return the configuration in a text.

    Args:
        text: The TOML text.
        name: The path of the file, for messages; lists are relative to its directory.

    Raises:
        UsageError: The text is wrong. The message is the first problem, `also` the others.
    """
    document = Document(text, name)
    config = _config(document.root, Path(name).parent)
    document.finish()
    return config


# ---- the file -----------------------------------------------------------------------------------


def _config(root: Table, directory: Path) -> Config:
    log_level = root.choice("log_level", LOG_LEVELS, "info")
    log_format = root.choice("log_format", LOG_FORMATS, "text")
    metrics = root.table("metrics")
    listen = replace(
        metrics.parsed("listen", parse_listen) or Metrics(),
        ipv6only=metrics.boolean("ipv6only", False),
        all_classes=metrics.boolean("all_classes", False),
    )
    socket_path = root.table("docker").parsed("socket", parse_socket)
    interfaces: list[Interface] = []
    places: dict[str, Table] = {}
    for table in root.tables("interface"):
        interface = _interface(table, directory)
        interfaces.append(interface)
        first = places.setdefault(interface.name, table) if interface.name else table
        if first is not table:
            table.complain(
                f"{interface.name} is configured twice",
                f"line {first.line('name')} has it first: put both into one table",
                "name",
            )
    shares = read_shares(root)
    etcd = read_etcd(root, directory, any(interface.segments for interface in interfaces))
    if not interfaces and not shares and "interface" not in root and "share" not in root:
        root.complain(
            "no interface is configured",
            "write [[interface]], and its name below; ndxdp init proposes a file for this host",
        )
    return Config(
        log_level,
        log_format,
        listen if metrics.given else None,
        socket_path or Config().docker_socket,
        tuple(interfaces),
        shares,
        etcd,
    )


def _interface(table: Table, directory: Path) -> Interface:
    table.require("name", 'name = "eth0"')
    name = table.parsed("name", parse_interface)
    mode = table.choice("mode", MODES, "auto")
    loader = table.choice("loader", LOADERS, "prebuilt")
    max_addresses = table.integer("max_addresses", 1, ADDRESSES_MAX)
    on_stop = table.choice("on_stop", ON_STOP, "keep")
    join = table.choice("join", JOIN, "auto")
    heartbeat = table.number("heartbeat_timeout", 1, _DAY, zero=True)
    paused = table.boolean("paused", False)
    if mode == "userspace":
        hint = "remove this key, or choose another mode"
        if loader == "bcc":
            table.complain("userspace mode loads no program", hint, "loader")
        if "on_stop" in table and on_stop == "keep":
            table.complain("userspace mode ends with the process", hint, "on_stop")
    rules, forced = read_rules(table, directory)
    selectors = read_selectors(table)
    # Each selector takes one rule class, and so does each kind of owned address. Selectors that are
    # not counted share one.
    of_selectors = {selector.rule for selector in selectors}
    groups = MAX_RULE_CLASSES - len(of_selectors) - len(OWNED_LABELS)
    lack = Capacity(max_addresses or MAX_ADDRESSES, rule_classes=groups).shortage(rules, Rules())
    if lack:
        error = lack.error(in_file=True)
        table.complain(error.message, error.hint)
    return Interface(
        name or "",
        mode,
        loader,
        max_addresses,
        on_stop,
        join,
        heartbeat or 0.0,
        rules,
        selectors,
        _announce(table.table("announce")),
        _gateway(table.table("gateway")),
        _addresses(table.table("addresses")),
        _limit(table.table("limit")),
        _resolve(table.table("resolve")),
        forced,
        paused,
        read_segments(table),
    )


# ---- tables of an interface ---------------------------------------------------------------------


def _announce(table: Table) -> Announce:
    all_three = table.given and not any(key in table for key in ANNOUNCEMENTS)
    # A key of another type than boolean counts as true: it has been complained about.
    gateway, probe, advertise = (
        table.boolean(key, all_three or key in table) for key in ANNOUNCEMENTS
    )
    if table.given and not (gateway or probe or advertise):
        table.complain(
            "this table announces nothing",
            "set solicit_gateway, probe or advertise to true, or remove the table",
        )
    default = Announce()
    interval = table.number("interval", 1, _DAY, zero=True)
    rate = table.number("rate", 1, 1_000_000)
    return Announce(
        gateway,
        probe,
        advertise,
        interval or 0.0,
        rate or default.rate,
        table.boolean("neighbours", False),
    )


def _gateway(table: Table) -> Gateway:
    return Gateway(
        table.boolean("keep", table.given),
        table.parsed("source", parse_unicast),
        table.number("interval", 1, 3600),
    )


def _addresses(table: Table) -> Addresses:
    preferred = _patterns(table, "preferred", table.parsed_some("preferred", parse_preferred))
    table.require("deprecate", 'deprecate = ["2001:db8::1"]')
    deprecate = _patterns(table, "deprecate", table.parsed_all("deprecate", parse_pattern))
    lengths = {pattern.length for pattern in preferred}
    for pattern, number in deprecate.items():
        around = (pattern.cut_to(length) for length in lengths)
        covering = next((each for each in around if each and each in preferred), None)
        if covering is None:
            continue
        if covering == pattern:
            hint = "deprecate a prefix that contains it: preferred exempts it from that"
        else:
            hint = f"preferred has {covering}, and a preferred address is never deprecated"
        message = f"{pattern} cannot be both preferred and deprecated"
        table.complain(message, hint, "deprecate", number)
    return Addresses(tuple(preferred), tuple(deprecate))


def _patterns(
    table: Table, key: str, found: list[tuple[int, AddressPattern]]
) -> dict[AddressPattern, int]:
    """Return each pattern of an array with its index; complain about duplicates."""
    patterns: dict[AddressPattern, int] = {}
    for number, pattern in found:
        if pattern in patterns:
            first = f"line {table.line(key, patterns[pattern])} has it first"
            table.complain(f"{pattern} is given twice", first, key, number)
        patterns.setdefault(pattern, number)
    return patterns


def _limit(table: Table) -> Limit:
    default = Limit()
    rate = table.number("rate", 1e-3, 1e9, zero=True)
    burst = table.integer("burst", 1, 1_000_000)
    if burst and (rate == 0 or "rate" not in table):
        table.complain("a burst without a rate limits nothing", "add a rate", "burst")
    together = table.number("interface_rate", 1e-3, 1e9, zero=True)
    gateway = table.number("gateway_rate", 1e-3, 1e9, zero=True)
    if gateway is not None and not rate and not together:
        table.complain(
            "a gateway_rate without another limit has no effect",
            "add rate or interface_rate",
            "gateway_rate",
        )
    return Limit(
        rate or default.rate,
        burst or default.burst,
        together or default.interface,
        default.gateway if gateway is None else gateway,
    )


def _resolve(table: Table) -> Resolve:
    default = Resolve()
    return Resolve(
        table.number("deadline", *DEADLINE) or default.deadline,
        table.number("rate", 1, 1_000_000) or default.rate,
        table.integer("burst", 1, 1_000_000) or default.burst,
        table.integer("pending", 1, 65536) or default.pending,
    )
