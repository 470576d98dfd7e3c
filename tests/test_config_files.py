"""Configuration files on disk: lists, the page, random damage, and files that run."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ndxdp.config import reader
from ndxdp.config.reader import load, parse
from ndxdp.errors import UsageError
from ndxdp.ndp.profile import Answer, Profile
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.rule import UNCOUNTED, Rule, RuleClass
from tests.fixtures.configured import EXAMPLE, HEAD, PAGE, PREFIX, WITH, P, fenced, refused

NDXDP = str(Path(sys.executable).with_name("ndxdp"))

# ---- files ---------------------------------------------------------------------------------------


def written(directory: Path, text: str | bytes, name: str = "ndxdp.toml") -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def said_of(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.hint
    return caught.value.message


def test_load(tmp_path: Path) -> None:
    assert load(written(tmp_path, HEAD)) == parse(HEAD, "ndxdp.toml")
    assert load(str(written(tmp_path, b"\xef\xbb\xbf" + HEAD.encode()))) == load(
        tmp_path / "ndxdp.toml"
    )


def test_a_file_that_cannot_be_loaded(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert said_of(missing) == f"there is no file {missing}"
    assert said_of(tmp_path) == f"{tmp_path} is not a regular file"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert said_of(pipe) == f"{pipe} is not a regular file"
    path = written(tmp_path, "a = 1\nb = '\xfc'\n".encode("latin-1"))
    assert said_of(path) == f"{path}:2: this is not UTF-8 text"
    below = path / "x"
    assert said_of(below) == f"cannot read {below}: Not a directory"
    long = tmp_path / ("x" * 300)
    assert said_of(long) == f"cannot read {long}: File name too long"
    assert "cannot read" in said_of(Path("a\0b"))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "cannot read" in said_of(loop)


LISTED = HEAD + '[[interface.prefix]]\nfile = "guests.txt"\n'


def test_a_list(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    written(tmp_path, "# guests\r\n2001:db8::1\r\n\n2001:db8::/64 # all\n", "lists/guests.txt")
    text = LISTED.replace("guests.txt", "lists/guests.txt") + "router = false"
    made = Rule(profile=Profile(router=False), origin="config", label="guests.txt")
    expected = {P("2001:db8::1"): made, P("2001:db8::/64"): made}
    assert load(written(tmp_path, text)).interfaces[0].rules == expected
    absolute = text.replace("lists/", f"{tmp_path}/lists/")
    assert parse(absolute, "elsewhere/x").interfaces[0].rules == expected
    never = load(written(tmp_path, LISTED.replace("guests", "lists/guests") + 'answer = "never"'))
    assert {rule.answer for rule in never.interfaces[0].rules.values()} == {Answer.NEVER}


def test_a_bad_list_is_named_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, LISTED)
    where = f"{path}:4: interface[0].prefix[0].file: "
    assert said_of(path) == f"{where}there is no file {tmp_path}/guests.txt"
    written(tmp_path, "2001:db8::1\n\n2001:db8::1/64\n", "guests.txt")
    assert (
        said_of(path) == f"{where}guests.txt:3: '2001:db8::1/64' has bits set behind the first 64"
    )
    written(tmp_path, "2001:db8::1\n2001:db8::2\n2001:db8::1", "guests.txt")
    assert said_of(path) == f"{where}guests.txt:3: 2001:db8::1 is given twice"
    written(tmp_path, "2001:db8::1\u2028\n\x0c\n::g", "guests.txt")
    assert said_of(path).startswith(f"{where}guests.txt:3: ")
    written(tmp_path, b"\n\xff", "guests.txt")
    assert said_of(path) == f"{where}{tmp_path}/guests.txt:2: this is not UTF-8 text"
    written(tmp_path, LISTED.replace("guests.txt", "."))
    assert said_of(path) == f"{where}{tmp_path} is not a regular file"
    written(tmp_path, LISTED.replace("guests.txt", "a\\u0000b"))
    assert said_of(path).startswith(f"{where}cannot read {tmp_path}/a\\x00b: ")


def test_the_same_prefix_by_way_of_a_list(tmp_path: Path) -> None:
    written(tmp_path, "2001:db8::1\n2001:db8::2\n", "guests.txt")
    path = written(tmp_path, LISTED + '[[interface.prefix]]\nfile = "guests.txt"\n')
    where = f"{path}:6: interface[0].prefix[1]"
    assert said_of(path) == f"{where}.file: 2001:db8::1 is given twice, and 1 more are"
    path = written(tmp_path, LISTED + '[[interface.prefix]]\nprefix = "2001:db8::2"\n')
    assert said_of(path) == f"{where}.prefix: 2001:db8::2 is given twice"
    with pytest.raises(UsageError) as caught:
        load(path)
    assert caught.value.hint == "line 4 has it first: name every prefix once"


# ---- the page ------------------------------------------------------------------------------------


def check(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [NDXDP, "check", *words]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=30)


def test_the_page_shows_the_output_of_check(tmp_path: Path) -> None:
    written(tmp_path, EXAMPLE)
    done = check(tmp_path, "-c", "ndxdp.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == fenced("text")[0]


def test_check_refuses(tmp_path: Path) -> None:
    text = "\n" * 10 + '[[interface]]\nname = "eth0"\n' + PREFIX
    text = text.replace("\n\n", "\n", 1) + PREFIX.replace("/64", "/65") + 'answer = "sometimes"\n'
    text += "\n[interface.limit]\nburst = 5\n"
    written(tmp_path, text)
    done = check(tmp_path, "-c", "ndxdp.toml")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    shape = [re.sub(r":\d+:", ":N:", line) for line in fenced("text")[-1].splitlines()]
    assert [re.sub(r":\d+:", ":N:", line) for line in lines] == shape
    done = check(tmp_path, "-c", "missing.toml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ndxdp: there is no file missing.toml\n  hint: ")


def test_check_loads_nothing_of_the_kernel(tmp_path: Path) -> None:
    written(tmp_path, HEAD)
    script = (
        "import atexit, sys, ndxdp.cli.main\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "sys.argv[1:] = ['check', '-c', 'ndxdp.toml']\n"
        "ndxdp.cli.main.main()"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert "ndxdp.config.reader" in loaded
    constants = {"ndxdp.kernel", "ndxdp.kernel.abi"}  # the limits of the maps
    assert not {name for name in loaded if name.startswith("ndxdp.kernel")} - constants


def test_the_page_has_every_key() -> None:
    """Document every key of a table, and no other, in the page's table of that name."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    page: dict[str, set[str]] = {}
    for section in sections:
        title, _, body = section.partition("\n")
        cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", body, re.MULTILINE)
        page[title] = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    tables = {"metrics", "docker", "etcd", "interface", "prefix", "share"}
    tables |= {"announce", "gateway", "addresses", "limit", "resolve"}
    for title, good in {
        "The file": "",
        "[metrics]": "",
        "[docker]": "",
        "[etcd]": 'endpoints = ["http://[::1]"]\nhost = "h1"\n',
        "[[interface]]": "",
        "[[interface.etcd]]": 'segment = "vlan7"\n',
        "[[interface.prefix]]": 'prefix = "2001:db8::/64"\n',
        "[[interface.docker]]": 'network = "web"\n',
        "[interface.announce]": "",
        "[interface.gateway]": "",
        "[interface.addresses]": "deprecate = []\n",
        "[interface.limit]": "",
        "[interface.resolve]": "",
        "[[share]]": 'upstream = "wan0"\ndownstream = ["lan0"]\n',
    }.items():
        header = "" if title in ("The file", "[[interface]]") else title
        unknown = f"{header}\n{good}zzzzzzzz = 1\n"
        text = HEAD + unknown if "interface" in title else unknown + HEAD
        if title == "[etcd]":  # both tables of etcd need each other
            text += '[[interface.etcd]]\nsegment = "vlan7"\n'
        elif title == "[[interface.etcd]]":
            text = f'[etcd]\nendpoints = ["http://[::1]"]\nhost = "h1"\n{text}'
        error = refused(text)
        known = error.hint.removeprefix("the keys are ").split(", ")
        assert set(known) - tables == page.pop(title) - tables, title
    assert not any(page.values())


