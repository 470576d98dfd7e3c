"""Several ranges of keys in one stream: read at one moment, resumed, restored, not permitted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.etcd_member import encode
from ndxdp.sources import etcd as source
from ndxdp.sources import etcd_api, etcd_session
from ndxdp.sources.etcd_api import EtcdApi
from ndxdp.sources.etcd_settings import Etcd
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.hostile import answer
from tests.fixtures.network import eventually
from tests.fixtures.ranges import Ranges, watching
from tests.fixtures.tcp_relay import TcpRelay
from tests.test_etcd import endpoint, settings_of

ROOT = "/ndxdp/v1/"
KINDS = ("drained/", "shared/s/", "members/s/", "holders/s/", "moves/s/")
ALL = tuple(ROOT + each for each in KINDS)


@pytest.fixture
def relayed(one: Cluster) -> Iterator[tuple[Cluster, TcpRelay, Ranges]]:
    """Yield a member with a key in two ranges, a relay before it, and a watcher that has both."""
    put(one, {"shared/s/a": "1", "holders/s/a": "h1"})
    relay = TcpRelay(("127.0.0.1", 2379))
    with watching(Etcd((endpoint(relay.port),), "h1"), *ALL) as watcher:
        watcher.becomes(keys({"shared/s/a": "1", "holders/s/a": "h1"}))
        watcher.connects()
        yield one, relay, watcher
    relay.cut()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_FIRST_CHECK", 0.2)
    monkeypatch.setattr(source, "_CHECK_AFTER", 0.3)
    monkeypatch.setattr(source, "_LAG", 0.3)
    monkeypatch.setattr(source, "_DELAY_MAX", 0.5)
    monkeypatch.setattr(etcd_session, "_TIMEOUT", 1.0)


def put(cluster: Cluster, values: dict[str, str]) -> int:
    return cluster.put_all(values, ROOT)


def delete(cluster: Cluster, name: str) -> None:
    cluster.call("/v3/kv/deleterange", {"key": encode(ROOT + name)})


def keys(values: dict[str, str]) -> dict[str, bytes]:
    return {ROOT + name: value.encode() for name, value in values.items()}


def test_ranges_are_read_at_one_moment_and_followed(one: Cluster, hasty: None) -> None:
    values = {f"shared/s/{number}": "x" for number in range(1200)}
    values |= {f"holders/s/{number}": "h1" for number in range(2300)}
    values |= {"drained/h9": "{}"}
    last = put(one, values)
    put(one, {"shared/other/a": "x", "hosts/h1/s/a": "x", "holders/s": "x"})
    with watching(settings_of(one), *ALL) as watcher:
        watcher.becomes(keys(values))
        assert [batch.begins for batch in watcher.batches] == [True] + [False] * 7
        assert [batch.ends for batch in watcher.batches] == [False] * 7 + [True]
        watcher.connects()
        eventually(lambda: watcher.watcher.confirmed)
        assert watcher.watcher.revision > last
        values |= {"moves/s/7": "h2", "members/s/h1": "m", "shared/s/7": "y"}
        put(one, {name: values[name] for name in ("moves/s/7", "members/s/h1", "shared/s/7")})
        watcher.becomes(keys(values))
        delete(one, "drained/h9")
        del values["drained/h9"]
        watcher.becomes(keys(values))
        confirmed = watcher.watcher.confirmed
        eventually(lambda: watcher.watcher.confirmed != confirmed)
        assert sum(batch.begins for batch in watcher.batches) == 1
        assert not watcher.histories


def test_items_have_their_lease(one: Cluster) -> None:
    lease = one.call("/v3/lease/grant", {"TTL": "60", "ID": "77"})["ID"]
    with watching(settings_of(one), *ALL) as watcher:
        watcher.connects()
        asked = {"key": encode(ROOT + "members/s/h1"), "value": encode("m")}
        one.call("/v3/kv/put", {**asked, "lease": lease})
        watcher.becomes(keys({"members/s/h1": "m"}))
        assert watcher.batches[-1].items[0].lease == 77
    with watching(settings_of(one), *ALL) as watcher:
        watcher.becomes(keys({"members/s/h1": "m"}))
        assert [item.lease for batch in watcher.batches for item in batch.items] == [77]
        one.call("/v3/lease/revoke", {"ID": lease})
        watcher.becomes({})


def test_many_segments(one: Cluster, hasty: None) -> None:
    """Count more ranges than etcd takes in a transaction."""
    ranges = [f"{ROOT}shared/{number}/" for number in range(200)]
    put(one, {"shared/0/a": "x", "shared/199/a": "x"})
    with watching(settings_of(one), *ranges) as watcher:
        watcher.becomes(keys({"shared/0/a": "x", "shared/199/a": "x"}))
        eventually(lambda: watcher.watcher.confirmed)
        put(one, {"shared/100/a": "x"})
        watcher.becomes(keys({"shared/0/a": "x", "shared/100/a": "x", "shared/199/a": "x"}))


def test_each_range_is_resumed_where_it_was(relayed: tuple[Cluster, TcpRelay, Ranges]) -> None:
    cluster, relay, watcher = relayed
    for number in range(5):
        put(cluster, {"holders/s/a": f"h{number}"})
    put(cluster, {"shared/s/a": "2", "holders/s/a": "h9"})
    watcher.becomes(keys({"shared/s/a": "2", "holders/s/a": "h9"}))
    relay.cut()
    watcher.loses()
    put(cluster, {"drained/h1": "{}"})
    delete(cluster, "holders/s/a")
    relay.open()
    watcher.becomes(keys({"shared/s/a": "2", "drained/h1": "{}"}))
    assert sum(batch.begins for batch in watcher.batches) == 1, "only the changes were read"
    assert len(set(watcher.received)) == len(watcher.received), "a change came twice"
    assert not watcher.histories


def test_a_compacted_revision_is_no_new_history(relayed: tuple[Cluster, TcpRelay, Ranges]) -> None:
    cluster, relay, watcher = relayed
    relay.cut()
    watcher.loses()
    put(cluster, {"shared/s/b": "2"})
    delete(cluster, "holders/s/a")
    cluster.compact()
    relay.open()
    watcher.becomes(keys({"shared/s/a": "1", "shared/s/b": "2"}))
    assert not watcher.histories


@pytest.mark.parametrize("more", [0, 20], ids=["revision-behind", "revision-ahead"])
def test_a_backup_is_a_new_history(
    relayed: tuple[Cluster, TcpRelay, Ranges], tmp_path: Path, more: int
) -> None:
    cluster, relay, watcher = relayed
    cluster.save(tmp_path / "backup")
    put(cluster, {"shared/s/a": "2"})
    delete(cluster, "holders/s/a")
    watcher.becomes(keys({"shared/s/a": "2"}))
    relay.cut()
    watcher.loses()
    cluster.restore(tmp_path / "backup")
    for number in range(more):
        put(cluster, {"other": str(number)})
    relay.open()
    watcher.becomes(keys({"shared/s/a": "1", "holders/s/a": "h1"}))
    assert watcher.histories == 1


def test_another_cluster_is_a_new_history(
    relayed: tuple[Cluster, TcpRelay, Ranges], tmp_path: Path
) -> None:
    cluster, relay, watcher = relayed
    relay.cut()
    watcher.loses()
    cluster.kill()
    fresh = Cluster(tmp_path / "fresh")
    try:
        fresh.start()
        relay.open()
        watcher.becomes({})
        assert watcher.histories == 1
    finally:
        fresh.kill()


def test_a_missed_change_of_one_range_is_found(
    one: Cluster, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = etcd_api._changes

    def deaf(answer: dict[str, object]) -> object:
        found = changes(answer)
        return found._replace(items=[]) if found.number == 4 else found

    monkeypatch.setattr(etcd_api, "_changes", deaf)
    with watching(settings_of(one), *ALL) as watcher:
        watcher.connects()
        put(one, {"holders/s/a": "h1"})
        watcher.becomes(keys({"holders/s/a": "h1"}))
        assert sum(batch.begins for batch in watcher.batches) == 2


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=lambda each: each.name)
def test_a_member_that_hangs_is_left(privacy: None, tmp_path: Path, number: signal.Signals) -> None:
    """Notice it long before the next check of the number of keys."""
    with etcd.cluster(tmp_path / "etcd", 3) as three:
        members = {member.url: member for member in three.members}
        with watching(settings_of(three), *ALL, silence=2) as watcher:
            watcher.connects()
            put(three, {"shared/s/a": "1"})
            watcher.becomes(keys({"shared/s/a": "1"}))
            hung = members[watcher.watcher.endpoint]
            hung.signal(number)
            eventually(lambda: watcher.watcher.endpoint != hung.url, within=10)
            asked = {"key": encode(ROOT + "shared/s/b"), "value": encode("2")}
            three.call("/v3/kv/put", asked, three.leader())
            watcher.becomes(keys({"shared/s/a": "1", "shared/s/b": "2"}))
            assert sum(batch.begins for batch in watcher.batches) == 1
            hung.signal(signal.SIGCONT)


def test_an_election_is_no_reason_to_leave_a_member(privacy: None, tmp_path: Path) -> None:
    with etcd.cluster(tmp_path / "etcd", 3) as three:
        leader = three.leader()
        (near, *_) = (member for member in three.members if member is not leader)
        only = replace(settings_of(three), endpoints=(endpoint(host=near.address),))
        with watching(only, *ALL, silence=4) as watcher:
            watcher.connects()
            since = watcher.watcher.since
            leader.kill()
            three.leader()
            time.sleep(4)
            assert watcher.watcher.since == since, watcher.watcher.problem


def test_a_long_answer_comes_in_fragments(relayed: tuple[Cluster, TcpRelay, Ranges]) -> None:
    """Take changes of 6 MB, which etcd sends in several pieces, as one batch."""
    cluster, relay, watcher = relayed
    relay.cut()
    watcher.loses()
    values = {f"shared/s/{number}": str(number) * 1_000_000 for number in range(6)}
    for name, value in values.items():
        put(cluster, {name: value})
    relay.open()
    watcher.becomes(keys({"shared/s/a": "1", "holders/s/a": "h1", **values}))
    assert sum(batch.begins for batch in watcher.batches) == 1
    assert len(set(watcher.received)) == len(watcher.received)
    assert max(len(batch.items) for batch in watcher.batches) > 1


RESULTS = {
    "a range that was not asked for": '{"watch_id": "9", "events": []}',
    "a range below 0": '{"watch_id": "-5", "events": []}',
    "no number": '{"watch_id": [], "events": []}',
    "no keys": '{"watch_id": "1", "events": [7]}',
    "no list": '{"watch_id": "1", "events": 7}',
    "a revision of another kind": '{"watch_id": "1", "header": {"revision": {}}}',
    "the end": '{"watch_id": "1", "canceled": true, "cancel_reason": 7}',
    "a refusal": '{"watch_id": "-1", "canceled": true, "cancel_reason": "no\\u001b"}',
}


@pytest.mark.parametrize("what", RESULTS)
def test_a_stream_of_nonsense(hostile: tuple[Etcd, list[bytes]], what: str) -> None:
    settings, answers = hostile
    # The server gives the same answer to the request for the keys, of which there are none.
    answers.append(answer(f'{{"header": {{"revision": "1"}}, "result": {RESULTS[what]}}}'))
    with watching(settings, *ALL) as watcher:
        assert watcher.loses().isprintable()
        assert watcher.keys == {}


def test_many_keys_are_counted_less_often(
    one: Cluster, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_COUNTED_OFTEN", 10)
    asked: list[str] = []
    for name in ("count", "confirm"):
        real = getattr(EtcdApi, name)

        async def noting(self: EtcdApi, real: Any = real, name: str = name) -> object:
            asked.append(name)
            return await real(self)

        monkeypatch.setattr(EtcdApi, name, noting)
    put(one, {f"shared/s/{number}": "x" for number in range(40)})
    with watching(settings_of(one), *ALL) as watcher:
        watcher.connects()
        eventually(lambda: asked.count("count") == 3, within=20)
        assert asked == (["count"] + ["confirm"] * 3) * 2 + ["count"]
        put(one, {"shared/s/a": "x"})
        eventually(lambda: len(watcher.keys) == 41)
        assert watcher.watcher.connected


def test_a_role_that_lacks_some_ranges(one: Cluster, tmp_path: Path) -> None:
    """Name the refusal, and go on when the role gets the permission."""
    put(one, {"shared/s/a": "1", "hosts/h1/s/a": "x"})
    password = tmp_path / "password"
    password.write_text("secret\n")
    one.add_user("ndxdp", "secret", "/ndxdp/v1/hosts/h1/", "/ndxdp/v1/shared/s/")
    named = replace(settings_of(one), user="ndxdp", password_file=str(password))
    with watching(named) as own, watching(named, *ALL) as watcher:
        own.becomes(keys({"hosts/h1/s/a": "x"}))
        eventually(lambda: "permission denied" in watcher.watcher.problem, within=15)
        assert not watcher.keys
        for each in ALL:
            one.permit(each)
        watcher.becomes(keys({"shared/s/a": "1"}))
        watcher.connects()
        eventually(lambda: own.watcher.connected)
