"""Keys and leases of etcd: written, deleted, acquired by many; refusals, and answers that fail."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ndxdp.sources.etcd_client import EtcdClient
from ndxdp.sources.etcd_session import LeaseLost
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from ndxdp.sources.etcd_store import Store
from ndxdp.sources.http import Response, Unknown
from ndxdp.sources.tls import TcpServer
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.test_etcd import settings_of

_T = TypeVar("_T")

Request = Callable[[Store], Coroutine[Any, Any, _T]]


@pytest.fixture
def one(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    with etcd.cluster(tmp_path / "etcd") as cluster:
        yield cluster


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


def test_keys(one: Cluster) -> None:
    answers = ask(
        settings_of(one),
        lambda etcd: etcd.get("/k/1"),
        lambda etcd: etcd.put("/k/1", b"\xff\0"),
        lambda etcd: etcd.get("/k/1"),
        lambda etcd: etcd.put("/k/2\udcff", b""),
        lambda etcd: etcd.below("/k/"),
        lambda etcd: etcd.delete("/k/1"),
        lambda etcd: etcd.delete("/k/1"),
    )
    nothing, revision, item, _, items, *deleted = answers
    assert nothing is None
    assert item == (b"/k/1", b"\xff\0", revision, revision, 0)
    assert [each.key for each in items] == [b"/k/1", b"/k/2\xff"]
    assert deleted == [True, False]


def test_keys_under_a_lease(one: Cluster) -> None:
    settings = settings_of(one)
    lease, other = ask(settings, lambda etcd: etcd.grant(60), lambda etcd: etcd.grant(60))
    assert lease.ttl == 60
    answers = ask(
        settings,
        lambda etcd: etcd.put("/m/1", b"move"),
        lambda etcd: etcd.put("/m/2", b"move"),
        lambda etcd: etcd.put("/k/2", b"x", other.id),
        lambda etcd: etcd.acquire(names(1, 2, 3), lease.id, {"/k/1": "/m/1", "/k/2": "/m/2"}),
        lambda etcd: etcd.acquire(names(1, 2, 3), lease.id, unchanged={"/k/1": ("/m/1", 1)}),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.release(list(names(1, 2, 3)), other.id),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.revoke(lease.id),
        lambda etcd: etcd.below("/"),
        lambda etcd: etcd.keepalive(lease.id),
        lambda etcd: etcd.put("/k/1", b"", lease.id),
        lambda etcd: etcd.acquire(names(1), lease.id),
        lambda etcd: etcd.revoke(lease.id),
    )
    assert answers[3].keys() == answers[4].keys() == {"/k/1", "/k/3"}
    assert answers[2] < answers[3]["/k/1"] <= answers[4]["/k/1"]
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
    assert [type(each) for each in answers[10:13]] == [LeaseLost] * 3
    assert not answers[13]


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
    (lease, revision) = ask(
        settings, lambda etcd: etcd.grant(60), lambda etcd: etcd.put("/m/7", b"x")
    )
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
