"""The requests to one member of etcd: a connection, a token, and the meaning of a refusal."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from ndxdp.errors import UsageError
from ndxdp.sources.etcd_settings import Endpoint, Etcd, read_password
from ndxdp.sources.etcd_wire import MALFORMED, readable
from ndxdp.sources.http import NoAnswer, Refused, Request, Response, Server, Unknown, send
from ndxdp.sources.http_connection import Connection
from ndxdp.sources.tls import TcpServer, context_of

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # seconds for etcd to begin or continue an answer
_ANSWER_BYTES = 4 << 20  # one key and its value; etcd takes 1.5 MB in base64 by default

# Codes of gRPC (google.golang.org/grpc/codes).
_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _RESOURCE_EXHAUSTED = 3, 5, 7, 8
_FAILED_PRECONDITION, _OUT_OF_RANGE, _UNIMPLEMENTED, _UNAUTHENTICATED = 9, 11, 12, 16
_NOT_DONE = (
    *(_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED, _RESOURCE_EXHAUSTED),
    *(_FAILED_PRECONDITION, _OUT_OF_RANGE, _UNIMPLEMENTED, _UNAUTHENTICATED),
)
"""The codes of requests that etcd has certainly not carried out."""


_LEADER_CHANGED = "leader changed"  # in the text of a refusal; etcd has not even begun then


class Compacted(NoAnswer):
    """A revision that etcd no longer has: all keys have to be read again."""


class Future(Compacted):
    """A revision that etcd does not have yet: its history is another one."""


class LeaseLost(NoAnswer):
    """A lease that etcd does not have: it has expired, or was revoked."""


class Denied(NoAnswer):
    """A request that the user has no permission for, or a user or password that is wrong."""


class TooLong(Unknown):
    """An answer that is too long."""


class Session:
    """The requests to one member.

    Attributes:
        server: The member.
        token: The token of the user, which all members of a cluster accept; "" for none.
        connection: The connection of call().
    """

    def __init__(
        self, server: Server, settings: Etcd, token: str = "", timeout: float | None = None
    ) -> None:
        """Send nothing yet.

        Args:
            server: The member.
            settings: The user.
            token: The token of an earlier authentication.
            timeout: Seconds for the member to begin or continue an answer; None for 5.
        """
        self.server, self.token = server, token
        self.connection = Connection(server)
        self._settings = settings
        self._timeout = _TIMEOUT if timeout is None else timeout

    async def call(
        self, target: str, asked: dict[str, Any], most: int = _ANSWER_BYTES
    ) -> dict[str, Any]:
        """Return the answer to a request, with a new token if etcd does not accept the former one.

        A read that the election of a leader ends is sent once more: the member knows the new one.

        Args:
            target: The path.
            asked: The request.
            most: Bytes that the answer may have.

        Raises:
            NoAnswer: etcd has certainly not carried out the request. Compacted, LeaseLost and
                Denied are the reasons that callers tell apart.
            Unknown: The answer does not come, or is malformed; etcd may have carried it out.
        """
        body = json.dumps(asked).encode()
        for last in (False, True):
            await self._authenticate()
            try:
                return await self._once(Request(target, body, self._headers()), most)
            except Refused as refused:
                if last or not (_LEADER_CHANGED in str(refused) or self._forget_token(refused)):
                    raise _known(refused) from None
        raise AssertionError

    @contextlib.asynccontextmanager
    async def stream(
        self, target: str, body: bytes, *headers: tuple[str, str]
    ) -> AsyncIterator[Response]:
        """Send a request, on a connection of its own, whose answer has no end."""
        await self._authenticate()
        request = Request(target, body, (*self._headers(), *headers))
        try:
            async with send(self.server, request, timeout=self._timeout, silence=None) as response:
                yield response
        except Refused as refused:
            self._forget_token(refused)
            raise _known(refused) from None

    def close(self) -> None:
        """Close the connection; a later request opens another one."""
        self.connection.close()

    async def _once(self, request: Request, most: int) -> dict[str, Any]:
        async with self.connection.send(
            request, timeout=self._timeout, silence=self._timeout
        ) as response:
            body = bytearray()
            while piece := await response.read():
                body += piece
                if len(body) > most:
                    raise TooLong(f"the answer exceeds {most >> 20} MB")
        with readable():
            answer = json.loads(body)
            if not isinstance(answer, dict):
                raise ValueError("not an object")
            # An answer that is a stream, such as that of a keepalive, begins before it fails.
            error = answer.get("error")
            if isinstance(error, dict):
                found = {"message": error.get("message"), "code": error.get("grpc_code")}
                raise Refused(int(error.get("http_code") or 500), found)
            return answer

    def _headers(self) -> tuple[tuple[str, str], ...]:
        return (("Authorization", self.token),) if self.token else ()

    async def _authenticate(self) -> None:
        """Get a token for the user, unless there is one, or no user."""
        if self.token or not self._settings.user:
            return
        try:
            password = read_password(self._settings.password_file)
        except UsageError as error:
            raise NoAnswer(error.message) from error
        asked = {"name": self._settings.user, "password": password}
        request = Request("/v3/auth/authenticate", json.dumps(asked).encode())
        try:
            answer = await self._once(request, _ANSWER_BYTES)
        except Unknown as reason:
            raise NoAnswer(str(reason)) from None  # the request itself is not sent yet
        except Refused as refused:
            if refused.body.get("code") == _FAILED_PRECONDITION:
                return  # authentication is not enabled, so that everybody may read
            if refused.body.get("code") == _INVALID_ARGUMENT:
                raise Denied(str(refused)) from None
            raise NoAnswer(str(refused)) from None
        token = answer.get("token")
        if not isinstance(token, str) or not token.isascii():
            raise NoAnswer(MALFORMED)
        self.token = token

    def _forget_token(self, refused: Refused) -> bool:
        """Forget the token if etcd does not accept it; return True if it does not.

        A token expires, does not survive a restart of all members, and becomes invalid when the
        users or roles change (`revision of auth store is old`).
        """
        text = str(refused)
        invalid = refused.body.get("code") == _UNAUTHENTICATED or "auth store" in text
        if not invalid or not self.token:
            return False
        log.debug("%s: the token is not valid any more", self.server.host)
        self.token = ""
        return True


def session_at(
    endpoint: Endpoint, settings: Etcd, token: str = "", timeout: float | None = None
) -> Session:
    """Return a session with a member; the files of TLS are read again, as they are renewed.

    Raises:
        NoAnswer: A file of TLS cannot be read. The cause is the UsageError.
    """
    try:
        context = context_of(settings) if endpoint.tls else None
    except UsageError as error:
        raise NoAnswer(error.message) from error
    return Session(TcpServer(endpoint, context), settings, token, timeout)


def _known(refused: Refused) -> NoAnswer:
    """Return the exception for a refusal."""
    code, text = refused.body.get("code"), str(refused)
    if code == _OUT_OF_RANGE:
        return Future(text) if "future revision" in text else Compacted(text)
    if code == _NOT_FOUND and "lease" in text:
        return LeaseLost(text)
    # `user name is empty` is an argument of a request without a token.
    if code == _PERMISSION_DENIED or "user name is empty" in text:
        return Denied(text)
    return refused if code in _NOT_DONE else Unknown(text)
