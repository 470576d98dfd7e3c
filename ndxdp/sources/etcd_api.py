"""The requests to etcd's JSON gateway: pages of keys, the stream of changes, authentication.

etcd writes 64-bit numbers as strings, and leaves out fields that are 0, false or empty. Keys and
values are in base64. The fields are those of etcd's protocol buffers (rpc.proto, kv.proto).
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

from ndxdp.errors import UsageError
from ndxdp.sources.etcd_settings import Etcd, read_password
from ndxdp.sources.http import NoAnswer, Refused, Request, Server, send
from ndxdp.sources.json_pieces import Objects

log = logging.getLogger(__name__)

_PAGE = 1000  # keys
_PAGE_BYTES = 8 << 20
"""A page with more bytes is requested again with half as many keys."""

_KEY_BYTES = 4 << 20  # one key and its value; etcd takes 1.5 MB in base64 by default

_TIMEOUT = 5.0  # seconds for etcd to begin or continue an answer

_MALFORMED = "the answer is malformed"

# Codes of gRPC (google.golang.org/grpc/codes).
_FAILED_PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = 9, 11, 16


class Compacted(NoAnswer):
    """A revision that etcd no longer has, or does not have yet: all keys have to be read again."""


class Header(NamedTuple):
    """The header of an answer.

    Attributes:
        cluster: The id of the cluster.
        term: The term of the cluster's leader, which never decreases.
        revision: The revision of the store, which never decreases.
    """

    cluster: int
    term: int
    revision: int


class Item(NamedTuple):
    """A key with its value; the value is None after a deletion.

    Attributes:
        key: The key.
        value: The value.
        created: The revision of the key's creation.
        changed: The revision of its last change.
    """

    key: bytes
    value: bytes | None
    created: int
    changed: int


class Page(NamedTuple):
    """Some keys, in the order of the keys.

    Attributes:
        header: The header of the answer.
        items: The keys.
        total: The number of all keys in the range.
        more: More keys follow.
    """

    header: Header
    items: list[Item]
    total: int
    more: bool


class Changes(NamedTuple):
    """An answer of the stream.

    Attributes:
        items: The keys that have changed, in the order of the changes.
        revision: The last revision that is complete with this answer; 0 if none is.
    """

    items: list[Item]
    revision: int


class EtcdApi:
    """The requests to one member of etcd about all keys that begin with a text.

    Every method raises NoAnswer if the member gives no answer, or a malformed one.
    """

    def __init__(self, server: Server, settings: Etcd, token: str = "") -> None:
        """Send nothing yet.

        Args:
            server: The member.
            settings: The user, and the beginning of the keys.
            token: The token of an earlier authentication, which all members of a cluster accept.
        """
        self._server, self._settings, self.token = server, settings, token
        self._from = settings.directory.encode()
        self._to = self._from[:-1] + bytes([self._from[-1] + 1])

    async def count(self) -> Page:
        """Return a page without keys. A majority of the members confirms it."""
        return await self._page(self._from, 0, 0, count_only=True)

    async def changed_since(self, least: int, revision: int) -> Page:
        """Return, as of a revision, the keys that were changed at or after another revision.

        Args:
            least: The other revision.
            revision: The revision.

        Raises:
            Compacted: etcd does not have the revision any more, or not yet.
        """
        return await self._page(
            self._from, revision, _PAGE, keys_only=True, min_mod_revision=str(least)
        )

    async def pages(self) -> AsyncIterator[Page]:
        """Yield all keys in pages, as they are at the revision of the first page."""
        start, revision, limit = self._from, 0, _PAGE
        while True:
            try:
                page = await self._page(start, revision, limit)
            except _TooLong:
                if limit == 1:
                    raise
                limit //= 2
                continue
            revision = revision or page.header.revision
            yield page._replace(header=page.header._replace(revision=revision))
            if not page.more or not page.items:
                return
            start = page.items[-1].key + b"\0"

    async def _page(self, start: bytes, revision: int, limit: int, **more: bool | str) -> Page:
        asked: dict[str, Any] = {"key": _encode(start), "range_end": _encode(self._to)}
        asked |= {"limit": str(limit), "revision": str(revision), **more}
        most = _PAGE_BYTES if limit > 1 else _KEY_BYTES
        answer = await self._call("/v3/kv/range", asked, most)
        with _readable():
            return Page(
                _header(answer),
                [_item(each, deleted=False) for each in answer.get("kvs") or ()],
                int(answer.get("count") or 0),
                answer.get("more") is True,
            )

    @contextlib.asynccontextmanager
    async def changes(self, revision: int) -> AsyncIterator[AsyncIterator[Changes]]:
        """Open the stream of changes after a revision.

        Raises:
            Compacted: etcd no longer has all of these changes.
        """
        asked = {
            "key": _encode(self._from),
            "range_end": _encode(self._to),
            "start_revision": str(revision + 1),
            "progress_notify": True,
            "fragment": True,
        }
        # A member without a leader ends the stream, instead of being silent.
        headers = (*self._headers(), ("Grpc-Metadata-hasleader", "true"))
        body = json.dumps({"create_request": asked}).encode()
        request = Request("/v3/watch", body, headers)
        async with (
            self._authenticated(),
            send(self._server, request, timeout=_TIMEOUT, silence=None) as response,
        ):

            async def each() -> AsyncIterator[Changes]:
                objects = Objects(array=False)
                while piece := await response.read():
                    with _readable():
                        found = [_changes(answer) for answer in objects.feed(piece)]
                    for changes in found:
                        yield changes

            yield each()

    async def _call(self, target: str, asked: dict[str, Any], most: int) -> dict[str, Any]:
        """Return the answer to a request; renew the token once if etcd does not accept it."""
        body = json.dumps(asked).encode()
        for last in (False, True):
            await self._authenticate()
            try:
                return await self._once(Request(target, body, self._headers()), most)
            except Refused as refused:
                if last or not self._forget_token(refused):
                    raise _known(refused) from None
        raise AssertionError

    async def _once(self, request: Request, most: int) -> dict[str, Any]:
        async with send(self._server, request, timeout=_TIMEOUT, silence=_TIMEOUT) as response:
            body = bytearray()
            while piece := await response.read():
                body += piece
                if len(body) > most:
                    raise _TooLong(f"the answer exceeds {most >> 20} MB")
        with _readable():
            answer = json.loads(body)
            if not isinstance(answer, dict):
                raise ValueError("not an object")
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
            raise NoAnswer(error.message) from None
        asked = {"name": self._settings.user, "password": password}
        request = Request("/v3/auth/authenticate", json.dumps(asked).encode())
        try:
            answer = await self._once(request, _KEY_BYTES)
        except Refused as refused:
            if refused.body.get("code") == _FAILED_PRECONDITION:
                return  # authentication is not enabled, so that everybody may read
            raise
        token = answer.get("token")
        if not isinstance(token, str) or not token.isascii():
            raise NoAnswer(_MALFORMED)
        self.token = token

    @contextlib.asynccontextmanager
    async def _authenticated(self) -> AsyncIterator[None]:
        """Translate a refusal of the stream within the block."""
        try:
            yield
        except Refused as refused:
            self._forget_token(refused)
            raise _known(refused) from None

    def _forget_token(self, refused: Refused) -> bool:
        """Forget the token if etcd does not accept it; return True if it does not.

        A token expires, does not survive a restart of all members, and becomes invalid when the
        users or roles change (`revision of auth store is old`).
        """
        text = str(refused)
        invalid = refused.body.get("code") == _UNAUTHENTICATED or "auth store" in text
        if not invalid or not self.token:
            return False
        log.debug("%s: the token is not valid any more", self._server.host)
        self.token = ""
        return True


class _TooLong(NoAnswer):
    """An answer that is too long."""


def _known(refused: Refused) -> NoAnswer:
    """Return the exception for a refusal."""
    if refused.body.get("code") == _OUT_OF_RANGE:
        return Compacted(str(refused))
    return refused


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of the block, which parses an answer, into NoAnswer."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NoAnswer(f"{_MALFORMED} ({str(error)[:100]})") from None


def _changes(answer: dict[str, Any]) -> Changes:
    """Return an answer of the stream, whose first one has no keys.

    Raises:
        NoAnswer: etcd ends the stream.
        Compacted: etcd no longer has the revision.
    """
    if "error" in answer:
        found = answer["error"]
        message = found.get("message") if isinstance(found, dict) else found
        raise NoAnswer(f"the stream has ended: {' '.join(str(message).split())[:200]}")
    result = answer["result"]
    if result.get("canceled"):
        if int(result.get("compact_revision") or 0):
            raise Compacted("the revision was compacted")
        why = result.get("cancel_reason") or "etcd gives no reason"
        raise NoAnswer(f"the stream was cancelled: {str(why)[:200]}")
    if result.get("created"):
        return Changes([], 0)
    events = result.get("events") or ()
    items = [_item(each["kv"], deleted=each.get("type") == "DELETE") for each in events]
    if result.get("fragment"):
        return Changes(items, 0)
    # The header of an answer with events may be ahead of these events.
    return Changes(items, items[-1].changed if items else _header(result).revision)


def _header(answer: dict[str, Any]) -> Header:
    found = answer["header"]
    return Header(
        int(found.get("cluster_id") or 0),
        int(found.get("raft_term") or 0),
        int(found.get("revision") or 0),
    )


def _item(found: dict[str, Any], *, deleted: bool) -> Item:
    value = None if deleted else _decode(found.get("value") or "")
    created, changed = found.get("create_revision") or 0, found.get("mod_revision") or 0
    return Item(_decode(found["key"]), value, int(created), int(changed))


def _encode(text: bytes) -> str:
    return base64.b64encode(text).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
