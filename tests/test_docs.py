"""Lists and figures in docs/ are those of the code: keys, defaults, ranges, choices, limits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from ndxdp.cli.main import cli
from ndxdp.cli.values import spec_of
from ndxdp.config.model import Config
from ndxdp.config.reader import parse
from ndxdp.daemon.spec import DaemonSpec, InterfaceSpec
from ndxdp.daemon.uplink_groups import AUTO_MAX
from ndxdp.doctor import examination
from ndxdp.errors import UsageError
from ndxdp.kernel import abi
from ndxdp.sockets.fanout import SOCKETS
from ndxdp.sockets.group_memberships import GROUPS_MAX
from ndxdp.store.directories import Trees
from ndxdp.upstream.announce import ADDRESSES_MAX
from tests.fixtures.network import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]


def text(page: str) -> str:
    return (DOCS / page).read_text()


# ---- keys of the configuration -------------------------------------------------------------------


class Key(NamedTuple):
    """A row of docs/configuration.md."""

    table: str
    name: str
    kind: str
    default: str
    more: str


def _rows() -> Iterator[Key]:
    for section in re.split(r"^## ", text("configuration.md"), flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        for line in re.findall(r"^\| `\w+`.*$", body, re.MULTILINE):
            names, kind, default, more = (
                cell.strip() for cell in re.split(r"(?<!\\) ?\|", line)[1:5]
            )
            for name in re.findall(r"`(\w+)`", names):
                # A row of [[interface.docker]] names keys of the table above.
                yield Key(title, name, *((kind, default) if kind else _of_prefix(name)), more)


def _of_prefix(name: str) -> tuple[str, str]:
    """Return type and default of a key of [[interface.prefix]]."""
    _, _, section = text("configuration.md").partition("\n## [[interface.prefix]]\n")
    section = section.partition("\n## ")[0]
    rows: list[tuple[str, str]] = re.findall(
        rf"^\| `{name}` \| (.*?) \| (.*?) \|", section, re.MULTILINE
    )
    (row,) = rows
    return row


KEYS = list(_rows())

# What a table needs besides the key.
COMPANIONS: dict[str | tuple[str, str], dict[str, str]] = {
    "[[interface.prefix]]": {"prefix": '"2001:db8::/64"'},
    "[[interface.docker]]": {"network": '"web"'},
    "[interface.addresses]": {"deprecate": "[]"},
    "[etcd]": {"endpoints": '["https://[::1]"]', "host": '"h1"'},
    ("[etcd]", "key"): {"certificate": '"etcd.pem"'},
    ("[etcd]", "user"): {"password_file": '"password"'},
    ("[etcd]", "password_file"): {"user": '"ndxdp"'},
    "[[interface.etcd]]": {"segment": '"vlan7"'},
    "[[share]]": {"upstream": '"wan0"', "downstream": '["lan0"]'},
    ("[[share]]", "max_hosts_per_mac"): {"max_hosts": "65536"},
    ("[[interface.prefix]]", "dev"): {"answer": '"routed"'},
    ("[[interface.prefix]]", "via"): {"answer": '"routed"'},
    ("[interface.limit]", "burst"): {"rate": "50"},
    ("[interface.limit]", "gateway_rate"): {"rate": "50"},
}


def file(table: str, name: str, value: str | None) -> str:
    """Return a configuration with one table, in which the key has the value, or is missing."""
    keys = COMPANIONS.get(table, {}) | COMPANIONS.get((table, name), {})
    if value is not None:
        keys[name] = value
    lines = "".join(f"{key} = {given}\n" for key, given in keys.items())
    interface = '[[interface]]\nname = "eth0"\n'
    if table == "[etcd]":
        interface += '[[interface.etcd]]\nsegment = "vlan7"\n'
    elif table == "[[interface.etcd]]":
        interface = f'[etcd]\nendpoints = ["https://[::1]"]\n{interface}'
    if table == "The file":
        return f"{lines}{interface}"
    if table == "[[interface]]":
        return f"{interface}{lines}"
    return (
        f"{interface}{table}\n{lines}" if "interface" in table else f"{table}\n{lines}{interface}"
    )


def config(key: Key, value: str | None) -> Config:
    return parse(file(key.table, key.name, value), "ndxdp.toml")


def ids(keys: list[Key]) -> list[str]:
    return [f"{key.table} {key.name}" for key in keys]


WITH_DEFAULT = [key for key in KEYS if key.default.startswith("`")]
WITH_RANGE = [key for key in KEYS if re.search(r"\d to \d", key.more)]


def test_the_rows_are_read() -> None:
    assert len(KEYS) > 45
    assert len(WITH_DEFAULT) > 20
    assert len(WITH_RANGE) > 9


@pytest.mark.parametrize("key", WITH_DEFAULT, ids=ids(WITH_DEFAULT))
def test_a_default_is_what_a_missing_key_means(key: Key) -> None:
    assert config(key, key.default.strip("`")) == config(key, None)


@pytest.mark.parametrize("key", WITH_RANGE, ids=ids(WITH_RANGE))
def test_a_range_is_what_the_reader_accepts(key: Key) -> None:
    (low, high), *_ = re.findall(r"([\d.]+) to (\d+)", key.more)
    for value in (low, high):
        config(key, value)
    beyond = (str(float(low) / 2 if key.kind == "number" else int(low) - 1), str(int(high) + 1))
    for value in beyond:
        if float(value) == 0:
            continue  # no limit, or an error of its own
        with pytest.raises(UsageError, match="is out of range"):
            config(key, value)


def choices(key: Key) -> list[str] | None:
    """Return the values that the reader's error names; None if the key is no choice."""
    try:
        config(key, '"zzz"')
    except UsageError as error:
        named = re.search(r"'zzz' is not one of (.*)", error.message)
        return named[1].split(", ") if named else None
    return None


