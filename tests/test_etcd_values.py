"""Values and keys of etcd, [etcd] and [[interface.etcd]] of the file: without etcd."""

from __future__ import annotations

import base64
import calendar
import json
from pathlib import Path

import pytest

from ndxdp.config import reader
from ndxdp.config.rule_value import ValueReader
from ndxdp.daemon.etcd_table import SegmentTable
from ndxdp.daemon.segment_rules import union
from ndxdp.errors import UsageError
from ndxdp.rules.rule import UNCOUNTED
from ndxdp.sources.certificate import expiry_of, not_after
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from tests.fixtures import etcd
from tests.fixtures.network import UPLINK, ndxdp

# ---- a value says what [[interface.prefix]] says -------------------------------------------------

SAME: list[dict[str, object]] = [
    {},
    {"answer": "always"},
    {"answer": "local"},
    {"answer": "routed", "dev": ["docker0", "br-*"]},
    {"answer": "neighbour", "via": ["tap*"]},
    {"answer": "never"},
    {"source": "link-local", "router": False, "override": True, "dad": "ignore"},
    {"source": "2001:db8::7", "lladdr": "02:00:00:00:00:07"},
    {"count": False},
    {"force": True},
]


@pytest.mark.parametrize("keys", SAME, ids=json.dumps)
@pytest.mark.parametrize("prefix", ["2001:db8::/64", "2001:db8::5"])
def test_a_value_is_the_rule_of_the_same_table(keys: dict[str, object], prefix: str) -> None:
    given = {"prefix": prefix, **keys}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())
    text = f'[[interface]]\nname = "eth0"\n[[interface.prefix]]\n{lines}'
    (interface,) = reader.parse(text, "file").interfaces
    ((of_file, rule),) = interface.rules.items()
    found = ValueReader("vlan7").read(json.dumps(given).encode())
    assert found.prefix == of_file
    assert found.rule.effect == rule.effect
    assert (found.rule.origin, rule.origin) == ("etcd", "config")
    counted = keys.get("count", True)
    assert (found.rule.label == UNCOUNTED) == (rule.label == UNCOUNTED) == (not counted)
    assert found.rule.label == ("vlan7" if counted else UNCOUNTED)
    assert found.force == (given.get("force") is True)


WRONG: dict[bytes, str] = {
    b"": "not JSON",
    b"{": "not JSON",
    b"null": "null, not a JSON object",
    b"7": "an integer, not a JSON object",
    b'"2001:db8::/64"': "a string, not a JSON object",
    b'["2001:db8::/64"]': "an array, not a JSON object",
    b"{}": "prefix: this key is missing",
    b'{"prefix": null}': '"prefix" is null',
    b'{"prefix": 7}': "prefix: an integer, not a string",
    b'{"prefix": ["2001:db8::/64"]}': "prefix: an array, not a string",
    b'{"prefix": "192.0.2.0/24"}': "prefix",
    b'{"prefix": "2001:db8::1/64"}': "has bits set",
    b'{"prefix": "ff02::1"}': "multicast",
    b'{"prefix": "::1"}': "no router solicits",
    b'{"prefix": "::/0"}': "nearly every address",
    b'{"prefix": "fe80::/10"}': "link-local",
    b'{"prefix": "2001:db8::1", "prefix": "2001:db8::2"}': 'the key "prefix" twice',
    b'{"prefix": "2001:db8::1", "file": "/etc/passwd"}': "file: the value has no such key",
    b'{"prefix": "2001:db8::1", "hosts": ["a"]}': "hosts: the value has no such key",
    b'{"prefix": "2001:db8::1", "answer": "maybe"}': "'maybe' is not one of",
    b'{"prefix": "2001:db8::1", "answer": true}': "answer: a boolean, not a string",
    b'{"prefix": "2001:db8::1", "dev": ["br0"]}': "dev: this key selects routes",
    b'{"prefix": "2001:db8::1", "answer": "routed", "dev": [7]}': "dev[0]: an integer",
    b'{"prefix": "2001:db8::1", "answer": "never", "router": true}': "has no effect",
    b'{"prefix": "2001:db8::1", "lladdr": "x"}': "lladdr",
    b'{"prefix": "2001:db8::1", "router": 1}': "router: an integer, not true or false",
    b'{"prefix": "2001:db8::1", "router": NaN}': "NaN is not JSON",
    b'{"prefix": "2001:db8::1", "x": ' + b"1" * 5000 + b"}": "digits",
    b'{"x": ' + b"[" * 8000: "nested too deeply",
    b"{" + b" " * 20_000 + b"}": "20002 bytes",
    b'{"prefix": "\xff"}': "not UTF-8",
    b'{"prefix": "2001:db8::1", "\\u001b[1m": 1}': "no such key",
}


