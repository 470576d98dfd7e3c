"""A connection for several requests: kept, closed by the server, broken off, opened again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ndxdp.sources.http import NoAnswer, Refused, Request, UnixServer, Unknown
from ndxdp.sources.http_connection import Connection

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
OLD = b"HTTP/1.0 200 OK\r\n\r\nhi"
IDLE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
REFUSAL = b'HTTP/1.1 503 No\r\nContent-Length: 18\r\n\r\n{"message": "why"}'


class Scripted:
    """A server. Each connection plays a list of answers, one for each request.

    An answer is bytes to send. None closes the connection without an answer; "hang" gives none.

    Attributes:
        requests: The number of requests of each connection so far.
    """

    def __init__(self, path: str, *connections: list[bytes | str | None]) -> None:
        self.path, self.requests, self._scripts = path, list[int](), list(connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.requests)
        self.requests.append(0)
        for answer in self._scripts[number]:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Connection: keep-alive" in head
            self.requests[number] += 1
            if answer is None:
                break
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                with contextlib.suppress(ConnectionError):
                    await reader.read()
        writer.close()


@contextlib.asynccontextmanager
async def scripted(
    folder: Path, *connections: list[bytes | str | None]
) -> AsyncIterator[tuple[Scripted, Connection]]:
    made = Scripted(str(folder / "socket"), *connections)
    server = await asyncio.start_unix_server(made.serve, made.path)
    connection = Connection(UnixServer(made.path))
    try:
        yield made, connection
    finally:
        connection.close()
        server.close()


async def ask(connection: Connection, *, timeout: float = 5) -> bytes:
    async with connection.send(Request("/"), timeout=timeout, silence=timeout) as response:
        return await response.read_all(1000)


def play(
    folder: Path,
    work: Callable[[Connection], Awaitable[None]],
    *connections: list[bytes | str | None],
) -> list[int]:
    """Run requests against scripted connections; return the number of requests of each."""

    async def playing() -> list[int]:
        async with scripted(folder, *connections) as (server, connection):
            await work(connection)
            assert connection.opened == len(server.requests)
            return server.requests

    return asyncio.run(playing())


async def settle() -> None:
    """Let the end of a connection arrive."""
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("answer", [GOOD, CHUNKED], ids=["length", "chunks"])
def test_a_connection_is_kept(tmp_path: Path, answer: bytes) -> None:
    async def work(connection: Connection) -> None:
        for _ in range(5):
            assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [answer] * 6) == [5]


@pytest.mark.parametrize("answer", [LAST, OLD], ids=["close", "1.0"])
def test_the_server_announces_the_end(tmp_path: Path, answer: bytes) -> None:
    async def work(connection: Connection) -> None:
        assert await ask(connection) == b"hi"
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [answer], [GOOD, GOOD]) == [1, 1]


def test_the_server_closes_an_idle_connection(tmp_path: Path) -> None:
    """Open another one for the next request."""

    async def work(connection: Connection) -> None:
        await ask(connection)
        await settle()
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [GOOD], [GOOD, GOOD]) == [1, 1]


def test_the_server_closes_while_a_request_is_under_way(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        await ask(connection)
        assert await ask(connection) == b"hi"  # repeated

    assert play(tmp_path, work, [GOOD, None], [GOOD, GOOD]) == [2, 1]


def test_an_idle_connection_that_a_proxy_ends(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        await ask(connection)
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [GOOD, IDLE], [GOOD, GOOD]) == [2, 1]


def test_a_request_is_repeated_once_only(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        await ask(connection)
        with pytest.raises(Unknown, match="broke off"):
            await ask(connection)
        with pytest.raises(Unknown):
            await ask(connection)

    assert play(tmp_path, work, [GOOD, None], [None], [None]) == [2, 1, 1]


def test_an_answer_that_breaks_off_is_not_repeated(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        await ask(connection)
        with pytest.raises(Unknown):
            await ask(connection)

    for part in (GOOD[:10], GOOD[:-1]):
        folder = tmp_path / str(len(part))
        folder.mkdir()
        assert play(folder, work, [GOOD, part]) == [2]


def test_a_refusal_keeps_the_connection(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        with pytest.raises(Refused, match="503: why"):
            await ask(connection)
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [REFUSAL, GOOD, GOOD]) == [2]


def test_a_body_that_is_left_ends_the_connection(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        async with connection.send(Request("/"), timeout=5, silence=5):
            pass
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [GOOD, GOOD], [GOOD, GOOD]) == [1, 1]


def test_a_server_that_is_silent(tmp_path: Path) -> None:
    """Tell a request that may have arrived from one that has not, and repeat neither."""

    async def work(connection: Connection) -> None:
        await ask(connection)
        with pytest.raises(Unknown, match=r"no answer within 0\.2 s"):
            await ask(connection, timeout=0.2)
        connection.server = UnixServer(str(tmp_path / "nothing"))
        with pytest.raises(NoAnswer, match="no such file") as raised:
            await ask(connection)
        assert not isinstance(raised.value, Unknown)

    assert play(tmp_path, work, [GOOD, "hang"]) == [2]


def test_requests_at_the_same_time_wait_for_each_other(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        assert await asyncio.gather(*(ask(connection) for _ in range(10))) == [b"hi"] * 10

    assert play(tmp_path, work, [GOOD] * 11) == [10]


def test_a_request_that_is_cancelled_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    async def work(connection: Connection) -> None:
        await ask(connection)
        task = asyncio.create_task(ask(connection))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ask(connection) == b"hi"

    assert play(tmp_path, work, [GOOD, "hang"], [GOOD, GOOD]) == [2, 1]
