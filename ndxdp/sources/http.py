"""HTTP/1.1 GET over a unix socket: what the API of a container engine needs, and no more.

No client library, nor http.client. That one blocks, so that the stream of events would want a
thread, and costs 1.2 MB; the libraries cost 10 MB and more. This takes asyncio's streams, which
the daemon has anyhow. One request a connection; a body comes in pieces and is never held whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

PIECE = 65536
"""Bytes that are read at once, at most; and of a line of the head."""

_HEADERS_MAX = 100
_MESSAGE_WITHIN = 5.0  # seconds for the body of an error
_REQUEST = "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_CUT = "it broke off"
_NOT_HTTP = "what it says is not HTTP"


class NoAnswer(Exception):
    """The far end cannot be reached, is silent, breaks off, refuses, or says what is no answer.

    Its text is the reason, for a line of the log. It never reaches the user otherwise.
    """


class Response:
    """The body of an answer with status 200, still to come."""

    def __init__(
        self, reader: asyncio.StreamReader, headers: dict[str, str], silence: float | None
    ) -> None:
        self._reader, self._silence = reader, silence
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._between = False  # a chunk has been read, but not the line end behind it
        # Bytes left of the body or the chunk; None if the body ends with the connection.
        self._left: int | None = None
        if self._chunked:
            self._left = 0
        elif "content-length" in headers:
            self._left = _number(headers["content-length"], 10)

    async def read(self) -> bytes:
        """The next piece, b"" at the end. NoAnswer if it breaks off, or is silent too long."""
        try:
            async with asyncio.timeout(self._silence):
                return await self._read()
        except OSError as error:
            raise NoAnswer(_said(error)) from None

    async def _read(self) -> bytes:
        if self._chunked and not self._left:
            if self._between and await _line(self._reader):
                raise NoAnswer(_NOT_HTTP)
            size = (await _line(self._reader)).partition(";")[0].strip()
            self._left = _number(size, 16)
            self._between = True
            if not self._left:  # trailers may follow, which say nothing to us
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
    socket_path: str, target: str, *, within: float | None, silence: float | None
) -> AsyncIterator[Response]:
    """Send a request; the block has its response, and the connection ends with the block.

    within: seconds until the head is there. silence: seconds without a byte of the body. None for
    a stream, which may be silent. NoAnswer for every status but 200, too.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        try:
            async with asyncio.timeout(within):
                reader, writer = await asyncio.open_unix_connection(socket_path, limit=PIECE)
                writer.write(_REQUEST.format(target).encode())
                status, headers = await _head(reader)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise NoAnswer(_said(error)) from None
        if status != 200:
            said = await _message(Response(reader, headers, _MESSAGE_WITHIN))
            raise NoAnswer(f"HTTP status {status}{said}")
        yield Response(reader, headers, silence)
    finally:
        if writer is not None:
            # Not close(), which waits: nothing is left that anybody should get.
            writer.transport.abort()


def _said(error: OSError | ValueError) -> str:
    if isinstance(error, TimeoutError):
        return "it is silent"
    text = error.strerror if isinstance(error, OSError) else None
    return (text or str(error) or type(error).__name__).lower()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Status, and headers by their names in lower case."""
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
        if int(code) >= 200:  # 1xx announces another head
            return int(code), headers


async def _line(reader: asyncio.StreamReader) -> str:
    """The next line without its end."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError:
        raise NoAnswer(_CUT) from None
    except asyncio.LimitOverrunError:
        raise NoAnswer(_NOT_HTTP) from None
    return line.rstrip(b"\r\n").decode("latin-1")


def _number(text: str, base: int) -> int:
    try:
        number = int(text, base)
    except ValueError:
        number = -1
    if number < 0:
        raise NoAnswer(_NOT_HTTP)
    return number


async def _message(response: Response) -> str:
    """`: ` and what an engine says in the body of an error, `{"message": "…"}`; "" if nothing."""
    try:
        found = json.loads(await response.read())["message"]
    except (NoAnswer, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return f": {' '.join(str(found).split())[:200]}"