@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value[:50]))
def test_a_wrong_value(value: bytes) -> None:
    read = ValueReader("vlan7")
    for _ in range(2):  # the second time after a good one
        with pytest.raises(UsageError) as raised:
            read.read(value)
        assert WRONG[value] in raised.value.message
        assert raised.value.message.isprintable()
        assert raised.value.hint or raised.value.also
        read.read(b'{"prefix": "2001:db8::9"}')


def test_rules_of_one_kind_are_one_object() -> None:
    read = ValueReader("vlan7")
    one = read.read(b'{"prefix": "2001:db8::1", "router": false}').rule
    assert read.read(b'{"router": false, "prefix": "2001:db8::2"}').rule is one
    assert read.read(b'{"prefix": "2001:db8::2"}').rule is not one


# ---- the keys of a segment -----------------------------------------------------------------------


class Keys:
    """The keys of a segment, written and compared by short texts."""

    def __init__(self) -> None:
        self.table = SegmentTable("vlan7")
        self._revision = 0

    def put(self, name: str, number: int, *, created: int = 0, **more: object) -> None:
        self._revision += 1
        value = json.dumps({"prefix": f"2001:db8::{number:x}", **more}).encode()
        self.table.put(name, value, created or self._revision)

    def rules(self) -> dict[str, str]:
        self.table.commit()
        return {str(prefix): rule.answer.name for prefix, rule in self.table.rules.items()}


def test_the_older_of_two_keys_with_one_prefix_wins() -> None:
    keys = Keys()
    keys.put("b", 1)
    keys.put("a", 1, answer="never")
    keys.put("c", 1, answer="routed")
    assert keys.rules() == {"2001:db8::1": "ALWAYS"}
    assert keys.table.refused == dict.fromkeys("ac", "b has 2001:db8::1 already")
    assert len(keys.table) == 3
    keys.table.delete("b")
    assert keys.rules() == {"2001:db8::1": "NEVER"}
    assert keys.table.refused == {"c": "a has 2001:db8::1 already"}
    keys.put("a", 2, created=2)
    assert keys.rules() == {"2001:db8::1": "ROUTED", "2001:db8::2": "ALWAYS"}
    assert not keys.table.refused
    keys.table.delete("a")
    keys.table.delete("c")
    keys.table.delete("never there")
    assert keys.rules() == {}
    assert len(keys.table) == 0


def test_the_order_of_keys_does_not_matter() -> None:
    """A page has keys in the order of their names; the older one wins all the same."""
    keys = Keys()
    keys.put("a", 1, created=9, answer="never")
    keys.put("b", 1, created=3)
    assert keys.rules() == {"2001:db8::1": "ALWAYS"}
    assert set(keys.table.refused) == {"a"}
    keys.put("b", 1, created=3, answer="routed")
    assert keys.rules() == {"2001:db8::1": "ROUTED"}
    assert set(keys.table.refused) == {"a"}


def test_a_value_that_becomes_wrong_loses_its_rule() -> None:
    keys = Keys()
    keys.put("a", 1)
    assert keys.rules() == {"2001:db8::1": "ALWAYS"}
    keys.put("a", 1, answer="x")
    assert keys.rules() == {}
    assert len(keys.table) == 1
    keys.put("a", 1)
    assert keys.rules() == {"2001:db8::1": "ALWAYS"}


def test_commit_tells_whether_rules_have_changed() -> None:
    keys = Keys()
    keys.put("a", 1)
    assert keys.table.commit()
    keys.put("a", 1)
    assert not keys.table.commit()
    keys.put("a", 1, force=True)
    assert keys.table.commit()
    assert set(map(str, keys.table.forced)) == {"2001:db8::1"}
    keys.table.delete("a")
    assert keys.table.commit()
    assert not keys.table.forced


def test_the_first_segment_of_an_interface_wins() -> None:
    one, two = Keys(), Keys()
    one.put("a", 1, answer="never")
    two.put("a", 1, force=True)
    two.put("b", 2, force=True)
    one.rules(), two.rules()
    rules, forced = union((each.table.rules, each.table.forced) for each in (one, two))
    assert {str(prefix): rule.answer.name for prefix, rule in rules.items()} == {
        "2001:db8::1": "NEVER",
        "2001:db8::2": "ALWAYS",
    }
    assert set(map(str, forced)) == {"2001:db8::2"}


