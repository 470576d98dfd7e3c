"""Elements of the status page: tables, lists of facts, numbers. Each escapes its texts. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from ndxdp.observe.status_text import per_second


def number(count: float) -> str:
    """Format a number with a narrow blank between thousands."""
    return f"{count:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def rate(per: float) -> str:
    """Format a number per second: `0.33/s`, `1 200/s`."""
    return f"{number(per)}/s" if per >= 9.95 else per_second(per)


def counted(count: int, one: str, several: str = "") -> str:
    """Format a number of things: `1 prefix`, `2 prefixes`.

    Args:
        count: The number.
        one: The singular.
        several: The plural; "" if it is the singular with an s.
    """
    return f"{number(count)} {one if count == 1 else several or f'{one}s'}"


def part_of(count: int, limit: int, one: str, several: str = "") -> str:
    """Format a part of a whole: `1 of 3 interfaces`."""
    return f"{number(count)} of {counted(limit, one, several)}"


def table(caption: str, titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table, whose first column names the rows; nothing if there are no rows."""
    cells = [
        f'<th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(one)}</td>" for one in rest)
        for name, *rest in rows
    ]
    if not cells:
        return
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    yield f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>"
    yield from (f"<tr>{row}</tr>" for row in cells)
    yield "</tbody></table>"


def facts(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> Iterator[str]:
    """Yield a list of names and values."""
    yield f'<dl class="{kind}">'
    # Without the <div>, a line could break between a name and its value.
    box, end = ("<div>", "</div>") if kind == "numbers" else ("", "")
    for name, value in pairs:
        yield f"{box}<dt>{escape(name)}</dt><dd>{escape(value)}</dd>{end}"
    yield "</dl>"


def paragraph(text: str, kind: str = "plain") -> str:
    """Return a paragraph; kind is a class of the style sheet, such as `good`, `bad`, `quiet`."""
    return f'<p class="{kind}">{escape(text)}</p>'