# ---- random damage -------------------------------------------------------------------------------


SHARES = """
[[share]]
upstream = "wan0"
downstream = ["lan0", "br-*", "wg[0-9]"]
prefixes = ["2001:db8::/64", "fd00::/64"]
max_hosts = 10
max_hosts_per_mac = 5

[[share]]
upstream = "wan1"
downstream = ["lan1"]
prefixes = "advertised"
router_advertisements = "off"
expire = 60
"""


@pytest.mark.parametrize("seed", range(8))
def test_damage_raises_usage_errors_only(seed: int) -> None:
    """Accept a randomly damaged example, or refuse it with a message and a line."""
    rng = random.Random(seed)
    example = EXAMPLE + SHARES
    rows = example.splitlines()
    values = re.findall(r"= ([^#\n]+?) *(?:#.*)?$", example, re.MULTILINE)
    values += ["-1", "1e400", "nan", "[]", "{}", "''", "true", "2024-01-01", "[[]]", '"\\u0000"']
    bits = [*"[]{}\"'=.,#\\\n \0\r\x1b", "[[", '"""', "\ud800", "é", "\u2028", "0x", "9" * 30]
    taken = 0
    for _ in range(400):
        damaged = list(rows)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(damaged))
            row = damaged[at]
            kind = rng.randrange(6)
            if kind == 0:
                del damaged[at]
            elif kind == 1:
                damaged.insert(at, rng.choice(rows))
            elif kind == 2 and "=" in row:
                damaged[at] = row.partition("=")[0] + "= " + rng.choice(values)
            elif kind == 3:
                place = rng.randrange(len(row) + 1)
                damaged[at] = row[:place] + rng.choice(bits) + row[place:]
            elif kind == 4 and row:
                place = rng.randrange(len(row))
                damaged[at] = row[:place] + row[place + 1 :]
            else:
                other = rng.randrange(len(damaged))
                damaged[at], damaged[other] = damaged[other], damaged[at]
        text = "\n".join(damaged)
        try:
            parse(text, "ndxdp.toml")
            taken += 1
            continue
        except UsageError as error:
            caught = error
        lines = text.count("\n") + 1
        assert caught.hint.isprintable()
        for sentence in (caught.message, *caught.also):
            assert sentence.isprintable()
            found = re.match(r"ndxdp\.toml:(\d+): ", sentence)
            assert found or sentence.startswith("and "), sentence
            assert found is None or 1 <= int(found[1]) <= lines
    assert 10 < taken < 390