# ---- the file ------------------------------------------------------------------------------------

INTERFACE = '[[interface]]\nname = "eth0"\n[[interface.etcd]]\nsegment = "vlan7"\n'


def test_etcd_of_the_file(tmp_path: Path) -> None:
    text = """[etcd]
    endpoints = ["https://10.0.0.11:2379", "https://[2001:db8::1]", "http://etcd.example:1"]
    prefix = "/ndxdp/prod"
    host = "node7"
    ca = "ca.pem"
    certificate = "/etc/c.pem"
    key = "/etc/c.key"
    user = "ndxdp"
    password_file = "password"
    lease = 30
    """
    found = reader.parse(text + INTERFACE, str(tmp_path / "ndxdp.toml"))
    assert found.etcd == Etcd(
        (
            Endpoint("10.0.0.11", 2379, True),
            Endpoint("2001:db8::1", 2379, True),
            Endpoint("etcd.example", 1, False),
        ),
        "node7",
        "/ndxdp/prod",
        str(tmp_path / "ca.pem"),
        "/etc/c.pem",
        "/etc/c.key",
        "ndxdp",
        str(tmp_path / "password"),
        30,
    )
    assert found.etcd.directory == "/ndxdp/prod/v1/hosts/node7/"
    assert str(found.etcd.endpoints[1]) == "https://[2001:db8::1]:2379"
    assert found.interfaces[0].segments == ("vlan7",)


@pytest.mark.parametrize(("line", "lease"), [("", 5), ("lease = 2\n", 2), ("lease = 300\n", 300)])
def test_the_lease_of_the_file(line: str, lease: int) -> None:
    found = reader.parse(f"[etcd]\n{HTTP}{line}{INTERFACE}", "file")
    assert found.etcd
    assert found.etcd.lease == lease


