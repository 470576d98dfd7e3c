"""An HTTP/1.1 client on asyncio's streams, for container engines and for etcd.

h11 parses and writes the messages; this module moves bytes. http.client would block, so that a
stream of events would need a thread; client libraries take 5 MB and more. A body is read in pieces.
send() opens a connection for one request; http_connection.py has one for several.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
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


class Unknown(NoAnswer):
    """A request that was sent, and has no complete answer: the server may have carried it out."""


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

    def __init__(self, exchange: Exchange, silence: float | None) -> None:
        self._exchange, self._silence = exchange, silence

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end; raise Unknown after a break or a long silence."""
        try:
            async with asyncio.timeout(self._silence):
                return await self._exchange.data()
        except OSError as error:
            # TCP gives up with ETIMEDOUT, which is a TimeoutError, too.
            timed_out = isinstance(error, TimeoutError) and not error.errno
            text = f"no data for {self._silence:.3g} s" if timed_out else reason_of(error)
            raise Unknown(text) from None

    async def read_all(self, most: int) -> bytes:
        """Return the whole body; raise Unknown if it has more than `most` bytes."""
        body = bytearray()
        while piece := await self.read():
            body += piece
            if len(body) > most:
                raise Unknown(f"the answer exceeds {most >> 20} MB")
        return bytes(body)


class Exchange:
    """A connection with one request and its answer at a time.

    Attributes:
        is_sent: Bytes of the present request may have reached the server.
        is_answered: The server has sent bytes since the present request.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool = False
    ) -> None:
        """Send nothing yet.

        Args:
            reader: The reader of the connection.
            writer: The writer of the connection.
            keep: Ask the server to keep the connection open for further requests.
        """
        self._reader, self._writer, self._keep = reader, writer, keep
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=PIECE)
        self.is_sent = self.is_answered = False

    async def send(self, host: str, request: Request) -> None:
        """Send a request."""
        headers = [("Host", host), ("Connection", "keep-alive" if self._keep else "close")]
        headers += request.headers
        body = request.body
        if body is not None:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        try:
            head = h11.Request(
                method="GET" if body is None else "POST", target=request.target, headers=headers
            )
        except h11.LocalProtocolError as error:  # a value with a line end
            raise NoAnswer(f"the request is not HTTP ({error})") from None
        self.is_sent = True
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
                raise Unknown(_CUT)

    async def data(self) -> bytes:
        """Return a piece of the body; b"" at its end."""
        if self._http.their_state is not h11.SEND_BODY:
            return b""
        while isinstance(event := await self._next(), h11.Data):
            if event.data:
                return bytes(event.data)
        return b""

    def renew(self) -> bool:
        """Prepare the connection for another request; return False if it permits none."""
        if (self._http.our_state, self._http.their_state) != (h11.DONE, h11.DONE):
            return False
        if self._http.trailing_data[0] or not self.is_open:
            return False
        self._http.start_next_cycle()
        self.is_sent = self.is_answered = False
        return True

    @property
    def is_open(self) -> bool:
        """False if the server has closed the connection."""
        ended = self._reader.at_eof() or self._reader.exception() is not None
        return not ended and not self._writer.is_closing()

    def close(self) -> None:
        """Close the connection at once."""
        # close() would wait until the output is flushed, which no peer needs.
        self._writer.transport.abort()

    async def _next(self) -> object:
        """Return the next event of the connection; raise Unknown if there is none."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                piece = await self._reader.read(PIECE)
                self.is_answered = self.is_answered or bool(piece)
                self._http.receive_data(piece)
        except h11.RemoteProtocolError as error:
            broken_off = self._http.trailing_data[1]  # the peer has closed the connection
            raise Unknown(_CUT if broken_off else f"{_NOT_HTTP} ({str(error)[:80]})") from None
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
    exchange: Exchange | None = None
    try:
        async with within(timeout, lambda: exchange):
            exchange = Exchange(*await server.connect())
            await exchange.send(server.host, request)
            status = await exchange.status()
        if status != 200:
            raise Refused(status, await message_of(exchange))
        yield Response(exchange, silence)
    finally:
        if exchange is not None:
            exchange.close()


@contextlib.asynccontextmanager
async def within(
    timeout: float | None, exchange: Callable[[], Exchange | None]
) -> AsyncIterator[None]:
    """Limit the time of the block, which sends a request; translate errors of the connection.

    Args:
        timeout: Seconds; None for no limit.
        exchange: Returns the exchange of the request; None before the connection is open.

    Raises:
        NoAnswer: The block fails before it sends a byte.
        Unknown: The block fails later.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except (TimeoutError, OSError, ValueError) as error:
        timed_out = isinstance(error, TimeoutError) and not error.errno
        text = f"no answer within {timeout:.3g} s" if timed_out else reason_of(error)
        begun = exchange()
        raise (Unknown if begun is not None and begun.is_sent else NoAnswer)(text) from None


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


async def message_of(exchange: Exchange) -> dict[str, Any]:
    """Return the JSON object in the body of an error; an empty one without it."""
    try:
        found = json.loads(await Response(exchange, _MESSAGE_TIMEOUT).read_all(PIECE))
    except (NoAnswer, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