# ---- valid files can be run ----------------------------------------------------------------------


def prefixes(count: int) -> str:
    return "".join(f"{WITH}'2001:db8:{number:x}::/64'\n" for number in range(count))


def test_no_more_rule_classes_than_the_maps_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse more rule classes than the maps hold; holes take two, each container selector one."""
    monkeypatch.setattr(reader, "MAX_RULE_CLASSES", 1024)
    assert len(parse(HEAD + prefixes(1022), "ndxdp.toml").interfaces[0].rules) == 1022
    networks = "".join(f"[[interface.docker]]\nnetwork = 'a{i}'\n" for i in range(2))
    parse(HEAD + prefixes(1020) + networks, "ndxdp.toml")
    for text, limit in ((prefixes(1023), 1022), (prefixes(1021) + networks, 1020)):
        error = refused(HEAD + text)
        expected = f"{limit + 1} rule classes are more than the limit of {limit}"
        assert error.message == f"ndxdp.toml:1: interface[0]: {expected}"
        assert "in one file" in error.hint


def test_prefixes_that_are_not_counted_share_a_rule_class() -> None:
    uncounted = "".join(
        f"{WITH}'2001:db8:{number:x}::/64'\ncount = false\n" for number in range(3000)
    )
    networks = "".join(
        f"[[interface.docker]]\nnetwork = 'a{number}'\ncount = false\n" for number in range(2000)
    )
    (interface,) = parse(HEAD + uncounted + networks, "ndxdp.toml").interfaces
    assert len(interface.rules) == 3000
    assert {rule.label for rule in interface.rules.distinct_rules} == {UNCOUNTED}
    assert {selector.rule.label for selector in interface.docker} == {UNCOUNTED}
    # Rules that answer in another way are another class.
    other = f"{WITH}'2001:db8:ffff::/64'\nrouter = false\ncount = false\n"
    (interface,) = parse(HEAD + uncounted + other, "ndxdp.toml").interfaces
    assert len(set(map(RuleClass.of, interface.rules.distinct_rules))) == 2


def test_a_list_is_one_rule_class(tmp_path: Path) -> None:
    rows = [f"2001:db8:{number:x}::/64" for number in range(5000)]
    written(tmp_path, "\n".join(rows), "list")
    file = written(tmp_path, HEAD + "[[interface.prefix]]\nfile = 'list'\n")
    assert len(load(file).interfaces[0].rules) == 5000


def test_no_more_addresses_than_there_is_room_for(tmp_path: Path) -> None:
    rows = [f"2001:db8::{number:x}" for number in range(11)]
    written(tmp_path, "\n".join(rows), "list")
    listed = "[[interface.prefix]]\nfile = 'list'\n"
    load(written(tmp_path, f"{HEAD}max_addresses = 11\n{listed}"))
    file = written(tmp_path, f"{HEAD}max_addresses = 10\n{listed}")
    assert "11 addresses are more than the limit of 10" in said_of(file)


@pytest.mark.parametrize(
    "name",
    ["tap*", "eth?", "eth[01]", "*", "[]a]*", "[!]a]*", "tap[!0-9]" + "*" * 20, "a" * 15 + "*"],
)
def test_a_name_may_be_a_pattern(name: str) -> None:
    (found,) = parse(f'[[interface]]\nname = "{name}"', "ndxdp.toml").interfaces
    assert found.name == name
    with pytest.raises(
        UsageError, match="is a pattern, but this must be the name of one interface"
    ):
        check_interface(name)


def test_a_name_without_an_end() -> None:
    assert "no interface name" in refused('[[interface]]\nname = "up0\\u0000x"').message


def test_an_alternative_name_may_be_long() -> None:
    assert parse(f'[[interface]]\nname = "{"x" * 127}"', "ndxdp.toml")