CHOICES = [key for key in KEYS if key.kind == "string" and choices(key)]


def test_choices_are_read() -> None:
    names = {key.name for key in CHOICES}
    assert {
        "log_level",
        "log_format",
        "mode",
        "loader",
        "on_stop",
        "join",
        "answer",
        "dad",
        "router_advertisements",
    } <= names


@pytest.mark.parametrize("key", CHOICES, ids=ids(CHOICES))
def test_every_choice_is_named(key: Key) -> None:
    if key.more == "as above":
        return
    named = re.findall(r"`([\w-]+)`", f"{key.default} {key.more}".replace('"', ""))
    assert set(choices(key) or ()) <= set(named)


SAMPLES = [
    (
        "configuration.md",
        re.findall(r"^```toml\n(.*?)^```", text("configuration.md"), re.M | re.S)[1],
    ),
    ("ndxdp.toml", (REPOSITORY / "ndxdp/data/ndxdp.toml").read_text()),
]


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_comments_of_samples_list_all_choices(name: str, sample: str) -> None:
    """A comment that lists several choices of a key lists all of them, in the reader's order."""
    table, checked = "The file", 0
    for line in sample.splitlines():
        line = line.removeprefix("# ")
        if line.startswith("["):
            table = line.partition("#")[0].strip()
        found = re.match(r"(\w+) = .*?# (.*)", line)
        if found is None:
            continue
        keys = [key for key in CHOICES if (key.table, key.name) == (table, found[1])]
        for key in keys:
            listed = re.split(r", ", found[2].rpartition(": ")[2])
            if len(set(listed) & set(choices(key) or ())) > 1:
                checked += 1
                assert listed == choices(key), line
    assert checked >= (6 if name == "configuration.md" else 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_setting_in_a_sentence_is_accepted(page: Path) -> None:
    """`key = value` in a sentence names a key of the file, and a value that it accepts."""
    for name, value in re.findall(
        r'`(\w+) = ("[^"`]*"|true|false|[\d.]+|\[[^]`]*\])`', page.read_text()
    ):
        keys = [key for key in KEYS if key.name == name]
        assert keys, f"{page.name}: {name}"
        problems = []
        for key in keys:
            try:
                config(key, None if name == "name" else value)
            except UsageError as error:
                problems.append(error.message)
        assert len(problems) < len(keys), f"{page.name}: {name} = {value}: {problems}"


def _examples() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        blocks = re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for number, block in enumerate(blocks):
            if "[[interface]]" in block or "[[share]]" in block:
                yield f"{page.name} {number}", block


EXAMPLES = dict(_examples())


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_accepted(name: str) -> None:
    assert parse(EXAMPLES[name], name).with_shared()


# ---- what a reload changes -----------------------------------------------------------------------


def reloaded() -> dict[str, str]:
    """Return the cells of the table in docs/service.md: what is in the file, and its effect."""
    _, _, section = text("service.md").partition("\n## What a reload changes\n")
    section = section.partition("\n## ")[0]
    return dict(re.findall(r"^\| (.*?) \| (.*) \|$", section, re.MULTILINE))


def spec(given: Config) -> DaemonSpec:
    return DaemonSpec(
        [spec_of(each) for each in given.with_shared()],
        given.docker_socket,
        given.metrics,
        given.log_level,
        given.log_format,
        given.shares,
        given.etcd,
    )


# A second value of each key that has no other choice or number.
OTHER: dict[str | tuple[str, str], str] = {
    ("[etcd]", "prefix"): '"/elsewhere"',
    "endpoints": '["https://[::2]"]',
    "host": '"h2"',
    "ca": '"other.pem"',
    "certificate": '"other.pem"',
    "key": '"other.key"',
    "user": '"other"',
    "password_file": '"other"',
    "segment": '"vlan8"',
    "listen": '"[::1]:9999"',
    "socket": '"/run/podman/podman.sock"',
    "prefix": '"2001:db8:1::/64"',
    "max_addresses": "5",
    "source": '"2001:db8::5"',
    "lladdr": '"02:00:00:00:00:01"',
    "network": '"other"',
    "except_label": '"other"',
    "deprecate": '["2001:db8::1"]',
    "preferred": '"2001:db8::2"',
    "dev": '["docker0"]',
    "via": '["docker0"]',
    "upstream": '"wan1"',
    "downstream": '["lan1"]',
    "prefixes": '["2001:db8::/64"]',
    "expire": "70",
}


def test_the_reload_table_has_every_key() -> None:
    cells = reloaded()
    assert len(cells) > 6
    named = set(re.findall(r"`([^`]+)`", " ".join(cells)))
    tables = {key.table for key in KEYS} - {"The file", "[[interface]]"}
    own = {key.name for key in KEYS if key.table in ("The file", "[[interface]]")} - {"name"}
    assert named == tables | own | {"[[interface]]"}


def test_the_daemon_sees_each_changed_key() -> None:
    """A reload compares specifications, so each key must change one."""
    for key in KEYS:
        if key.name in {
            "network_label",
            "container_label",
            "within",
            "file",
            "via",
            "dev",
            "force",
            "user",
            "password_file",
        }:
            continue  # they exclude a companion, or are read together with one
        if key.name == "name":
            continue  # another interface
        others = [f'"{value}"' for value in choices(key) or ()]
        if key.kind == "boolean":
            others = ["true", "false"]
        elif key.kind in ("number", "integer"):
            others = ["7"]
        other = OTHER.get((key.table, key.name)) or OTHER.get(key.name)
        others = [other] if other else others
        before = spec(config(key, None))
        assert any(spec(config(key, other)) != before for other in others), key


# ---- limits --------------------------------------------------------------------------------------

LIMITS = {
    "exact addresses": abi.MAX_ADDRESSES,
    "prefixes": abi.MAX_PREFIXES,
    "rule classes": abi.MAX_RULE_CLASSES,
    "interfaces that `dev` names": abi.MAX_DEVS,
    "MACs that the rate limit remembers, and as many for `neighbour`": abi.MAX_SOLICITORS,
    "live neighbours on the interface that DAD is not defended against": abi.MAX_ON_LINK,
    "gateways": abi.MAX_GATEWAYS,
}


def test_the_limits_are_those_of_the_maps() -> None:
    table = text("rules.md").partition("| limit | kernel memory |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| ([^|]*) \| (\d+)", table, re.MULTILINE))
    assert {name: int(limit) for name, limit in rows.items()} == LIMITS
    assert f"in a flood {SOCKETS} queues" in table


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ("scale.md", f"{abi.MAX_RULE_CLASSES} [rule classes]"),
        (
            "scale.md",
            f'{AUTO_MAX} joined groups for each interface (`join = "auto"`), {GROUPS_MAX}',
        ),
        ("scale.md", f"| prefixes | {abi.MAX_PREFIXES} for each interface |"),
        ("scale.md", f"| MACs that the rate limit remembers | {abi.MAX_SOLICITORS};"),
        ("scale.md", f"| {abi.MAX_ON_LINK} for each interface |"),
        ("attaching.md", f"joins up to {AUTO_MAX} groups while"),
        ("attaching.md", f"joins up to {GROUPS_MAX} groups |"),
        ("attaching.md", f"`v{abi.VERSION}` is the version"),
        ("configuration.md", f"`auto`: up to {AUTO_MAX} groups"),
        ("configuration.md", f"unchanged; {abi.MAX_ADDRESSES} for a new table"),
        ("configuration.md", f"An interface has {abi.MAX_RULE_CLASSES} classes"),
        ("announcing.md", f"It remembers {ADDRESSES_MAX}\naddresses at most"),
        ("docker.md", f"more than {ADDRESSES_MAX} addresses"),
        ("monitoring.md", f"An\ninterface has {abi.MAX_RULE_CLASSES} classes at most"),
        ("install.md", f"(`/sys/fs/bpf/ndxdp/v{abi.VERSION}` is the present one)"),
    ],
)
def test_a_figure_is_that_of_the_code(page: str, sentence: str) -> None:
    assert sentence in text(page)


