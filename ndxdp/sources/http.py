"""HTTP/1.1 GET over a unix socket, as far as the API of a container engine needs it.

The module uses asyncio's streams, which the daemon has loaded already. http.client would block, so
that the stream of events would need a thread, and takes 1.2 MB; client libraries take 10 MB and
more. Each connection has one request. A body is read in pieces and never stored as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

PIECE = 65536
"""Bytes that one read returns at most, and that a line of the head may have."""

_HEADERS_MAX = 100
_MESSAGE_TIMEOUT = 5.0  # seconds for the body of an error
_REQUEST = "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_CUT = "the connection broke off"
_NOT_HTTP = "the answer is not HTTP"


class NoAnswer(Exception):
    """A failed request: the engine is unreachable, silent, refuses, or sends a malformed answer.

    The text is the reason, for the log.
    """


class Response:
    """The body of an answer with status 200, which is read in pieces."""

    def __init__(
        self, reader: asyncio.StreamReader, headers: dict[str, str], silence: float | None
    ) -> None:
        self._reader, self._silence = reader, silence
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._between = False  # a chunk has been read, but not the line end after it
        # The remaining bytes of the body or chunk; None if the body ends with the connection.
        self._left: int | None = None
        if self._chunked:
            self._left = 0
        elif "content-length" in headers:
            self._left = _number(headers["content-length"], 10)

    async def read(self) -> bytes:
        """Return the next piece, b"" at the end; raise NoAnswer after a break or a long silence."""
        try:
            async with asyncio.timeout(self._silence):
                return await self._read()
        except OSError as error:
            raise NoAnswer(_reason(error)) from None

    async def _read(self) -> bytes:
        if self._chunked and not self._left:
            if self._between and await _line(self._reader):
                raise NoAnswer(_NOT_HTTP)
            size = (await _line(self._reader)).partition(";")[0].strip()
            self._left = _number(size, 16)
            self._between = True
            if not self._left:  # trailers may follow, which ndxdp ignores
                self._chunked = False
        if self._left == 0:
            return b""
        piece = await self._reader.read(min(self._left or PIECE, PIECE))
        if self._left is not None:
            if not piece:
                raise NoAnswer(_CUT)
            self._left -= len(piece)
        return piece


@contextlib.asynccontextmanager
async def get(
    socket_path: str, target: str, *, timeout: float | None, silence: float | None
) -> AsyncIterator[Response]:
    """Send a request; yield its response, and close the connection with the block.

    Args:
        socket_path: The path of the engine's socket.
        target: The path and query of the request.
        timeout: Seconds for the head of the answer; None for no limit.
        silence: Seconds without a byte of the body; None for a stream, which may be silent.

    Raises:
        NoAnswer: The engine sends no answer, or one with another status than 200.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(socket_path, limit=PIECE)
                writer.write(_REQUEST.format(target).encode())
                status, headers = await _head(reader)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise NoAnswer(_reason(error)) from None
        if status != 200:
            message = await _message(Response(reader, headers, _MESSAGE_TIMEOUT))
            raise NoAnswer(f"HTTP status {status}{message}")
        yield Response(reader, headers, silence)
    finally:
        if writer is not None:
            # close() would wait until the output is flushed, which no peer needs.
            writer.transport.abort()


def _reason(error: OSError | ValueError) -> str:
    """Return the text of an error of the socket."""
    if isinstance(error, TimeoutError):
        return "the engine is silent"
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).lower()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Read the head; return the status, and the headers by their names in lower case."""
    while True:
        version, _, rest = (await _line(reader)).partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdecimal()):
            raise NoAnswer(_NOT_HTTP)
        headers: dict[str, str] = {}
        while line := await _line(reader):
            name, colon, value = line.partition(":")
            if not colon or len(headers) >= _HEADERS_MAX:
                raise NoAnswer(_NOT_HTTP)
            headers[name.strip().lower()] = value.strip()
        if int(code) >= 200:  # after 1xx another head follows
            return int(code), headers


async def _line(reader: asyncio.StreamReader) -> str:
    """Return the next line without its end."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        raise NoAnswer(_CUT) from None
    except asyncio.LimitOverrunError:
        raise NoAnswer(_NOT_HTTP) from None
    return line.rstrip(b"\r\n").decode("latin-1")


def _number(text: str, base: int) -> int:
    """Return a length; raise NoAnswer if the text is not one."""
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise NoAnswer(_NOT_HTTP)
    return number


async def _message(response: Response) -> str:
    """Return `: ` and the message in the body of an error, `{"message": "…"}`; "" without one."""
    try:
        found = json.loads(await response.read())["message"]
    except (NoAnswer, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f": {' '.join(str(found).split())[:200]}"
