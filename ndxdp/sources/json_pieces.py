"""JSON objects out of a text that comes in pieces, one at a time.

A list of 10 000 containers is 12 MB of text and 60 MB of dictionaries; object by object it is a
few kB at any moment.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

_OBJECT_MAX = 1 << 24  # characters: an object beyond is a runaway
_RETRY_AT_ONCE = 1 << 16  # characters: what it costs nothing to try in vain
_TOKEN_MAX = 8  # characters
_BETWEEN = re.compile(r"[ \t\r\n,\x1e]*")  # \x1e begins a record in RFC 7464's sequences


class Objects:
    """Objects that follow each other, with commas and white space between them or without.

    array: they are the elements of one array, or there is `null` instead of it.
    """

    def __init__(self, *, array: bool) -> None:
        self._array = array
        self._begun, self._ended = not array, False  # the array
        self._text = ""
        self._wanted = 0  # characters of _text below which another try is not worth it
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that end in this piece, to be taken all before the next one is fed.

        ValueError for what no continuation can mend.
        """
        self._text += self._utf8.decode(piece)
        if len(self._text) >= self._wanted:
            yield from self._take()

    def end(self) -> Iterator[dict[str, Any]]:
        """Those left at the end of the text. ValueError if it ends within an object or array."""
        self._utf8.decode(b"", final=True)
        yield from self._take()
        if self._array and not self._begun and self._text.strip() == "null":
            return
        if self._text or (self._array and not self._ended):
            raise ValueError("half an answer")

    def _take(self) -> Iterator[dict[str, Any]]:
        text, at = self._text, 0
        if not self._begun:
            text = text.lstrip()
            if not text.startswith("["):
                if not "null".startswith(text.rstrip()):
                    raise ValueError("not the JSON that was asked for")
                return
            self._begun, at = True, 1
        while (at := _skip(text, at)) < len(text):
            if self._array and not self._ended and text[at] == "]":
                self._ended = True
                at += 1
                continue
            if text[at] != "{" or self._ended:
                raise ValueError("not the JSON that was asked for")
            try:
                value, at = self._json.raw_decode(text, at)
            except RecursionError:
                raise ValueError("JSON of senseless depth") from None
            except json.JSONDecodeError as error:
                if not _is_half(error) or len(text) - at > _OBJECT_MAX:
                    raise ValueError("not JSON") from None
                break
            yield value
        self._text = text[at:]
        # What is long is tried again when half as much has come, lest the effort be quadratic.
        # Not in a stream without end, where an object may be the last for long.
        left = len(self._text)
        self._wanted = left * 3 // 2 if self._array and left > _RETRY_AT_ONCE else 0


def _skip(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _is_half(error: json.JSONDecodeError) -> bool:
    """Whether the text may just end too early: within a string, or a token that has begun.

    The longest token, but for strings, and numbers in which nothing can be wrong, is \\u1234.
    """
    is_string = error.msg.startswith("Unterminated string")
    return is_string or len(error.doc) - error.pos <= _TOKEN_MAX