def test_the_pins_are_the_maps() -> None:
    (pins,) = re.findall(rf"/v{abi.VERSION}/eth0/{{([^}}]*)}}", text("attaching.md"))
    listed = re.sub(r"\s", "", pins).split(",")
    assert listed[-2:] == ["program", "link"]
    assert sorted(listed[:-2]) == sorted([*abi.MAPS, abi.TABLE.name])


# ---- commands ------------------------------------------------------------------------------------


def option(command: str, name: str) -> click.Option:
    found = cli
    for word in command.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]  # type: ignore[assignment]
    return next(
        each for each in found.params if isinstance(each, click.Option) and name in each.opts
    )


@pytest.mark.parametrize(
    ("command", "name", "sentence"),
    [
        ("reload", "--timeout", "after `--timeout` seconds ({:g})"),
        ("top", "--seconds", "during `--seconds` ({:g})"),
        ("top", "--rows", "`--rows` ({:g}) of\neach"),
        ("install-service", "-c", "the configuration, {} by default"),
        ("install-service", "--directory", "the directory of systemd's units, {} by default"),
        ("run", "--docker-socket", "is the socket of Docker or Podman, {} by default"),
    ],
)
def test_the_default_of_an_option_is_documented(command: str, name: str, sentence: str) -> None:
    assert sentence.format(option(command, name).default) in text("commands.md")


