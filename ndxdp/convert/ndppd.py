"""Conversion of a configuration of ndppd 0.2 into a draft. Pure, except `read`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ndxdp.config.model import DEADLINE
from ndxdp.convert import ndppd_syntax, width
from ndxdp.convert.draft import Draft, DraftInterface, DraftRule, Note
from ndxdp.convert.ndppd_rules import METHODS, Method, apply_methods, both
from ndxdp.convert.ndppd_shares import move_into_shares
from ndxdp.convert.ndppd_syntax import Entry
from ndxdp.convert.width import UNKNOWN, Host
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.kernel.abi import MAX_RULE_CLASSES
from ndxdp.printable import printable
from ndxdp.rules.address import parse_address
from ndxdp.rules.interface_name import check_interface, parse_dev
from ndxdp.rules.prefix import Prefix, parse_target
from ndxdp.rules.rule import OWNED_LABELS

_CACHE = "the kernel's neighbor table is the cache, with its own times"
_ASKS = "the kernel solicits and retries as for each of its neighbors"
_FOLLOWED = "ndxdp asks the kernel for each solicitation"

_WITHOUT_COUNTERPART = {
    "route-ttl": _FOLLOWED,
    "address-ttl": _FOLLOWED,
    "ttl": _CACHE,
    "deadtime": _CACHE,
    "retries": _ASKS,
    "keepalive": _ASKS,
}
_WITHOUT_COUNTERPART_IF_ON = {
    "promiscuous": "ndxdp receives multicast by groups and allmulti, and no frames for other hosts",
    "autovia": "the routes of a share name no gateway, and other rules need one that exists",
}
_AT_TOP = ("proxy", "route-ttl", "address-ttl")
_IN_PROXY = (
    *("rule", "router", "timeout", "ttl", "deadtime"),
    *("retries", "keepalive", "promiscuous", "autowire"),
)
_IN_RULE = (*METHODS, "autovia")

_PREFIX = re.compile(r"[ \t\n\v\f\r]*([0-9A-Fa-f:]+)[ \t\n\v\f\r]*(?:/[ \t\n\v\f\r]*([0-9]{1,4}))?")
_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?[0-9]{1,9})")
_TIMEOUT = 500  # ms

_ALSO_MAX = 20


_T = TypeVar("_T")


@dataclass(slots=True)
class _Reading:
    """The reading of a text, with the problems so far: line, sentence, hint."""

    name: str
    problems: list[tuple[int, str, str]] = field(default_factory=list)

    def complain(self, line: int, message: str, hint: str) -> None:
        """Note a problem."""
        self.problems.append((line, message, hint))

    def attempt(self, parse: Callable[[_T], object], value: _T, line: int) -> bool:
        """Return True if `parse` accepts the value; its error becomes a problem."""
        try:
            parse(value)
        except UsageError as error:
            self.complain(line, error.message, error.hint)
            return False
        return True

    def finish(self) -> None:
        """Raise NdxdpError if there are problems: the first one, with the others in `also`."""
        if not self.problems:
            return
        self.problems.sort(key=lambda problem: problem[0])
        sentences = [printable(f"{self.name}:{line}: {text}") for line, text, _ in self.problems]
        raise NdxdpError(sentences[0], self.problems[0][2], tuple(sentences[1 : 1 + _ALSO_MAX]))


def read(path: str) -> str:
    """Return the text of a file; bytes that are not UTF-8 become surrogates.

    Comments may have such bytes.
    """
    try:
        return Path(path).read_bytes().decode(errors="surrogateescape")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NdxdpError(f"cannot read {printable(path)}: {why}", "see: ls -l, namei -l") from None


def convert(text: str, name: str, host: Host = UNKNOWN) -> Draft:
    """Return the draft that corresponds to a text.

    Args:
        text: The configuration of ndppd.
        name: The name of the file, for messages.
        host: Facts of this machine.

    Raises:
        NdxdpError: ndppd refuses the text, or takes a word for something else. The message names
            the line.
    """
    name = printable(name)
    file = ndppd_syntax.parse(text, name)
    reading = _Reading(name)
    draft = Draft()
    _note(draft.notes, file.root, _AT_TOP, "at the top")
    if file.unread is not None:
        draft.notes.append(
            Note(file.unread, "this } closes nothing: ndppd ends reading here, and so does convert")
        )
    made: dict[str, DraftInterface] = {}
    methods: dict[str, dict[Prefix, Method]] = {}
    for proxy in file.root.find_all("proxy"):
        if not proxy.value:
            reading.complain(
                proxy.line, "this proxy names no interface", "write it as in proxy eth0 { … }"
            )
        elif reading.attempt(check_interface, proxy.value, proxy.line):
            interface = made.setdefault(proxy.value, DraftInterface(proxy.value))
            if proxy.value in methods:
                interface.notes.append(
                    Note(
                        proxy.line,
                        f"{proxy.value} has several proxy sections: ndppd 0.2.5 uses only the"
                        " last one, and convert uses all",
                    )
                )
            _read_proxy(reading, proxy, interface, methods.setdefault(proxy.value, {}))
    if not made and not reading.problems:
        reading.complain(1, "there is no proxy section: ndppd answers nothing", "add one")
    reading.finish()
    for interface in made.values():
        apply_methods(interface, methods[interface.name])
        draft.interfaces.append(interface)
    move_into_shares(draft, methods, _autowired(file.root, made), host)
    for interface in made.values():
        width.restrict(interface, host, "ndppd")
        _refuse_too_much(reading, interface, methods[interface.name])
    reading.finish()
    shared = {name for share in draft.shares for name in share.members}
    for proxy in file.root.find_all("proxy"):
        timed, interface = proxy.find("timeout"), made[proxy.value]
        if (
            proxy.value not in shared
            and timed
            and interface.deadline is None
            and _timeout([], proxy) is not None
        ):
            left_out = "timeout is left out: no rule here waits for a neighbor"
            interface.notes.append(Note(timed.line, left_out))
    return draft


def _autowired(root: Entry, made: dict[str, DraftInterface]) -> dict[str, int]:
    """Return the line of `autowire yes` for each interface that has it."""
    found: dict[str, int] = {}
    for proxy in root.find_all("proxy"):
        entry = proxy.find("autowire")
        if entry and _is_on(made[proxy.value].notes, proxy, "autowire", False):
            found.setdefault(proxy.value, entry.line)
    return found


def _refuse_too_much(
    reading: _Reading, interface: DraftInterface, methods: dict[Prefix, Method]
) -> None:
    """Complain about limits of ndxdp that the converted file would exceed."""
    most = MAX_RULE_CLASSES - len(OWNED_LABELS)
    if len(interface.rules) > most:
        reading.complain(
            methods[interface.rules[most].prefix].line,
            f"{interface.name} has {len(interface.rules)} rules, and ndxdp accepts {most} that are"
            " written one by one",
            "write the prefixes into a list: the key file of [[interface.prefix]]",
        )
    for rule in interface.rules:
        reading.attempt(parse_dev, rule.dev, methods[rule.prefix].line)


def _read_proxy(
    reading: _Reading, proxy: Entry, interface: DraftInterface, methods: dict[Prefix, Method]
) -> None:
    """Read a section; add its rules to the interface, and the method of each to `methods`."""
    notes = interface.notes
    _note(notes, proxy, _IN_PROXY, "in a proxy section")
    router = _is_on(notes, proxy, "router", True)
    timeout = _timeout(notes, proxy)
    for rule in proxy.find_all("rule"):
        prefix = _prefix(reading, rule)
        method = _method(reading, rule)
        if prefix is None or method is None:
            continue
        _note(notes, rule, _IN_RULE, "in a rule")
        if _is_never_solicited(prefix):
            sentence = f"the rule for {prefix} is left out: no node solicits it"
            notes.append(Note(rule.line, sentence))
            continue
        if interface.name in method.interfaces:
            notes.append(
                Note(
                    rule.line,
                    f"the rule for {prefix} is left out: nodes on {interface.name} itself"
                    " answer for themselves",
                )
            )
            continue
        if method.name != "static" and timeout is not None:
            interface.deadline = max(timeout / 1000, interface.deadline or 0)
        twin = methods.get(prefix)
        if twin is None:
            interface.rules.append(DraftRule(prefix, router=router))
            methods[prefix] = method
        else:
            sentence = f"{prefix} has a rule in line {twin.line} already: convert combines them"
            notes.append(Note(rule.line, sentence))
            methods[prefix] = both(twin, method)


# ---- one entry ----------------------------------------------------------------------------------


def _prefix(reading: _Reading, rule: Entry) -> Prefix | None:
    """Return the prefix of a rule; clear the bits after its length, as ndppd does."""
    if not rule.value:
        reading.complain(
            rule.line, "this rule names no prefix", "write it as in rule 2001:db8::/64 { static }"
        )
        return None
    found = _PREFIX.fullmatch(rule.value)
    if found is None:
        reading.complain(
            rule.line,
            f"'{rule.value}' is not a prefix: ndppd runs, but with another prefix",
            "write it as in 2001:db8::/64",
        )
        return None
    if not reading.attempt(parse_address, found[1], rule.line):
        return None
    length = int(found[2] or 128)
    if length > 128:
        reading.complain(
            rule.line,
            f"'{rule.value}' has no prefix length from 0 to 128",
            "ndppd takes it for 128",
        )
        return None
    return Prefix.around(parse_address(found[1]), length)


def _is_never_solicited(prefix: Prefix) -> bool:
    """Return True if the prefix cannot be a target."""
    try:
        parse_target(str(prefix))
    except UsageError:
        return True
    return False


def _method(reading: _Reading, rule: Entry) -> Method | None:
    """Return the method of a rule; complain and return None unless it has exactly one."""
    given = [word for word in METHODS if rule.find(word)]
    if not given:
        reading.complain(
            rule.line,
            "this rule has none of static, auto and iface",
            "name one; it meant static before ndppd required it",
        )
        return None
    if len(given) > 1:
        reading.complain(
            rule.line, f"this rule has {' and '.join(given)}, which cannot be combined", "keep one"
        )
        return None
    interfaces: tuple[str, ...] = ()
    entry = rule.find(given[0])
    assert entry is not None
    if given[0] == "iface":
        if not entry.value:
            reading.complain(entry.line, "this iface names no interface", "as in iface docker0")
            return None
        if not reading.attempt(check_interface, entry.value, entry.line):
            return None
        interfaces = (entry.value,)
    return Method(given[0], interfaces, rule.line)


def _is_on(notes: list[Note], block: Entry, keyword: str, default: bool) -> bool:
    """Return the value of a switch as ndppd reads it; note a value that is neither yes nor no."""
    entry = block.find(keyword)
    if entry is None:
        return default
    value = entry.value.lower()
    if value not in ("yes", "true", "no", "false"):
        notes.append(
            Note(entry.line, f"{keyword} is neither yes nor no: ndppd takes '{entry.value}' for no")
        )
    return value in ("yes", "true")


def _timeout(notes: list[Note], proxy: Entry) -> int | None:
    """Return the timeout in ms as ndppd reads it; None if the section has none."""
    entry = proxy.find("timeout")
    if entry is None:
        return None
    found = _NUMBER.match(entry.value)
    value = int(found[1]) if found else 0
    if value < 0:
        return _TIMEOUT
    if value == 0:
        notes.append(
            Note(entry.line, "timeout is left out: ndppd takes it for 0, and hardly waits")
        )
        return None
    least, most = (round(bound * 1000) for bound in DEADLINE)
    if not least <= value <= most:
        bounds = f"timeout is {value} ms: ndxdp accepts {least} to {most}"
        notes.append(Note(entry.line, bounds))
    return min(max(value, least), most)


def _note(notes: list[Note], block: Entry, known: tuple[str, ...], where: str) -> None:
    """Note the entries of a block that ndppd ignores, or that have no counterpart."""
    seen: set[str] = set()
    for entry in block.entries or ():
        keyword, value = entry.keyword, entry.value
        if keyword not in known:
            sentence = _unknown(entry, where)
        elif keyword in seen:
            again = keyword in ("proxy", "rule")
            sentence = None if again else f"{keyword} is given twice: the first one counts"
        elif keyword in ("static", "auto"):
            ignored = value not in ("", ";")
            sentence = f"{keyword} takes no value: ndppd ignores '{value}'" if ignored else None
        else:
            why = _WITHOUT_COUNTERPART.get(keyword)
            if keyword in _WITHOUT_COUNTERPART_IF_ON and _is_on(notes, block, keyword, False):
                why = _WITHOUT_COUNTERPART_IF_ON[keyword]
            sentence = f"{keyword} has no counterpart: {why}" if why else None
        if sentence:
            notes.append(Note(entry.line, sentence))
        seen.add(keyword)


def _unknown(entry: Entry, where: str) -> str | None:
    """Return the note on an entry that ndppd ignores; None for a comment after a quote."""
    if entry.keyword:
        return f"ndppd knows no keyword '{entry.keyword}' {where}"
    if not entry.quoted:
        what = f"'{entry.value}'" if entry.value else "a { … }"
        return f"ndppd ignores {what}, which has no keyword"
    # Each quote at the end of a string makes such an entry. A comment there needs no note.
    rest = entry.value.strip()
    if not rest or rest.startswith(("#", "//")):
        return None
    return f"ndppd ignores '{rest}', which follows a quoted word"
