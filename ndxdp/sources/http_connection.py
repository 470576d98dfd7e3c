"""An HTTP connection that is used for several requests, one after another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from ndxdp.sources.http import (
    Exchange,
    NoAnswer,
    Refused,
    Request,
    Response,
    Server,
    message_of,
    within,
)

_REQUEST_TIMEOUT = 408
"""The status that proxies send before they close an idle connection (RFC 9110, 15.5.9)."""


class Connection:
    """A connection to a server, which is opened with the first request and kept open.

    Attributes:
        opened: The number of connections that were opened so far.
    """

    def __init__(self, server: Server) -> None:
        """Open nothing yet."""
        self.server, self.opened = server, 0
        self._exchange: Exchange | None = None
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def send(
        self, request: Request, *, timeout: float, silence: float
    ) -> AsyncIterator[Response]:
        """Send a request; yield its response. Requests at the same time wait for each other.

        The server may close the connection while it is idle. A request that it does not answer for
        that reason is sent once more on a new connection (RFC 9112, 9.3.1). So it must do no harm
        to carry it out twice. The connection is closed if the block leaves a part of the body.

        Args:
            request: The request.
            timeout: Seconds for the head of the answer.
            silence: Seconds without a byte of the body.

        Raises:
            NoAnswer: The server does not receive the request.
            Unknown: The server sends no answer, or not all of it, and may have carried it out.
            Refused: The server sends an answer with another status than 200.
        """
        async with self._lock:
            is_kept = False
            try:
                is_old = self._exchange is not None and self._exchange.is_open
                try:
                    exchange, status = await self._begin(request, timeout)
                    again = is_old and status == _REQUEST_TIMEOUT
                except NoAnswer:
                    found = self._exchange
                    is_closed = found is not None and not found.is_answered and not found.is_open
                    again = is_old and is_closed
                    if not again:
                        raise
                if again:
                    self.close()
                    exchange, status = await self._begin(request, timeout)
                if status != 200:
                    message = await message_of(exchange)
                    is_kept = exchange.renew()
                    raise Refused(status, message)
                yield Response(exchange, silence)
                is_kept = exchange.renew()
            finally:
                if not is_kept:
                    self.close()

    async def _begin(self, request: Request, timeout: float) -> tuple[Exchange, int]:
        """Send a request, on a new connection if need be; return the status of the answer."""
        if self._exchange is not None and not self._exchange.is_open:
            self.close()
        async with within(timeout, lambda: self._exchange):
            if self._exchange is None:
                self._exchange = Exchange(*await self.server.connect(), keep=True)
                self.opened += 1
            await self._exchange.send(self.server.host, request)
            return self._exchange, await self._exchange.status()

    def close(self) -> None:
        """Close the connection; a later request opens another one."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
