"""Keys and leases of etcd: written, acquired by many, deleted; refusals, and answers that fail."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ndxdp.errors import NdxdpError
from ndxdp.sources import etcd_client, etcd_snapshot
from ndxdp.sources.etcd_client import EtcdClient, error_of
from ndxdp.sources.etcd_session import LeaseLost, Session
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.etcd_store import Store
from ndxdp.sources.http import NoAnswer, Response, Unknown
from ndxdp.sources.tls import TcpServer
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.hostile import NONSENSE, answer
from tests.fixtures.network import PATIENCE
from tests.fixtures.tcp_relay import TcpRelay
from tests.test_etcd import settings_of
from tests.test_http_connection import scripted

_T = TypeVar("_T")

Request = Callable[[Store], Coroutine[Any, Any, _T]]


def ask(settings: Etcd, *requests: Request[Any]) -> list[Any]:
    """Send requests, one after another; return their answers, or what they raise."""

    async def asking() -> list[Any]:
        client, found = EtcdClient(settings), list[Any]()
        for request in requests:
            try:
                found.append(await client.call(request))
            except Exception as error:
                found.append(error)
        client.close()
        return found

    return asyncio.run(asking())


def names(*numbers: int) -> dict[str, bytes]:
    return {f"/k/{number}": b"%d" % number for number in numbers}


def put(key: str, value: bytes = b"x") -> Request[int]:
    """Return the request that writes a key; its answer is the revision."""
    return lambda etcd: etcd_snapshot.change(etcd.session, {key: value})


def delete(key: str) -> Request[int]:
    return lambda etcd: etcd_snapshot.change(etcd.session, {}, [key])


def test_keys(one: Cluster) -> None:
    answers = ask(
        settings_of(one),
        lambda etcd: etcd.get("/k/1"),
        put("/k/1", b"\xff\0"),
        lambda etcd: etcd.get("/k/1"),
        put("/k/2\udcff", b""),
        lambda etcd: etcd.below("/k/"),
    )
    nothing, revision, item, _, items = answers
    assert nothing is None
    assert item == (b"/k/1", b"\xff\0", revision, revision, 0)
    assert [each.key for each in items] == [b"/k/1", b"/k/2\xff"]


def test_keys_under_a_lease(one: Cluster) -> None:
    settings = settings_of(one)
    lease, other = ask(settings, lambda etcd: etcd.grant(60), lambda etcd: etcd.grant(60))
    assert lease.ttl == 60
    answers = ask(
        settings,
        put("/m/1", b"move"),
        put("/m/2", b"move"),
        lambda etcd: etcd.acquire(names(2), other.id),
        lambda etcd: etcd.acquire(names(1, 2, 3), lease.id, {"/k/1": "/m/1", "/k/2": "/m/2"}),
        lambda etcd: etcd.acquire(names(1, 2, 3), lease.id, unchanged={"/k/1": ("/m/1", 1)}),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.release(list(names(1, 2, 3)), other.id),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.revoke(lease.id),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.keepalive(lease.id),
        lambda etcd: etcd.acquire(names(1), lease.id),
        lambda etcd: etcd.revoke(lease.id),
    )
    assert answers[3].keys() == answers[4].keys() == {"/k/1", "/k/3"}
    assert answers[2]["/k/2"] < answers[3]["/k/1"] <= answers[4]["/k/1"]
    assert {item.key: item.lease for item in answers[5]} == {
        b"/k/1": lease.id,
        b"/k/2": other.id,
        b"/k/3": lease.id,
        b"/m/2": 0,
    }
    assert answers[6].keys() == names(1, 2, 3).keys()
    assert {item.key for item in answers[7]} == {b"/k/1", b"/k/3", b"/m/2"}
    assert answers[8]
    assert {item.key for item in answers[9]} == {b"/m/2"}
    assert [type(each) for each in answers[10:12]] == [LeaseLost] * 2
    assert not answers[12]


def test_a_request_does_not_wait_for_an_acknowledgement(privacy: None) -> None:
    """Have no delay of Nagle's algorithm, which would take 40 ms from the second request on."""

    async def option() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = Endpoint("127.0.0.1", server.getsockname()[1], tls=False)
            _, writer = await TcpServer(endpoint, None).connect()
            found: int = writer.get_extra_info("socket").getsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY
            )
            writer.close()
            return found

    assert asyncio.run(option())


