"""The line of every key: tricky TOML, and random texts compared with tomllib."""

from __future__ import annotations

import contextlib
import random
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from ndxdp.config import toml_lines
from ndxdp.config.toml_lines import KeyPath

# The subject, the text, and lines of some of its keys.
CASES: list[tuple[str, str, dict[KeyPath, int]]] = [
    ("nothing", "", {(): 1}),
    ("only comments", "# a = 1\n\n  # [b]", {(): 1}),
    ("keys", "a = 1\n\nb = 2", {("a",): 1, ("b",): 3}),
    ("no blanks", "a=1\nb=2#c=3\nd=4", {("a",): 1, ("b",): 2, ("d",): 3}),
    ("CR LF", "a = 1\r\n# x\r\nb = 'x'\r\n[c]\r\nd = [\r\n1,\r\n]", {("b",): 3, ("c", "d", 0): 6}),
    ("tabs", "\ta\t=\t1\t\n\t[b]\t\n\tc\t=\t2", {("a",): 1, ("b",): 2, ("b", "c"): 3}),
    ("a table", "[a]\nb = 1\n[c]\nb = 2", {("a",): 1, ("a", "b"): 2, ("c",): 3, ("c", "b"): 4}),
    ("blanks in a header", "\n[ a . b ] # c\nd = 1", {("a", "b"): 2, ("a", "b", "d"): 3}),
    (
        "a table implied first",
        "[a.b.c]\nd = 1\n[a]\ne = 2",
        {("a",): 3, ("a", "b"): 1, ("a", "b", "c"): 1, ("a", "e"): 4},
    ),
    (
        "an array of tables",
        "[[a]]\nb = 1\n[[a]]\n\n[[a]]\nb = 3",
        {("a",): 1, ("a", 0): 1, ("a", 1): 3, ("a", 2): 5, ("a", 0, "b"): 2, ("a", 2, "b"): 6},
    ),
    (
        "arrays of tables in arrays of tables",
        "[[a]]\n[[a.b]]\nc = 1\n[[a.b]]\nc = 2\n[[a]]\n[[a.b]]\nc = 3\n[a.d]\ne = 4",
        {
            ("a", 0, "b", 0, "c"): 3,
            ("a", 0, "b", 1): 4,
            ("a", 0, "b", 1, "c"): 5,
            ("a", 1): 6,
            ("a", 1, "b"): 7,
            ("a", 1, "b", 0): 7,
            ("a", 1, "b", 0, "c"): 8,
            ("a", 1, "d"): 9,
            ("a", 1, "d", "e"): 10,
        },
    ),
    (
        "a table between, and back",
        "[[a]]\n[b]\nc = 1\n[a.d]\ne = 2\n[[a]]\nd = 3",
        {("b", "c"): 3, ("a", 0, "d"): 4, ("a", 0, "d", "e"): 5, ("a", 1, "d"): 7},
    ),
    (
        "dotted keys",
        "a.b.c = 1\na.b.d = 2\na . e=3",
        {
            ("a",): 1,
            ("a", "b"): 1,
            ("a", "b", "c"): 1,
            ("a", "b", "d"): 2,
            ("a", "e"): 3,
        },
    ),
    ("dotted keys in a table", "[x]\n\na.b = 1", {("x", "a"): 3, ("x", "a", "b"): 3}),
    ("dotted keys in an array", "[[x]]\n[[x]]\na.b = 1", {("x", 1, "a", "b"): 3}),
    (
        "quoted keys",
        '"a b" = 1\n\'c.d\' = 2\n"e\\"#\\u0041" = 3\n"" = 4',
        {("a b",): 1, ("c.d",): 2, ('e"#A',): 3, ("",): 4},
    ),
    ("quoted headers", '[\'a]\'."b"]\n\nc = 1\n[["[d"]]', {("a]", "b", "c"): 3, ("[d", 0): 4}),
    ("keys like numbers", "1.2 = 3\n1979-05-27 = 4", {("1", "2"): 1, ("1979-05-27",): 2}),
    ("brackets in strings", 'a = \'[b] # {\'\nc = "]}\\"[\\\\"\nd = 1', {("c",): 2, ("d",): 3}),
    ("empty strings", "a = ''\nb = \"\"\nc = \"\"\"\"\"\"\nd = ''''''\ne = 1", {("e",): 5}),
    (
        "strings of several lines",
        'a = """\nx = 1\n[y]\n\\"""\n"""\nb = \'\'\'\n\\\n# \'\' \n\'\'\' # c\nd = 1',
        {("a",): 1, ("b",): 6, ("d",): 10},
    ),
    (
        "strings that end in quotes of their own",
        'a = """\n"""""\nb = \'\'\'\n\'\'\'\'\'\nc = """"x""""\nd = 1',
        {("b",): 3, ("c",): 5, ("d",): 6},
    ),
    ("an escape before the end", 'a = """\\\\"""\nb = "\\\\"\nc = 1', {("b",): 2, ("c",): 3}),
    ("a line continued", 'a = """x \\\n\n  y"""\nb = 1', {("b",): 4}),
    (
        "an array of several lines",
        "a = [\n  1, # ]\n  # ,\n  '],',\n\n  3\n, ]\nb = 1",
        {("a",): 1, ("a", 0): 2, ("a", 1): 4, ("a", 2): 6, ("b",): 8},
    ),
    (
        "arrays in arrays",
        "a = [[1,\n2], [],\n[\n[3]]]\nb = []",
        {
            ("a", 0): 1,
            ("a", 0, 0): 1,
            ("a", 0, 1): 2,
            ("a", 1): 2,
            ("a", 2): 3,
            ("a", 2, 0): 4,
            ("a", 2, 0, 0): 4,
            ("b",): 5,
        },
    ),
    (
        "an array with strings of several lines",
        'a = ["""\n\n""", """\n]""",\n1]',
        {("a", 0): 1, ("a", 1): 3, ("a", 2): 5},
    ),
    (
        "inline tables",
        "a = { b = 1, 'c' = { d.e = [2] }, f = {} }\ng = 1",
        {("a", "b"): 1, ("a", "c", "d", "e", 0): 1, ("a", "f"): 1, ("g",): 2},
    ),
    (
        "an inline table over several lines",
        'a = { b = """\n""", c = [\n1] }\nd = 1',
        {("a", "b"): 1, ("a", "c"): 2, ("a", "c", 0): 3, ("d",): 4},
    ),
    (
        "inline tables in an array",
        "a = [\n  { b = 1 },\n  { b = 2, c = 3 },\n]",
        {("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "b"): 3, ("a", 1, "c"): 3},
    ),
    (
        "values that are no strings",
        "a = 1979-05-27 07:32:00Z # x\nb = [1e6, -inf,\n0x_f, true]\nc = +1.5".replace("_", ""),
        {("b", 1): 2, ("b", 2): 3, ("b", 3): 3, ("c",): 4},
    ),
    ("no line end at the end", "a = 1\nb = 'x' # y", {("b",): 2}),
]


def paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*path, key))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from paths(inner, (*path, number))


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_lines(text: str, expected: dict[KeyPath, int]) -> None:
    found = toml_lines.lines(text)
    assert {path: found.get(path) for path in expected} == expected
    assert set(found) == set(paths(tomllib.loads(text)))


