"""`ndxdp fleet put`, `apply`, `delete`, `status` and `list` against real members of etcd."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ndxdp.cli.fleet_options import Connection
from ndxdp.errors import NdxdpError
from ndxdp.inventory import changes
from ndxdp.inventory.keyspace import Keyspace
from ndxdp.inventory.rule_key import RuleKey
from ndxdp.sources.etcd_client import run
from tests.fixtures.documented import json_of, shape
from tests.fixtures.etcd import Cluster
from tests.fixtures.fleet_commands import (
    MAIL,
    ROOT,
    URL,
    WEB,
    did,
    fleet,
    held,
    keys,
    members,
    put,
    refused,
    remove,
)
from tests.fixtures.network import Done, ndxdp

# ---- put, apply, delete --------------------------------------------------------------------------


def test_put_writes_what_the_options_say(member: Cluster) -> None:
    did("put", "shared/vlan7/web", WEB, "--host", "h1", "--host", "h2", "--failback")
    options = ("--answer", "routed", "--dev", "br-*", "--na-source", "link-local", "--no-router")
    more = ("--override", "--dad", "ignore", "--lladdr", "02:00:00:00:00:01", "--no-count")
    did("put", "hosts/h1/vlan7/guests", "2001:db8:1::/80", *options, *more)
    did("put", "hosts/h1/vlan7/a/b c", "2001:DB8:0::7", "--force")
    assert {key: json.loads(value) for key, value in keys(member).items()} == {
        "shared/vlan7/web": {"prefix": WEB, "hosts": ["h1", "h2"], "failback": True},
        "hosts/h1/vlan7/guests": {
            "prefix": "2001:db8:1::/80",
            "answer": "routed",
            "dev": ["br-*"],
            "source": "link-local",
            "router": False,
            "override": True,
            "dad": "ignore",
            "lladdr": "02:00:00:00:00:01",
            "count": False,
        },
        "hosts/h1/vlan7/a/b c": {"prefix": "2001:db8::7", "force": True},
    }


def test_the_same_again_changes_nothing(member: Cluster) -> None:
    did("put", "shared/vlan7/web", WEB)
    before = member.revision()
    did("put", "shared/vlan7/web", WEB)
    did("put", f"{ROOT}shared/vlan7/web", WEB)  # the whole key
    assert did("put", "shared/vlan7/web", WEB, "--dry-run") == "nothing would change\n"
    assert member.revision() == before
    assert did("put", "shared/vlan7/web", MAIL, "--dry-run").splitlines() == [
        f'- shared/vlan7/web  {{"prefix": "{WEB}"}}',
        f'+ shared/vlan7/web  {{"prefix": "{MAIL}"}}',
    ]
    assert member.revision() == before
    did("put", "shared/vlan7/web", MAIL)
    assert json.loads(keys(member)["shared/vlan7/web"]) == {"prefix": MAIL}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("web", WEB), "'web' is not the key of a rule"),
        (("shared/vlan7", WEB), "is not the key of a rule"),
        (("shared/vlan7/", WEB), "is not the key of a rule"),
        (("hosts//vlan7/a", WEB), "is not the key of a rule"),
        (("hosts/h1/vlan7", WEB), "is not the key of a rule"),
        (("shared/v\u00e4/a", WEB), "is not the name of a segment"),
        (("hosts/h 1/vlan7/a", WEB), "is not the name of a host"),
        (("shared/vlan7/a\tb", WEB), "is not usable"),
        (("shared/vlan7/" + 300 * "a", WEB), "is not usable"),
        (("members/vlan7/h1", WEB), "hint: the daemons write it"),
        (("moves/vlan7/web", WEB), "hint: to move an address: ndxdp fleet move"),
        (("drained/h1", WEB), "hint: to drain a host: ndxdp fleet drain"),
        (("shared/vlan7/a", "nonsense"), "'nonsense' is not an IPv6 address"),
        (("shared/vlan7/a", "::/0"), "--answer neighbour or routed"),
        (("shared/vlan7/a", WEB, "--dev", "eth0"), "--answer always does not ask for a route"),
        (("shared/vlan7/a", WEB, "--answer", "never"), "no host would answer"),
        (("shared/vlan7/a", WEB, "--host", "h1", "--host", "h1"), "h1 is given twice"),
        (("shared/vlan7/a", WEB, "--host", "h/1"), "is not the name of a host"),
        (("shared/vlan7/a", WEB, "--lladdr", "x"), "x"),
        (("hosts/h1/vlan7/a", WEB, "--host", "h1"), "--host is for shared addresses"),
        (("hosts/h1/vlan7/a", WEB, "--failback"), "--failback is for shared addresses"),
        (("shared/vlan7/a", WEB, "--dev", "a", "--via", "b"), "--dev and --via are the same"),
    ],
)
def test_put_refuses_what_the_daemons_would_refuse(
    privacy: None, words: tuple[str, ...], sentence: str
) -> None:
    """Refuse it before etcd is asked: no member runs here."""
    assert sentence in refused(2, "put", *words)


def test_put_refuses_the_prefix_of_another_key(member: Cluster) -> None:
    did("put", "shared/vlan7/web", WEB)
    did("put", "shared/other/web", WEB)
    did("put", "hosts/h1/vlan7/web", WEB)
    did("put", "hosts/h2/vlan7/web", WEB)
    before = keys(member)
    for key in ("shared/vlan7/it's", "hosts/h1/vlan7/x"):
        assert f"has {WEB} already" in refused(1, "put", key, WEB)
    assert "hint: delete that first: ndxdp fleet delete shared/vlan7/web" in refused(
        1, "put", "shared/vlan7/a", WEB
    )
    assert keys(member) == before
    put(
        member,
        **{"shared/vlan7/broken": "{", "shared/vlan7/odd": {"prefix": MAIL, "colour": "red"}},
    )
    did("put", "shared/vlan7/mail", MAIL)  # the daemons refuse the other one


def test_two_writers_of_one_prefix_do_not_both_win(member: Cluster) -> None:
    """Let two keys and one prefix race: exactly one is written, however it ends."""
    for number in range(5):
        prefix = f"2001:db8::{number}"
        found: list[Done] = []

        def write(key: str, prefix: str = prefix, found: list[Done] = found) -> None:
            found.append(fleet("put", key, prefix))

        threads = [
            threading.Thread(target=write, args=(f"shared/race/{each}{number}",)) for each in "ab"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(each.code for each in found) == [0, 1], found
    values = [json.loads(value)["prefix"] for value in keys(member, "shared/race/").values()]
    assert len(values) == len(set(values)) == 5


def test_writers_of_other_keys_do_no_harm(member: Cluster) -> None:
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            put(member, **{"shared/vlan7/busy": {"prefix": f"2001:db8:5::{number:x}"}})
            time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            did("put", f"shared/vlan7/n{number}", f"2001:db8::{number}")
    finally:
        ended.set()
        writer.join()
    assert len(keys(member, "shared/vlan7/n")) == 5


def test_apply_writes_a_file(member: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    wanted = {
        "shared/vlan7/web": {"prefix": WEB, "hosts": ["h1"]},
        "hosts/h1/vlan7/net": {"prefix": "2001:db8:1::/80", "answer": "routed"},
    }
    file.write_text(json.dumps(wanted))
    assert len(did("apply", str(file), "--dry-run").splitlines()) == 2
    assert keys(member) == {}
    did("apply", str(file))
    assert {key: json.loads(value) for key, value in keys(member).items()} == wanted
    listed = json.loads(did("list", "--json"))
    did("apply", "-", stdin=json.dumps({each["key"]: each["value"] for each in listed}))
    swapped = {"shared/vlan7/web": {"prefix": MAIL}, "shared/vlan7/mail": {"prefix": WEB}}
    did("apply", "-", stdin=json.dumps(swapped))  # a prefix moves to another key
    assert json.loads(keys(member)["shared/vlan7/mail"]) == {"prefix": WEB}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON"),
        ("[]", "stdin is an array, not a JSON object"),
        ("{}", "stdin has no key"),
        ('{"shared/a/b": 1}', "its value is not a JSON object"),
        ('{"shared/a/b": {}}', "shared/a/b: prefix"),
        ('{"shared/a/b": {"prefix": "x"}}', "'x' is not an IPv6 address"),
        ('{"shared/a/b": {"prefix": "::1:2", "color": 1}}', "no such key"),
        ('{"a": {"prefix": "2001:db8::1"}}', "'a' is not the key of a rule"),
        (
            '{"shared/a/b": {"prefix": "2001:db8::1"}, "shared/a/c": {"prefix": "2001:db8::1"}}',
            "shared/a/b has 2001:db8::1, too",
        ),
        (
            '{"shared/a/b": {"prefix": "2001:db8::1"}, "shared/a/b": {"prefix": "2001:db8::2"}}',
            "twice",
        ),
    ],
)
def test_apply_examines_all_values_first(privacy: None, text: str, sentence: str) -> None:
    assert sentence in refused(2, "apply", "-", stdin=text)


def test_delete(member: Cluster) -> None:
    for name in ("a", "b", "c"):
        did("put", f"shared/vlan7/{name}", f"2001:db8::{name}")
    assert "etcd has no key shared/vlan7/x, nor 1 more of these keys" in refused(
        1, "delete", "shared/vlan7/a", "shared/vlan7/x", "hosts/h1/vlan7/y"
    )
    assert len(keys(member)) == 3
    assert did("delete", "shared/vlan7/a", "--dry-run") == (
        '- shared/vlan7/a  {"prefix": "2001:db8::a"}\n'
    )
    assert len(keys(member)) == 3
    did("delete", "shared/vlan7/a", "shared/vlan7/x", "shared/vlan7/b", "--missing-ok")
    assert list(keys(member)) == ["shared/vlan7/c"]
    assert did("delete", "shared/vlan7/x", "--missing-ok", "--dry-run") == "nothing would change\n"
    assert "is not the key of a rule" in refused(2, "delete", "holders/vlan7/c")


@pytest.mark.parametrize("count", [1, 60, 61, 200])
def test_a_prefix_that_another_writer_takes_meanwhile(member: Cluster, count: int) -> None:
    """Find it out, whether it is taken before the writing or during it."""

    class Slow(Keyspace):
        async def change(self, *words: Any, **more: Any) -> bool:
            put(member, **{"shared/many/mine": {"prefix": "2001:db8::0"}})
            return await super().change(*words, **more)

    settings = Connection(endpoints=(URL,)).settings()
    wanted = {
        RuleKey("", "many", f"n{number}"): json.dumps({"prefix": f"2001:db8::{number:x}"}).encode()
        for number in range(count)
    }
    with pytest.raises(NdxdpError, match="shared/many/mine has 2001:db8:: already"):
        run(settings, lambda client: changes.put(Slow(client, settings), wanted))
    written = keys(member, "shared/many/n")
    assert len(written) == (count if count > 60 else 0)
    remove(member, "shared/many/mine")
    run(settings, lambda client: changes.put(Keyspace(client, settings), wanted))
    assert len(keys(member, "shared/many/n")) == count


def test_two_thousand_addresses(member: Cluster) -> None:
    many = {f"shared/big/n{number}": {"prefix": f"2001:db8::{number:x}"} for number in range(2000)}
    did("apply", "-", stdin=json.dumps(many))
    before = member.revision()
    did("apply", "-", stdin=json.dumps(many))
    assert member.revision() == before
    members(member, "h1", "h2", segment="big")
    held(member, "h1", *(f"n{number}" for number in range(1500)), segment="big")
    lines = did("status").splitlines()
    assert lines[0] == "segment big  shared 2000, held 1500, members 2"
    assert "holds 1500" in lines[1]
    assert len(lines) < 10
    found = json.loads(did("status", "--json"))["segments"][0]
    assert (found["held"], found["unheld"], len(found["addresses"])) == (1500, 500, 2000)
    listed = did("status", "big", "--addresses").splitlines()
    names = [line.split()[1] for line in listed if line.startswith("2001:db8::")]
    assert names == [f"n{number}" for number in range(2000)]
    assert len(did("list").splitlines()) == 2000
    assert "has 2001:db8::7f already" in refused(1, "put", "shared/big/x", "2001:db8::7f")
    did("delete", *many)
    assert keys(member, "shared/") == {}


# ---- status and list -----------------------------------------------------------------------------


def test_status_shows_members_holders_and_what_is_wrong(fleet_of_three: Cluster) -> None:
    lines = did("status", "vlan7").splitlines()
    assert lines[0] == "segment vlan7  shared 4, held 2, members 3"
    assert lines[1:4] == [
        "  member    h1, since 3 h ago, holds 1, ndxdp 0.2.0",
        "  member    h2, since 3 h ago, holds 0, ndxdp 0.2.0, drained",
        "  member    h10, since 3 h ago, holds 0, ndxdp 0.2.0",
    ]
    warnings = [line.removeprefix("  WARNING   ") for line in lines if "WARNING" in line]
    for sentence in (
        "nobody holds lost (2001:db8::22): none of its hosts is a member: h7, h8",
        "nobody holds idle (2001:db8::23): all of its hosts that are members are drained: h2",
        f"mail ({MAIL}): h9 still answers for 2001:db8::9 instead",
        "former is held, but there is no such shared address",
        "h9 holds 1, and is no member",
        f"shared/vlan7/web2 is refused: web has {WEB} already",
        "shared/vlan7/raw is refused: the value is not UTF-8",
    ):
        assert sentence in warnings
    assert any(each.startswith("shared/vlan7/broken is refused: ") for each in warnings)
    assert any(each.startswith("shared/vlan7/odd is refused: colour: ") for each in warnings)
    assert f"  move      web ({WEB}) to h2 waits" in lines
    assert "drained, and no member  h5" in lines
    table = lines[lines.index("") + 1 :]
    assert table[0].split() == ["address", "name", "segment", "held", "by", "since", "hosts"]
    assert [line.split()[1] for line in table[1:]] == ["idle", "lost", "mail", "web"]
    assert table[4].split() == [
        WEB,
        "web",
        "vlan7",
        "h1",
        "3",
        "h",
        "ago",
        "h1,",
        "h2;",
        "failback",
    ]


def test_status_of_all_segments_escapes_their_names(fleet_of_three: Cluster) -> None:
    text = did("status")
    assert text.index("segment lan  ") < text.index("segment vlan7  ")
    assert "\\x1b[31m" in text
    assert "\x1b" not in text
    assert "  member    h3, holds 0, ndxdp ?" in text.splitlines()
    data = json.loads(did("status", "--json"))
    assert [each["segment"] for each in data["segments"]] == ["lan", "vlan7"]
    assert data["drained"] == ["h2", "h5"]
    documented = json_of("fleet status")
    whole = data["segments"][1]
    assert data.keys() == documented.keys()
    assert whole.keys() == documented["segments"][0].keys()
    web = next(each for each in whole["addresses"] if each["name"] == "web")
    assert shape(web) == shape(documented["segments"][0]["addresses"][0]) | {"move": "str"}
    assert shape(whole["members"]) == shape(documented["segments"][0]["members"])
    assert (web["holder"], web["move"], web["failback"]) == ("h1", "h2", True)
    assert shape(whole["refused"]) == [{"key": "str", "reason": "str"}]


def test_status_of_nothing(member: Cluster) -> None:
    assert did("status") == "no shared address, and no host is a member of a segment\n"
    assert json.loads(did("status", "--json"))["segments"] == []
    assert "no shared address and no member of vlan8" in refused(1, "status", "vlan8")
    assert "is not the name of a segment" in refused(2, "status", "a/b")


def test_many_members_and_problems_are_cut(member: Cluster) -> None:
    members(member, *(f"h{number}" for number in range(100)))
    values = {f"shared/vlan7/n{number}": "{" for number in range(50)}
    member.put_all(values, ROOT)
    lines = did("status").splitlines()
    assert len([line for line in lines if line.startswith("  member")]) == 21
    assert "  member    and 80 more: see `ndxdp fleet status --all`" in lines
    assert "  WARNING   and 30 more: see `ndxdp fleet status --all`" in lines
    assert len(did("status", "--all").splitlines()) == 151


def test_list(fleet_of_three: Cluster) -> None:
    did("put", "hosts/h1/vlan7/net", "2001:db8:1::/80", "--answer", "routed")
    did("put", "hosts/h1/lan/net", "2001:db8:2::/80")
    did("put", "hosts/h2/vlan7/net", "2001:db8:1::/80")

    def listed(*words: str) -> list[str]:
        text = did("list", *words).splitlines()
        data = json.loads(did("list", *words, "--json"))
        assert [line.partition("  ")[0] for line in text] == [
            each["key"].replace("\x1b", "\\x1b") for each in data
        ]
        return [each["key"] for each in data]

    assert listed("hosts") == ["hosts/h1/lan/net", "hosts/h1/vlan7/net", "hosts/h2/vlan7/net"]
    assert listed("--host", "h1") == ["hosts/h1/lan/net", "hosts/h1/vlan7/net"]
    assert listed("--host", "h1", "--segment", "vlan7") == ["hosts/h1/vlan7/net"]
    assert listed("hosts", "--segment", "vlan7") == ["hosts/h1/vlan7/net", "hosts/h2/vlan7/net"]
    assert listed("--segment", "lan") == ["hosts/h1/lan/net", "shared/lan/\x1b[31m"]
    assert len(listed("shared")) == 9
    assert len(listed()) == 12
    lines = did("list", "shared").splitlines()
    assert f'shared/vlan7/web2  {{"prefix": "{WEB}"}}  [refused: web has {WEB} already]' in lines
    data = {each["key"]: each for each in json.loads(did("list", "--json"))}
    assert data["shared/vlan7/broken"]["value"] == '{"prefix"'
    assert data["shared/vlan7/web"]["refused"] is None
    assert shape(data["hosts/h1/lan/net"]) == shape(json_of("fleet list")[0])
    assert did("list", "--host", "h9") == "there is no such key\n"
    assert did("list", "--host", "h9", "--json") == "[]\n"
    assert "--host is for the keys of hosts" in refused(2, "list", "shared", "--host", "h1")


# ---- completion ----------------------------------------------------------------------------------


def offered(line: str) -> list[str]:
    words = line.split(" ")
    request = {
        "_NDXDP_COMPLETE": "bash_complete",
        "COMP_WORDS": "\n".join(["ndxdp", *words]),
        "COMP_CWORD": str(len(words)),
    }
    ended = ndxdp(env=request)
    assert ended.err == ""
    return [item.partition(",")[2] for item in ended.out.splitlines() if "," in item]


def test_completion_offers_what_etcd_has(member: Cluster) -> None:
    members(member, "h1", "h2")
    did("put", "shared/vlan7/web", WEB)
    did("put", "hosts/h1/vlan7/net", MAIL)
    put(member, **{"drained/h3": {}})
    start = f"--endpoint {URL}"
    assert offered(f"fleet status {start} v") == ["vlan7"]
    assert offered(f"fleet delete {start} sh") == ["shared/vlan7/web"]
    assert offered(f"fleet delete {start} ") == ["hosts/h1/vlan7/net", "shared/vlan7/web"]
    assert offered(f"fleet move {start} ") == ["vlan7/web"]
    assert offered(f"fleet move {start} vlan7/web ") == ["h1", "h2", "h3"]
    assert offered(f"fleet undrain {start} ") == ["h3"]
    assert offered("fleet list ") == ["hosts", "shared"]
    assert offered("fleet drain --endpoint http://127.0.0.1:1 ") == []
