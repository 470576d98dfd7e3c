"""The status page: what it shows and in which order, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import re
import time
import urllib.request
from contextlib import closing
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest

from ndxdp.config.model import Metrics
from ndxdp.errors import NdxdpError
from ndxdp.observe import page_style, status
from ndxdp.observe import status_page as page
from ndxdp.observe.exporter import Exporter
from ndxdp.observe.page_choice import Choice
from ndxdp.observe.page_parts import counted, number, rate
from ndxdp.observe.status import Snapshot
from ndxdp.runtime.daemon_status import Announced, DaemonStatus, GatewayStatus, InterfaceStatus
from ndxdp.store.directories import Trees
from tests.fixtures import network
from tests.fixtures.network import BEHIND, UPLINK, Network, eventually
from tests.fixtures.prometheus import get
from tests.fixtures.shown_page import URL, html_of, interface

# ---- what a page has -----------------------------------------------------------------------------


class Page(HTMLParser):
    """A page as a browser reads it; each element must be closed where it is open.

    Attributes:
        tags: The names of all elements.
        loaded: The attributes that make a browser load something, with their values.
        links: The targets of the links.
        ids: The ids of the elements.
        lines: The text of each <summary>, and whether its element is unfolded.
    """

    _VOID = ("meta", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.lines: list[tuple[str, bool]] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = dict(attrs)
        self.ids += filter(None, [named.get("id")])
        assert not any(name.startswith("on") for name in named)
        if tag == "a":
            self.links.append(named.pop("href") or "")
        for name in {"src", "href", "action", "data", "style"} & set(named):
            self.loaded.append((name, named[name] or ""))
        if tag == "summary":
            self.lines.append(("", "open" in self._open[-1][1]))
        if tag not in self._VOID:
            self._open.append((tag, named))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if any(tag == "summary" for tag, _ in self._open):
            text, is_open = self.lines[-1]
            self.lines[-1] = (f"{text} {data}".strip(), is_open)


@pytest.fixture
def data(attached: Network) -> dict[str, Any]:
    """Return the status of an attached interface, as a real one has it."""
    return status.take_snapshot(Trees()).data[UPLINK]


def test_the_page_shows_the_status(attached: Network) -> None:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        assert attached.answers()
        html = get(URL)
    shown = Page(html)
    assert shown.loaded == []
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(shown.tags)
    assert "url(" not in html
    assert "viewport" in html
    words = (UPLINK, "tc, prebuilt program", "1 of 1 solicitation", BEHIND, network.HOST_MAC)
    for text in (*words, "Answering on 1 of 1 interface", "1 prefix"):
        assert text in html


def test_the_page_escapes_foreign_names(data: dict[str, Any]) -> None:
    """Escape names of containers, lists, interfaces and hosts; they may contain anything."""
    evil = "<script>alert(1)</script>"
    attribute = "\"onclick='x'&<b>"  # may be the name of an interface
    data["groups"][0].update(label=evil, source=evil, solicited=1)
    data["warnings"].append(evil)
    state = DaemonStatus(docker_connected=lambda: False, reload_ok=False, reload_error=evil)
    state.interfaces[evil] = InterfaceStatus(problem=evil)
    state.interfaces[attribute] = InterfaceStatus()
    snapshot = Snapshot(0.0, {attribute: data | {"interface": attribute}}, NdxdpError(evil))
    with state.attending(
        attribute,
        lambda: Announced(3, 0),
        lambda: [GatewayStatus(True, None), GatewayStatus(False, 7)],
    ):
        html = page.html(snapshot, snapshot, state, evil, host=evil)
    shown = Page(html)
    assert "<script" not in html
    assert "<b>" not in html
    assert html.count("&lt;script") >= 6
    assert f"on-{attribute}" in shown.ids
    for text in ("answered never", "answered 7 s ago", "did not reload", "is disconnected"):
        assert text in html


def test_problems_come_first(data: dict[str, Any]) -> None:
    state = DaemonStatus(docker_connected=lambda: False)
    state.note_reload(False, "line 14: 'prefx' is no key")
    state.interfaces["wan7"] = InterfaceStatus(problem="there is no interface 'wan7'")
    found = [
        interface(data, "eth10", warnings=["the map of addresses is nearly full"]),
        interface(data, "eth2", attached=False),
        interface(data, "eth3", 7),
        interface(data, "eth4", paused=True),
    ]
    html = html_of(found, state, host="host1")
    text = unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))
    ordered = (
        "Answering on 2 of 5 interfaces, 1 paused; 5 problems",
        "The daemon did not reload its configuration: line 14: 'prefx' is no key",
        "The container engine is disconnected",
        "not attached: the interface was deleted",
        "the map of addresses is nearly full",
        "not answering: there is no interface 'wan7'",
        "\n 5 interfaces",
    )
    places = [text.index(sentence) for sentence in ordered]
    assert places == sorted(places)
    assert "<title>5 problems: ndxdp on host1" in html
    shown = Page(html)
    assert {f"?unfold={name}#on-{name}" for name in ("eth2", "eth10", "wan7")} <= set(shown.links)
    assert {"on-eth2", "on-eth10", "on-wan7"} <= set(shown.ids)
    calm = html_of([interface(data, "eth3", 7)])
    assert "problem" not in calm.replace(page_style.STYLE, "")


def test_an_interface_that_starts_is_no_problem(data: dict[str, Any]) -> None:
    state = DaemonStatus()
    state.interfaces |= {"eth7": InterfaceStatus(), UPLINK: InterfaceStatus(answered=True)}
    html = html_of([data], state)
    assert "Answering on 1 of 2 interfaces" in html
    assert "problem" not in html.replace(page_style.STYLE, "")
    assert "eth7 is not answering yet" in html
    assert [text for text, _ in Page(html).lines if "starting" in text] == ["eth7 starting"]
    state.interfaces["eth7"].answered = True  # and could not be read all the same
    assert "1 problem" in html_of([data], state)


def test_interfaces_are_in_natural_order_and_idle_ones_are_folded(data: dict[str, Any]) -> None:
    found = [interface(data, f"eth{n}", answered) for n, answered in ((10, 5), (1, 0), (2, 3))]
    lines = Page(html_of(found)).lines
    assert [(text.split()[0], unfolded) for text, unfolded in lines] == [
        ("eth1", False),
        ("eth2", True),
        ("eth10", True),
    ]
    assert [text.split()[-1] for text, _ in lines] == ["0/s", "3/s", "5/s"]


def test_an_interface_that_answered_lately_is_not_idle(data: dict[str, Any]) -> None:
    def unfolded(moment: str) -> bool:
        found = [interface(data, "eth0", last_answer=moment), interface(data, "eth1")]
        return Page(html_of(found)).lines[0][1]

    assert unfolded(status._moment(time.monotonic_ns() - 10**9) or "")
    assert not unfolded("2020-01-01T00:00:00Z")


def test_many_idle_interfaces_are_folded_together(data: dict[str, Any]) -> None:
    quiet = [interface(data, f"eth{n}") for n in range(100)]
    quiet[7]["warnings"] = ["something"]
    busy = [interface(data, "wan0", 3)]
    lines = Page(html_of(quiet + busy)).lines
    names = [text.split()[0] for text, _ in lines]
    assert names[:4] == ["eth7", "wan0", "99", "eth0"]
    assert lines[2][0] == "99 idle interfaces"
    assert len(lines) == 102


def test_many_busy_interfaces_are_folded(data: dict[str, Any]) -> None:
    lines = Page(html_of([interface(data, f"eth{n}", 7) for n in range(20)])).lines
    assert len(lines) == 20
    assert not any(unfolded for _, unfolded in lines)


def test_one_interface_is_not_folded(data: dict[str, Any]) -> None:
    shown = Page(html_of([interface(data, "eth0")]))
    assert shown.lines == []
    assert "on-eth0" in shown.ids


def test_tables_have_headers(data: dict[str, Any]) -> None:
    data["groups"][0]["solicited"] = 3
    html = html_of([interface(data, "eth0", 7), interface(data, "eth1", 9)])
    tables = re.findall(r"<table>.*?</table>", html, re.DOTALL)
    assert len(tables) == 4
    for table in tables:
        head, *rows = re.findall(r"<tr>(.*?)</tr>", table)
        assert re.fullmatch(r'(<th scope="col">[^<]+</th>)+', head)
        assert rows
        for row in rows:
            assert re.fullmatch(r'<th scope="row">[^<]+</th>(<td>[^<]+</td>)+', row)
            assert row.count("</t") == head.count("</t")


def test_numbers_have_separators_and_plurals(data: dict[str, Any]) -> None:
    assert (counted(1, "prefix", "prefixes"), counted(0, "rule")) == ("1 prefix", "0 rules")
    blank = "\N{NARROW NO-BREAK SPACE}"
    assert number(1234567) == f"1{blank}234{blank}567"
    assert (rate(1234), rate(12), rate(0.5)) == (f"1{blank}234/s", "12/s", "0.5/s")
    data["rules"].update(addresses=1, prefixes=2)
    assert f"1 of 131{blank}072 addresses, 2 prefixes" in html_of([data])


def test_nothing_is_attached_or_can_be_read() -> None:
    for error, text in (
        (None, "attached to no interface"),
        (NdxdpError("cannot read the pins: permission denied"), "No interface can be read"),
    ):
        html = page.html(Snapshot(0.0, {}), Snapshot(1.0, {}, error), None, URL)
        Page(html)
        assert text in html
        assert ("permission denied" in html) is (error is not None)


# ---- what a browser makes of it ------------------------------------------------------------------


def test_a_browser_applies_the_style_and_nothing_else(net: Network) -> None:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        with urllib.request.urlopen(URL, timeout=20) as response:
            policy, html = response.headers["Content-Security-Policy"], response.read().decode()
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert digest == page_style.DIGEST, "write this digest into page_style.py"
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


@pytest.mark.parametrize(("query", "refreshed"), [("", True), ("?refresh=off", False)])
def test_a_reader_can_stop_the_refresh(net: Network, query: str, refreshed: bool) -> None:
    with closing(Exporter(Trees())) as serving:
        serving.listen(Metrics())
        html = get(f"{URL}{query}")
    assert ('http-equiv="refresh"' in html) is refreshed
    assert Page(html).links == ["?refresh=off" if refreshed else "?"]


def test_a_reader_keeps_interfaces_unfolded(data: dict[str, Any]) -> None:
    """Unfold what the query names; a fragment alone would stop the refresh of the page."""
    found = [interface(data, f"eth{n}") for n in range(20)]
    choice = Choice.parse("unfold=eth3&unfold=eth12&unfold=nosuch0&else=1&refresh=on")
    html = html_of(found, choice=choice)
    shown = Page(html)
    unfolded = [text.split()[0] for text, is_open in shown.lines if is_open]
    assert unfolded == ["20", "eth3", "eth12"]
    assert 'content="15; url=?unfold=eth3&amp;unfold=eth12"' in html
    for link in (
        "?unfold=eth12",  # do not keep eth3 unfolded
        "?unfold=eth3&unfold=eth4&unfold=eth12#on-eth4",
        "?refresh=off&unfold=eth3&unfold=eth12",
    ):
        assert link in shown.links
    assert not [is_open for _, is_open in Page(html_of(found)).lines if is_open]


@pytest.mark.parametrize("name", ["a&b", "a'\"><b>", "a#b?c", "ä", "a+b", "100", "a=b;c"])
def test_any_name_survives_in_a_link(data: dict[str, Any], name: str) -> None:
    found = [interface(data, name), interface(data, "eth1")]
    link = next(
        link for link in Page(html_of(found)).links if link.endswith(f"#{quote(f'on-{name}')}")
    )
    query = link.removeprefix("?").partition("#")[0]
    assert Choice.parse(query) == Choice(True, frozenset({name}))
    html = html_of(found, choice=Choice.parse(query))
    assert [is_open for text, is_open in Page(html).lines if not text.startswith("eth1")] == [True]
    assert "<b>" not in html


@pytest.mark.parametrize(
    "query", ["%", "unfold", "unfold=%ff%00", "&&==&", "refresh=off=off", "é" * 9]
)
def test_any_query_gets_a_page(data: dict[str, Any], query: str) -> None:
    Page(html_of([data], choice=Choice.parse(query)))


def test_the_second_view_does_not_wait(attached: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the rates since the view before, if that was not long ago."""
    with closing(Exporter(Trees())) as serving:
        serving.page()
        shown = serving._shown
        assert shown is not None
        assert all(set(each) == {"reasons", "groups"} for each in shown.data.values())
        assert attached.answers()
        eventually(lambda: time.monotonic() - shown.time > 1)
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
        assert "<dd>0/s</dd>" not in serving.page()
        monkeypatch.undo()
        monkeypatch.setattr("ndxdp.observe.exporter._SAMPLE_MAX", 0.0)
        serving.tick()
        assert serving._shown is None


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, by WCAG 2.2."""
    digits = colour.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_contrast_suffices(scheme: str) -> None:
    """Reach the contrast of 4.5 that WCAG 2.2 requires for text (success criterion 1.4.3)."""
    light, dark = re.findall(r":root \{(.*?)\}", page_style.STYLE, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w+)", light if scheme == "light" else dark))
    for text in ("text", "quiet", "good", "bad", "curve"):
        for ground in ("back", "panel"):
            low, high = sorted(luminance(colours[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