def test_a_key_is_created_only_if_another_is_unchanged(one: Cluster) -> None:
    settings = settings_of(one)
    (lease, revision) = ask(settings, lambda etcd: etcd.grant(60), put("/m/7"))
    then, now = ({"/k/7": ("/m/7", each)} for each in (revision - 1, revision))
    found = ask(
        settings,
        lambda etcd: etcd.acquire(names(7), lease.id, unchanged=then),
        lambda etcd: etcd.acquire(names(7), lease.id, unchanged=now),
        lambda etcd: etcd.revoke(lease.id),
    )
    assert [set(each) for each in found[:2]] == [set(), {"/k/7"}]


def test_a_stream_that_tcp_gives_up_has_ended() -> None:
    """Tell ETIMEDOUT, a TimeoutError without a limit of time, from silence."""

    class GivenUp:
        async def data(self) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    class Silent:
        async def data(self) -> bytes:
            await asyncio.sleep(60)
            return b""

    async def reasons() -> list[str]:
        found = []
        for exchange, silence in ((GivenUp(), None), (GivenUp(), 9.0), (Silent(), 0.01)):
            with pytest.raises(Unknown) as raised:
                await Response(exchange, silence).read()  # type: ignore[arg-type]
            found.append(str(raised.value))
        return found

    assert asyncio.run(reasons()) == [
        "connection timed out",
        "connection timed out",
        "no data for 0.01 s",
    ]


def test_many_keys_at_once(one: Cluster) -> None:
    settings = settings_of(one)
    (lease,) = ask(settings, lambda etcd: etcd.grant(60))
    keys = names(*range(500))
    (before, acquired, after) = ask(
        settings,
        put("/k/7"),
        lambda etcd: etcd.acquire(keys, lease.id, {key: f"/m{key}" for key in keys}),
        lambda etcd: etcd.below("/k/"),
    )
    assert acquired.keys() == keys.keys() - {"/k/7"}
    assert len(set(acquired.values())) == 9, "transactions of 60 keys"
    assert min(acquired.values()) > before
    assert len(after) == 500
    (released, left) = ask(
        settings,
        lambda etcd: etcd.release(keys.keys(), lease.id),
        lambda etcd: etcd.below("/k/"),
    )
    assert released.keys() == keys.keys()
    assert [item.key for item in left] == [b"/k/7"]


def test_two_hosts_race_for_keys(privacy: None, tmp_path: Path) -> None:
    with etcd.cluster(tmp_path / "etcd", 3) as three:
        keys = names(*range(200))

        async def race() -> list[set[str]]:
            clients = [EtcdClient(settings_of(three)) for _ in range(4)]

            async def take(client: EtcdClient) -> set[str]:
                lease = await client.call(lambda etcd: etcd.grant(60))
                order = random.sample(sorted(keys), len(keys))
                wanted = {key: keys[key] for key in order}
                return set(await client.call(lambda etcd: etcd.acquire(wanted, lease.id)))

            found = await asyncio.gather(*map(take, clients))
            for client in clients:
                client.close()
            return list(found)

        taken = asyncio.run(race())
        assert sum(map(len, taken)) == 200
        assert set.union(*taken) == keys.keys()
        assert sum(map(bool, taken)) > 1, "nobody raced"


# ---- answers that do not come --------------------------------------------------------------------


@pytest.fixture
def relayed(one: Cluster) -> Iterator[tuple[Etcd, TcpRelay]]:
    relay = TcpRelay(("127.0.0.1", 2379))
    yield Etcd((Endpoint("127.0.0.1", relay.port, False),), "h1"), relay
    relay.cut()


