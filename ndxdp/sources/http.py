"""An HTTP/1.1 client on asyncio's streams, for container engines and for etcd.

h11 parses and writes the messages; this module moves bytes. http.client would block, so that a
stream of events would need a thread; client libraries take 5 MB and more. Each connection has one
request. A body is read in pieces and never stored as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, Protocol

import h11

from ndxdp.printable import printable

PIECE = 65536
"""Bytes that one read returns at most, and that the head of a message may have."""

_MESSAGE_TIMEOUT = 5.0  # seconds for the body of an error
_CUT = "the connection broke off"
_NOT_HTTP = "the answer is not HTTP"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoAnswer(Exception):
    """A failed request: the server is unreachable, silent, refuses, or sends a malformed answer.

    The text is the reason, for the log.
    """


class Refused(NoAnswer):
    """An answer with another status than 200.

    Attributes:
        status: The status.
        body: The JSON object in the body; empty if there is none.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        """Make the text of the status and of the message in the body.

        Docker's body is `{"message": "…"}`; etcd's has `error` with the same text, too.
        """
        self.status, self.body = status, body
        found = body.get("message") or body.get("error")
        words = f": {printable(' '.join(str(found).split())[:200])}" if found else ""
        super().__init__(f"HTTP status {status}{words}")


class Server(Protocol):
    """A server that a connection can be opened to."""

    @property
    def host(self) -> str:
        """The value of the header `Host`."""

    async def connect(self) -> Streams:
        """Open a connection; raise OSError, ValueError or NoAnswer."""


class UnixServer(NamedTuple):
    """A server behind a unix socket.

    Attributes:
        path: The path of the socket.
        host: The value of the header `Host`.
    """

    path: str
    host: str = "localhost"

    async def connect(self) -> Streams:
        """Open a connection; raise OSError, or ValueError for a path with a NUL."""
        return await asyncio.open_unix_connection(self.path, limit=PIECE)


class Request(NamedTuple):
    """A request.

    Attributes:
        target: The path and query.
        body: A JSON text to send by POST; None for GET.
        headers: More headers.
    """

    target: str
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()


class Response:
    """The body of an answer with status 200, which is read in pieces."""

    def __init__(self, exchange: _Exchange, silence: float | None) -> None:
        self._exchange, self._silence = exchange, silence

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end; raise NoAnswer after a break or a long silence."""
        try:
            async with asyncio.timeout(self._silence):
                return await self._exchange.data()
        except TimeoutError:
            raise NoAnswer(f"no data for {self._silence:g} s") from None
        except OSError as error:
            raise NoAnswer(reason_of(error)) from None

    async def read_all(self, most: int) -> bytes:
        """Return the whole body; raise NoAnswer if it has more than `most` bytes."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > most:
                raise NoAnswer(f"the answer exceeds {most >> 20} MB")
        return bytes(body)


class _Exchange:
    """One request and its answer on a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=PIECE)

    async def send(self, host: str, request: Request) -> None:
        """Send the request."""
        headers = [("Host", host), ("Connection", "close"), *request.headers]
        body = request.body
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        try:
            head = h11.Request(
                method="GET" if body is None else "POST", target=request.target, headers=headers
            )
        except h11.LocalProtocolError as error:  # a value with a line end
            raise NoAnswer(f"the request is not HTTP ({error})") from None
        self._writer.write(self._http.send(head) or b"")
        if body is not None:
            self._writer.write(self._http.send(h11.Data(data=body)) or b"")
        self._http.send(h11.EndOfMessage())
        await self._writer.drain()

    async def status(self) -> int:
        """Read the head of the answer, and return its status."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code
            if not isinstance(event, h11.InformationalResponse):  # after 1xx another head follows
                raise NoAnswer(_CUT)

    async def data(self) -> bytes:
        """Return a piece of the body; b"" at its end."""
        while isinstance(event := await self._next(), h11.Data):
            if event.data:
                return bytes(event.data)
        return b""

    async def _next(self) -> object:
        """Return the next event of the connection; raise NoAnswer if there is none."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(PIECE))
        except h11.RemoteProtocolError as error:
            broken_off = self._http.trailing_data[1]  # the peer has closed the connection
            raise NoAnswer(_CUT if broken_off else f"{_NOT_HTTP} ({str(error)[:80]})") from None
        return event


@contextlib.asynccontextmanager
async def send(
    server: Server, request: Request, *, timeout: float | None, silence: float | None
) -> AsyncIterator[Response]:
    """Send a request; yield its response, and close the connection with the block.

    Args:
        server: The server.
        request: The request.
        timeout: Seconds for the head of the answer; None for no limit.
        silence: Seconds without a byte of the body; None for a stream, which may be silent.

    Raises:
        NoAnswer: The server sends no answer.
        Refused: The server sends an answer with another status than 200.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await server.connect()
                exchange = _Exchange(reader, writer)
                await exchange.send(server.host, request)
                status = await exchange.status()
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout:g} s") from None
        except (OSError, ValueError) as error:
            raise NoAnswer(reason_of(error)) from None
        if status != 200:
            raise Refused(status, await _object(Response(exchange, _MESSAGE_TIMEOUT)))
        yield Response(exchange, silence)
    finally:
        if writer is not None:
            # close() would wait until the output is flushed, which no peer needs.
            writer.transport.abort()


@contextlib.asynccontextmanager
async def get(
    socket_path: str, target: str, *, timeout: float | None, silence: float | None
) -> AsyncIterator[Response]:
    """Send a GET request to the server behind a unix socket; see send()."""
    server, request = UnixServer(socket_path), Request(target)
    async with send(server, request, timeout=timeout, silence=silence) as response:
        yield response


def reason_of(error: OSError | ValueError) -> str:
    """Return the text of an error of a socket."""
    text = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.errno and (text or "").startswith("Connect call"):
        text = os.strerror(error.errno)  # asyncio's text repeats the address
    if isinstance(error, ConnectionError) and not (text or str(error)):
        return _CUT  # asyncio, during the handshake of TLS
    return (text or str(error) or type(error).__name__).lower()


async def _object(response: Response) -> dict[str, Any]:
    """Return the JSON object in the body of an error; an empty one without it."""
    try:
        found = json.loads(await response.read_all(PIECE))
    except (NoAnswer, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