def test_every_line_is_found_in_a_text_of_random_pieces() -> None:
    """Find each key of a text that tomllib accepts, in a line that has the key's last part."""
    rng = random.Random(4)
    pieces = [piece for _, text, _ in CASES for piece in text.split("\n")]
    pieces += ["[", "]", "{", "}", '"""', "'''", '"', "'", "#", ",", "=", ".", "\\", "a = 1"]
    taken = 0
    for _ in range(20_000):
        text = "\n".join(rng.choice(pieces) for _ in range(rng.randrange(1, 7)))
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
        taken += 1
        found = toml_lines.lines(text)
        assert set(found) == set(paths(data)), text
        rows = text.split("\n")
        for path, line in found.items():
            if path and isinstance(path[-1], str) and path[-1].isalnum() and path[-1] != 'e"#A':
                assert path[-1] in rows[line - 1], (text, path, line)
    assert taken > 1000


@pytest.mark.parametrize(
    "text", ["=", "[", "a", "a =", "a = [", "a = [}", "a = {", "a = {]", '"', "]", "[[a]", 'a = "']
)
def test_a_text_that_is_not_toml_ends(text: str) -> None:
    with contextlib.suppress(ValueError, IndexError):
        toml_lines.lines(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.a.a = 1", 0),
        ("\na.a.a.a = 1", 2),
        ("[a.a.a.a]", 1),
        ("[[ a . a\t.a . a ]]", 1),
        ("a = 1\nb = {a.a.a.a = 1}", 2),
        ('a.\'.\'."b\\".".c = 1', 1),
        ("a.'.'.\".\" = 1", 0),
        ("# a.a.a.a.a", 0),
        ("b = 'a.a.a.a.a' # a.a.a.a", 0),
        ("b = \"\"\"\na.a.a.a.a\n\"\"\"\nc = '''a.a.a.a'''", 0),
        ("b = [1.5, 2.5, 3.5, 4.5, 5.5]", 0),
        ('b = "a.a.a.a', 1),
    ],
)
def test_a_key_of_too_many_parts(text: str, line: int) -> None:
    assert toml_lines.line_of_long_key(text, 3) == line