# ---- permissions and checks ----------------------------------------------------------------------


@pytest.mark.parametrize("page", ["service.md", "containers.md"])
def test_the_page_has_every_capability_of_the_unit(page: str) -> None:
    unit = (REPOSITORY / "ndxdp/data/ndxdp.service").read_text()
    (given,) = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    rows = re.findall(r"^\| (CAP_[\w, ]+) \|", text(page), re.MULTILINE)
    assert sorted(", ".join(rows).split(", ")) == sorted(given.split())


def test_the_checks_of_an_interface_without_a_mac(privacy: None) -> None:
    (listed,) = re.findall(
        r"doctor runs (.*?), and skips the checks", text("doctor.md").replace("\n", " ")
    )
    named = listed.replace("router advertisements in the firewall", "firewall")
    sections = examination.examine("lo", Trees(), "/none")
    ran = [check for check, _ in sections if check != "link"]
    assert re.split(r", | and ", named) == ran


def test_specifications_compare_all_fields() -> None:
    """A reload applies what differs, so no field may be left out of the comparison."""
    for kind in (InterfaceSpec, DaemonSpec):
        assert all(each.compare for each in dataclasses.fields(kind))


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["architecture.md", "development.md", "reliability.md"])
def test_files_and_functions_exist(page: str) -> None:
    """Pages for developers name files, from the root or below ndxdp/, and functions."""
    sources = [
        path
        for pattern in (
            "ndxdp/**/*.py",
            "bpf/*.[ch]",
            "tests/**/*.py",
            "lab/*.py",
            "benchmarks/*.py",
        )
        for path in REPOSITORY.glob(pattern)
    ]
    code = "\n".join(path.read_text() for path in sources)
    places = ("", "ndxdp", "bpf", "tests", "docs")
    for name in re.findall(r"`([\w./-]+\.(?:py|c|h))`", text(page)):
        assert any((REPOSITORY / place / name).is_file() for place in places), name
    for name in re.findall(r"`(\w+)\(\)`", text(page)):
        assert re.search(rf"\b{name}\b", code), name


def _commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ndxdp in code on a page."""
    whole = page.read_text()
    lines = [
        line.partition("  #")[0]
        for block in re.findall(r"^```(?:sh|text|console)\n(.*?)^```", whole, re.M | re.S)
        for line in block.splitlines()
    ]
    prose = re.sub(r"^```.*?^```", "", whole, flags=re.MULTILINE | re.DOTALL)
    lines += [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", prose)]
    for line in lines:
        found = re.match(r"(?:[$#] |  \$ )?(?:\S*/bin/)?ndxdp (?=[a-z-])(.*)", line)
        if found:
            yield re.split(r"\s+", found[1].rstrip("…").strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_shown_options(page: Path) -> None:
    for words in _commands(page):
        command: click.Command = cli
        while isinstance(command, click.Group):
            if words and words[0] in ("--bpffs", "--run-directory"):
                words = words[2:]
            if not words or words[0].startswith("-") or words[0] in ("…", "COMMAND"):
                break
            command = command.commands[words.pop(0).rstrip(",;")]
        known = {each for parameter in command.params for each in parameter.opts}
        known |= {each for parameter in command.params for each in parameter.secondary_opts}
        for word in words:
            if word.startswith("--") and len(word) > 2:
                option_name = re.split(r"[=|,;)]", word)[0]
                assert option_name in {*known, "--help", "--version"}, (page.name, words)
