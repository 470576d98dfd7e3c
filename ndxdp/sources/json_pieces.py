"""A JSON parser for a text that arrives in pieces, which yields one object at a time.

A list of 10 000 containers has 12 MB of text, and would take 60 MB as dictionaries. Object by
object, it takes a few kB at any moment.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

_OBJECT_MAX = 1 << 24  # characters; a longer object is an error of the engine
_RETRY_AT_ONCE = 1 << 16  # characters that are cheap to parse again with every piece
_TOKEN_MAX = 8  # characters
_BETWEEN = re.compile(r"[ \t\r\n,\x1e]*")  # \x1e begins a record of a sequence (RFC 7464)


class Objects:
    """A sequence of JSON objects, which commas or white space may separate."""

    def __init__(self, *, array: bool) -> None:
        """Begin with an empty text.

        Args:
            array: The objects are the elements of one array, or the text is `null`.
        """
        self._array = array
        self._begun, self._ended = not array, False  # the array
        self._text = ""
        self._wanted = 0  # length of _text below which parsing again is not worth the effort
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects that end in this piece; take all of them before feeding the next piece.

        Raises:
            ValueError: The text is wrong, however it continues.
        """
        self._text += self._utf8.decode(piece)
        if len(self._text) >= self._wanted:
            yield from self._take()

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the remaining objects; raise ValueError if an object or the array is incomplete."""
        self._utf8.decode(b"", final=True)
        yield from self._take()
        if self._array and not self._begun and self._text.strip() == "null":
            return
        if self._text or (self._array and not self._ended):
            raise ValueError("incomplete answer")

    def _take(self) -> Iterator[dict[str, Any]]:
        text, at = self._text, 0
        if not self._begun:
            text = text.lstrip()
            if not text.startswith("["):
                if not "null".startswith(text.rstrip()):
                    raise ValueError("unexpected JSON")
                return
            self._begun, at = True, 1
        while (at := _skip(text, at)) < len(text):
            if self._array and not self._ended and text[at] == "]":
                self._ended = True
                at += 1
                continue
            if text[at] != "{" or self._ended:
                raise ValueError("unexpected JSON")
            try:
                value, at = self._json.raw_decode(text, at)
            except RecursionError:
                raise ValueError("JSON nested too deeply") from None
            except json.JSONDecodeError as error:
                if not _is_incomplete(error) or len(text) - at > _OBJECT_MAX:
                    raise ValueError("not JSON") from None
                break
            yield value
        self._text = text[at:]
        # A long rest is parsed again only after half as much text has arrived; otherwise the effort
        # would be quadratic. In a stream without end the next piece may be far away, so that every
        # piece is parsed.
        left = len(self._text)
        self._wanted = left * 3 // 2 if self._array and left > _RETRY_AT_ONCE else 0


def _skip(text: str, at: int) -> int:
    """Return the place of the next object or bracket."""
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _is_incomplete(error: json.JSONDecodeError) -> bool:
    r"""Return True if the text may only be cut off, within a string or another token.

    Apart from strings and numbers, the longest token is \u1234. A number that is cut off is still a
    number.
    """
    is_string = error.msg.startswith("Unterminated string")
    return is_string or len(error.doc) - error.pos <= _TOKEN_MAX