def test_a_request_whose_answer_is_lost(relayed: tuple[Etcd, TcpRelay]) -> None:
    """Report as unknown what etcd has done; the same request completes it."""
    settings, relay = relayed
    (lease,) = ask(settings, lambda etcd: etcd.grant(60))
    requests: list[Request[Any]] = [
        put("/k/0"),
        lambda etcd: etcd.acquire(names(1, 2), lease.id),
        lambda etcd: etcd.release(["/k/1"], lease.id),
        delete("/k/0"),
        lambda etcd: etcd.revoke(lease.id),
        lambda etcd: etcd.grant(5),
    ]
    for request in requests:
        relay.loses = 1
        (failed,) = ask(settings, request)
        assert isinstance(failed, Unknown), failed
    found = ask(settings, *requests[:-1], lambda etcd: etcd.below("/"))
    # All of it was done, so that nothing is left to do; the lease went with its keys.
    assert isinstance(found[1], LeaseLost)
    assert found[4:] == [False, []]
    relay.loses = 1
    (failed,) = ask(settings, lambda etcd: etcd.below("/"))
    assert isinstance(failed, NoAnswer)
    assert not isinstance(failed, Unknown), "a read changes nothing"


def test_a_request_that_is_repeated_on_a_kept_connection(relayed: tuple[Etcd, TcpRelay]) -> None:
    settings, relay = relayed

    async def work() -> None:
        client = EtcdClient(settings)
        lease = await client.call(lambda etcd: etcd.grant(60))
        relay.loses = 1
        found = await client.call(lambda etcd: etcd.acquire(names(1, 2), lease.id))
        assert found.keys() == {"/k/1", "/k/2"}
        client.close()

    asyncio.run(work())


def test_a_request_that_is_certainly_not_done(relayed: tuple[Etcd, TcpRelay]) -> None:
    settings, relay = relayed
    relay.cut()
    (failed,) = ask(settings, put("/k/1"))
    assert isinstance(failed, NoAnswer)
    assert not isinstance(failed, Unknown)


def test_a_read_during_an_election(tmp_path: Path) -> None:
    """Send it to the same member again, which knows the new leader; but only once."""
    text = '{"message": "etcdserver: leader changed", "code": 14}'
    changed = f"HTTP/1.1 503 X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
    good = answer('{"header": {"revision": "1"}}')

    async def work() -> None:
        async with scripted(tmp_path, [changed, good, changed, changed]) as (server, connection):
            store = Store(Session(connection.server, Etcd((), "h1")))
            assert await store.get("/k") is None
            with pytest.raises(NoAnswer, match="leader changed"):
                await store.get("/k")
            assert server.requests == [4]
            store.session.close()

    asyncio.run(work())


NOTHING: dict[str, Request[Any]] = {
    "get": lambda etcd: etcd.get("/k"),
    "below": lambda etcd: etcd.below("/k"),
    "change": put("/k"),
    "acquire": lambda etcd: etcd.acquire(names(1), 7),
    "release": lambda etcd: etcd.release(["/k"], 7),
    "grant": lambda etcd: etcd.grant(5),
    "keepalive": lambda etcd: etcd.keepalive(7),
}
HEADER = '"header": {"revision": "3"}'
MORE = {
    "an empty object": answer("{}"),
    "no answers": answer(f"{{{HEADER}, 'responses': []}}".replace("'", '"')),
    "too many": answer(f'{{{HEADER}, "responses": [{{"response_txn": {{}}}}, {{}}]}}'),
    "no transaction": answer(f'{{{HEADER}, "responses": [{{"response_txn": []}}]}}'),
    "no range": answer(f'{{{HEADER}, "responses": [{{"response_txn": {{"responses": 7}}}}]}}'),
    "keys of another kind": answer(f'{{{HEADER}, "kvs": [7]}}'),
    "a lease of another kind": answer(f'{{{HEADER}, "kvs": [{{"key": "", "lease": "x"}}]}}'),
}


