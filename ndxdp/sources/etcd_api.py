"""Ranges of keys in etcd: pages of them, their number, and the stream of their changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from ndxdp.sources.etcd_session import Compacted, Session, TooLong
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_wire import (
    OPS,
    Header,
    Item,
    encode,
    end_of,
    header_of,
    item_of,
    readable,
)
from ndxdp.sources.http import NoAnswer, Server
from ndxdp.sources.json_pieces import Objects

_PAGE = 1000  # keys
_PAGE_BYTES = 8 << 20
"""A page with more bytes is requested again with half as many keys."""

_KEY_BYTES = 4 << 20  # one key and its value; etcd takes 1.5 MB in base64 by default


class Page(NamedTuple):
    """Some keys, in the order of the ranges, and within a range in the order of the keys.

    Attributes:
        header: The header of the answer.
        items: The keys.
        total: The number of all keys in the range, or in all ranges.
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
        revision: The last revision that is complete with this answer; 0 for a fragment of an
            answer, and for the first answer.
        number: The number of the range that the answer is about, from 1 on; 0 if it is about none.
    """

    items: list[Item]
    revision: int
    number: int = 1


class EtcdApi:
    """The requests to one member of etcd about all keys that begin with one of several texts.

    Every method raises NoAnswer if the member gives no answer, or a malformed one.

    Attributes:
        session: The session with the member.
    """

    def __init__(
        self, server: Server, settings: Etcd, token: str = "", beginnings: Sequence[str] = ()
    ) -> None:
        """Send nothing yet.

        Args:
            server: The member.
            settings: The user, and the beginning of this host's keys.
            token: The token of an earlier authentication, which all members of a cluster accept.
            beginnings: The beginnings of the keys; empty for the keys of this host.
        """
        self.session = Session(server, settings, token)
        self._ranges = ranges_of(beginnings or [settings.directory])

    def close(self) -> None:
        """Close the connection; a later request opens another one."""
        self.session.close()

    async def confirm(self) -> None:
        """Return when a majority has confirmed that the member belongs to it."""
        await self.session.call("/v3/kv/range", {"key": encode(self._ranges[0].start)})

    async def count(self) -> Page:
        """Return a page without keys. A majority of the members confirms it."""
        return await self._pages_of_all([0] * len(self._ranges), count_only=True)

    async def changed_since(self, least: int, revisions: Sequence[int]) -> Page:
        """Return, as of a revision of each range, the keys that were changed since another one.

        Args:
            least: The other revision; keys that were changed by it belong to the answer.
            revisions: The revision of each range.

        Raises:
            Compacted: etcd does not have a revision any more, or not yet.
        """
        return await self._pages_of_all(
            revisions, limit=str(_PAGE), keys_only=True, min_mod_revision=str(least)
        )

    async def _pages_of_all(self, revisions: Sequence[int], **more: bool | str) -> Page:
        """Return the first pages of all ranges as one page, with the first header."""
        asked = [
            {"request_range": each.asked(revision=str(revision), **more)}
            for each, revision in zip(self._ranges, revisions, strict=True)
        ]
        found: list[Page] = []
        for at in range(0, len(asked), OPS):
            part = asked[at : at + OPS]
            answer = await self.session.call("/v3/kv/txn", {"success": part}, _PAGE_BYTES)
            with readable():
                header = header_of(answer)
                responses = answer["responses"]
                if len(responses) != len(part):
                    raise ValueError("another number of ranges")
                found += [_page(each["response_range"], header) for each in responses]
        return Page(
            found[0].header,
            [item for page in found for item in page.items],
            sum(page.total for page in found),
            any(page.more for page in found),
        )

    async def pages(self) -> AsyncIterator[Page]:
        """Yield all keys in pages, as they are at the revision of the first page.

        The total of a page is that of its range.
        """
        async for page in pages_of(self.session, self._ranges):
            yield page

    @contextlib.asynccontextmanager
    async def changes(self, revisions: Sequence[int]) -> AsyncIterator[AsyncIterator[Changes]]:
        """Open the stream of changes after a revision of each range.

        Raises:
            Compacted: etcd no longer has all of these changes.
        """
        asked = [
            {
                "create_request": each.asked(
                    start_revision=str(revision + 1),
                    progress_notify=True,
                    fragment=True,
                    watch_id=str(number),
                )
            }
            for number, (each, revision) in enumerate(zip(self._ranges, revisions, strict=True), 1)
        ]
        body = "".join(map(json.dumps, asked)).encode()
        # A member without a leader ends the stream, instead of being silent.
        leader = ("Grpc-Metadata-hasleader", "true")
        async with self.session.stream("/v3/watch", body, leader) as response:

            async def each() -> AsyncIterator[Changes]:
                objects = Objects(array=False)
                fragments: dict[int, list[Item]] = {}
                while piece := await response.read():
                    with readable():
                        found = [_changes(answer) for answer in objects.feed(piece)]
                        if any(not 0 <= changes.number <= len(asked) for changes in found):
                            raise ValueError("a range that was not asked for")
                    for changes in found:
                        parts = fragments.setdefault(changes.number, [])
                        parts += changes.items
                        if changes.revision or not parts:
                            yield changes._replace(items=fragments.pop(changes.number))

            yield each()


class Range(NamedTuple):
    """The keys from `start` to before `end`."""

    start: bytes
    end: bytes

    def asked(self, **more: bool | str) -> dict[str, Any]:
        """Return the fields of a request for the range, and more fields."""
        return {"key": encode(self.start), "range_end": encode(self.end), **more}


def ranges_of(beginnings: Sequence[str]) -> list[Range]:
    """Return the ranges of all keys that begin with one of some texts."""
    return [Range(each, end_of(each)) for each in map(str.encode, beginnings)]


async def pages_of(session: Session, ranges: Sequence[Range]) -> AsyncIterator[Page]:
    """Yield all keys of ranges in pages, as they are at the revision of the first page.

    The total of a page is that of its range.
    """
    revision = 0
    for number, each in enumerate(ranges, 1):
        start, limit, more = each.start, _PAGE, True
        while more:
            asked = each.asked(revision=str(revision), limit=str(limit), key=encode(start))
            most = _PAGE_BYTES if limit > 1 else _KEY_BYTES
            try:
                answer = await session.call("/v3/kv/range", asked, most)
            except TooLong:
                if limit == 1:
                    raise
                limit //= 2
                continue
            with readable():
                page = _page(answer, header_of(answer))
            revision = revision or page.header.revision
            more = page.more and bool(page.items)
            if more:
                start = page.items[-1].key + b"\0"
            yield page._replace(
                header=page.header._replace(revision=revision),
                more=more or number < len(ranges),
            )


def _page(answer: dict[str, Any], header: Header) -> Page:
    return Page(
        header,
        [item_of(each) for each in answer.get("kvs") or ()],
        int(answer.get("count") or 0),
        answer.get("more") is True,
    )


def _changes(answer: dict[str, Any]) -> Changes:
    """Return an answer of the stream, whose first one for each range has no keys.

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
    number = int(result.get("watch_id") or 0)
    if result.get("created"):
        return Changes([], 0, number)
    events = result.get("events") or ()
    items = [item_of(each["kv"], deleted=each.get("type") == "DELETE") for each in events]
    if result.get("fragment"):
        return Changes(items, 0, number)
    # The header of an answer with events may be ahead of these events.
    return Changes(items, items[-1].changed if items else header_of(result).revision, number)