HTTP, HTTPS = 'endpoints = ["http://[::1]"]\n', 'endpoints = ["https://[::1]"]\n'
BAD = {
    "no table": ("", "[[interface.etcd]] needs the table [etcd]"),
    "no endpoints": ("[etcd]\n", "etcd.endpoints: this key is missing"),
    "none": ("[etcd]\nendpoints = []\n", "names no endpoint"),
    "twice": ('[etcd]\nendpoints = ["http://[::1]", "http://[::1]:2379"]\n', "given twice"),
    "no url": ('[etcd]\nendpoints = ["10.0.0.1:2379"]\n', "not the URL of a member"),
    "a path": ('[etcd]\nendpoints = ["http://[::1]/v3"]\n', "not the URL of a member"),
    "port": ('[etcd]\nendpoints = ["http://[::1]:70000"]\n', "has no port from 1"),
    "no address": ('[etcd]\nendpoints = ["http://[1::2::3]"]\n', "is not an IPv6 address"),
    "unknown": (f"[etcd]\n{HTTP}leases = 5\n", "[etcd] has no such key"),
    "short": (f"[etcd]\n{HTTP}lease = 1\n", "etcd.lease: 1 is out of range"),
    "long": (f"[etcd]\n{HTTP}lease = 301\n", "etcd.lease: 301 is out of range"),
    "fraction": (f"[etcd]\n{HTTP}lease = 2.5\n", "etcd.lease: a number, not an integer"),
    "text": (f'[etcd]\n{HTTP}lease = "5s"\n', "etcd.lease: a string, not an integer"),
    "prefix": (f'[etcd]\n{HTTP}prefix = "ndxdp"\n', "not the beginning of keys"),
    "prefix 2": (f'[etcd]\n{HTTP}prefix = "/a//b"\n', "not the beginning of keys"),
    "host": (f'[etcd]\n{HTTP}host = "a/b"\n', "not the name of a host"),
    "plain tls": (f'[etcd]\n{HTTP}ca = "x"\n', "has no effect: no endpoint"),
    "key": (f'[etcd]\n{HTTPS}key = "x"\n', "a key without a certificate"),
    "user": (f'[etcd]\n{HTTP}user = "x"\n', "user needs password_file"),
    "password": (f'[etcd]\n{HTTP}password_file = "x"\n', "password_file needs user"),
    "no user": (f'[etcd]\n{HTTP}user = ""\npassword_file = "x"\n', "the user has no name"),
    "no path": (f'[etcd]\n{HTTPS}ca = ""\n', "not the path of a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_table(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(UsageError) as raised:
        reader.parse(text + INTERFACE, "file")
    assert any(message in each for each in (raised.value.message, *raised.value.also))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("[[interface.etcd]]\n", "interface[0].etcd[1].segment: this key is missing"),
        ('[[interface.etcd]]\nsegment = "vlan7"\n', "vlan7 is given twice"),
        ('[[interface.etcd]]\nsegment = "a/b"\n', "not the name of a segment"),
        (f'[[interface.etcd]]\nsegment = "{"x" * 48}"\n', "not the name of a segment"),
    ],
)
def test_a_wrong_segment(lines: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        reader.parse(f"[etcd]\n{HTTP}{INTERFACE}{lines}", "file")
    assert message in raised.value.message


def test_a_table_that_no_interface_uses() -> None:
    with pytest.raises(UsageError, match="no interface has rules in etcd"):
        reader.parse(f'[etcd]\n{HTTP}[[interface]]\nname = "eth0"\n', "file")


# ---- check ---------------------------------------------------------------------------------------


def test_check_examines_the_files(privacy: None, tmp_path: Path) -> None:
    files, other = etcd.certificates(tmp_path / "a"), etcd.certificates(tmp_path / "b")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "password").write_text("secret\n")
    file = tmp_path / "ndxdp.toml"

    def checked(*lines: str, url: str = "https://127.0.0.1:1") -> str:
        text = "".join(f"{line}\n" for line in lines)
        file.write_text(
            f'[etcd]\nendpoints = ["{url}"]\nhost = "h1"\n{text}'
            f'[[interface]]\nname = "{UPLINK}"\n[[interface.etcd]]\nsegment = "vlan7"\n'
        )
        done = ndxdp("check", str(file))
        assert done.code == 0, done
        return done.err + done.out

    ca, client = f'ca = "{files.ca}"', f'certificate = "{files.client}"'
    good = checked(ca, client, f'key = "{files.client_key}"')
    assert "good\n" in good
    assert "etcd: vlan7" in good
    assert "etcd  https://127.0.0.1:1; keys of /ndxdp/v1/hosts/h1/; lease 5 s" in good
    assert "; lease 60 s" in checked(ca, "lease = 60")
    assert "does not belong to the certificate" in checked(client, f'key = "{other.client_key}"')
    assert "cannot do all of it here" in checked(client, f'key = "{other.client_key}"')
    assert "No such file" in checked('ca = "/nowhere"')
    assert "has no certificate in PEM" in checked(f'ca = "{files.client_key}"')
    assert "have no certificate and private key" in checked(f'certificate = "{tmp_path}/empty"')
    assert "first line is empty" in checked('user = "u"', 'password_file = "empty"')
    assert "cannot read" in checked('user = "u"', 'password_file = "none"')
    plain = checked('user = "u"', 'password_file = "password"', url="http://127.0.0.1:1")
    assert "sent without encryption" in plain
    assert "secret" not in plain


def test_when_a_certificate_expires(privacy: None, tmp_path: Path) -> None:
    files = etcd.certificates(tmp_path / "a", days=3)
    begun = expiry_of(str(files.server)) - 3 * 86400
    assert abs(begun - files.server.stat().st_mtime) < 60
    with pytest.raises(UsageError, match="has no certificate"):
        expiry_of(str(files.client_key))
    with pytest.raises(UsageError, match="cannot read"):
        expiry_of(str(tmp_path / "none"))
    pem = files.server.read_text().partition("-----BEGIN CERTIFICATE-----")[2]
    der = base64.b64decode(pem.partition("-----END")[0])
    for size in range(len(der)):
        with pytest.raises((ValueError, IndexError)):
            not_after(der[:size])


def test_times_of_certificates() -> None:
    def der(tag: int, text: bytes) -> bytes:
        def element(tag: int, content: bytes) -> bytes:
            return bytes([tag, len(content)]) + content

        validity = element(0x30, element(0x17, b"250101000000Z") + element(tag, text))
        tbs = element(2, b"\1") + element(0x30, b"") + element(0x30, b"") + validity
        return element(0x30, element(0x30, tbs))

    assert not_after(der(0x17, b"491231235959Z")) == calendar.timegm((2049, 12, 31, 23, 59, 59))
    assert not_after(der(0x17, b"500101000000Z")) == calendar.timegm((1950, 1, 1, 0, 0, 0))
    assert not_after(der(0x18, b"20500101000000Z")) == calendar.timegm((2050, 1, 1, 0, 0, 0))