@pytest.mark.parametrize("what", NONSENSE | MORE)
@pytest.mark.parametrize("request_name", NOTHING)
def test_nonsense(hostile: tuple[Etcd, list[bytes]], what: str, request_name: str) -> None:
    """Raise what callers expect, or return an answer that has nothing."""
    settings, answers = hostile
    answers.append((NONSENSE | MORE)[what])
    (found,) = ask(settings, NOTHING[request_name])
    if isinstance(found, Exception):
        assert isinstance(found, NoAnswer), found
        error = error_of(found, settings)
        assert error.message.isprintable()
        assert error.hint
    else:
        assert not found or request_name == "release"


# ---- several members -----------------------------------------------------------------------------


def test_a_client_passes_over_members_that_fail(one: Cluster) -> None:
    (good,) = settings_of(one).endpoints
    silent = socket.create_server(("127.0.0.1", 0))
    dead = Endpoint("127.0.0.1", 1, False)
    hung = Endpoint("127.0.0.1", silent.getsockname()[1], False)

    async def work() -> None:
        for _ in range(6):
            client = EtcdClient(Etcd((dead, hung, good), "h1"), timeout=0.5)
            assert await client.call(put("/k"))
            assert client.endpoint == str(good)
            client.close()
            client = EtcdClient(Etcd((dead, hung, good), "h1"), timeout=20)
            async with asyncio.timeout(10 * PATIENCE):
                assert await client.call(put("/k"), patience=0.1)
            client.close()
        client = EtcdClient(Etcd((dead, hung), "h1"), timeout=0.3)
        with pytest.raises(Unknown) as raised:
            await client.call(put("/k"))
        assert f"{dead}: connection refused" in str(raised.value)
        assert f"{hung}: no answer within 0.3 s" in str(raised.value)

    with silent:
        asyncio.run(work())


def test_a_member_that_recovers_while_another_hangs(one: Cluster) -> None:
    (good,) = settings_of(one).endpoints
    silent = socket.create_server(("127.0.0.1", 0))
    hung = Endpoint("127.0.0.1", silent.getsockname()[1], False)
    asked: list[str] = []

    async def request(etcd: Store) -> str:
        asked.append(etcd.session.server.host)
        if etcd.session.server.host == good.authority and asked.count(good.authority) < 3:
            raise NoAnswer("no leader")
        await put("/k")(etcd)
        return "done"

    async def work() -> None:
        client = EtcdClient(Etcd((hung, good), "h1"), timeout=60)
        async with asyncio.timeout(10 * PATIENCE):
            assert await client.call(request, patience=0.05) == "done"
        client.close()

    with silent:
        asyncio.run(work())
    assert asked.count(hung.authority) == 1


# ---- commands ------------------------------------------------------------------------------------


def test_the_errors_of_a_command(one: Cluster, tmp_path: Path) -> None:
    settings = settings_of(one)

    async def read(client: EtcdClient) -> Any:
        return await client.call(lambda etcd: etcd.below("/"))

    assert etcd_client.run(settings, read) == []

    def error(settings: Etcd) -> NdxdpError:
        with pytest.raises(NdxdpError) as raised:
            etcd_client.run(settings, read)
        assert raised.value.hint
        return raised.value

    nowhere = Endpoint("127.0.0.1", 1, False)
    assert (
        "cannot reach etcd: http://127.0.0.1:1: connection" in error(Etcd((nowhere,), "h")).message
    )
    tls = Etcd((Endpoint("127.0.0.1", 2379, True),), "h")
    assert "cannot reach etcd: https://127.0.0.1:2379: " in error(tls).message
    assert "/nowhere" in error(replace(tls, ca="/nowhere")).message
    wrong = tmp_path / "password"
    wrong.write_text("wrong\n")
    named = replace(settings, user="ndxdp", password_file=str(wrong))
    one.add_user("ndxdp", "secret", "/ndxdp/")
    assert "etcd does not accept the user ndxdp or the password" in error(named).message
    assert "a client without a user" in error(settings).message
    wrong.write_text("secret\n")
    assert "permission denied" in error(named).message
    assert "first line is empty" in error(replace(named, password_file="/dev/null")).message
