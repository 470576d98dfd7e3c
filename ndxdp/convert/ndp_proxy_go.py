"""Conversion of a command line of ndp-proxy-go into a draft with a share. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from ndxdp.config.share_tables import EXPIRE_RANGE, HOSTS_MOST, parse_shared
from ndxdp.convert.draft import Draft, DraftShare, Note
from ndxdp.errors import UsageError
from ndxdp.rules.interface_name import INTERFACE_MAX, check_interface

_SWITCHES = ("debug", "no-rewrite-lla", "no-ra", "no-routes", "no-dad", "no-dad-drop")
_VALUES = (
    *("cache-ttl", "cache-max", "cache-file", "route-qps", "route-burst", "pf-qps"),
    *("pcap-timeout", "pf", "static-prefix", "static-router"),
)

_WITHOUT_COUNTERPART = {
    "no-rewrite-lla": "ndxdp always names the MAC of the interface that it sends by",
    "no-routes": "a share sets a route to each host, because the routes are its memory",
    "no-dad": "a share defends the addresses of its hosts",
    "no-dad-drop": "a share asks on all its links before an address is used",
    "cache-file": "the kernel's routes are the memory, and outlive the daemon",
    "route-qps": "routes are set as hosts are learned",
    "route-burst": "routes are set as hosts are learned",
    "pf-qps": "ndxdp changes no firewall",
    "pf": "ndxdp changes no firewall",
    "pcap-timeout": "ndxdp waits for no more packets when one has arrived",
    "static-router": "ndxdp needs to know no router before it is heard",
}

_PROGRAM = re.compile(r"(?:.*[/=])?ndp-proxy-go")
_VARIABLE = re.compile(
    r"(?:ndp_proxy_go_)(upstream|downstream|flags|cache_file|enable)=(.*)", re.DOTALL
)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TTL, _MAX = 600.0, 4096
"""Defaults of ndp-proxy-go: --cache-ttl in seconds, --cache-max."""


def is_about(text: str) -> bool:
    """Return True if a file starts ndp-proxy-go: a unit, a script, or rc.conf."""
    return any(True for _ in _lines(text))


def of_file(text: str) -> str:
    """Return the words of a unit, of a script, or of rc.conf that start ndp-proxy-go."""
    return " ".join(_lines(text))


def _lines(text: str) -> Iterator[str]:
    """Yield the lines that start ndp-proxy-go, or configure its service."""
    for line in text.replace("\\\n", " ").splitlines():
        words = line.split("#", 1)[0].split()
        if any(_PROGRAM.fullmatch(word) for word in words) or (
            words and _VARIABLE.match(words[0]) and not line.lstrip().startswith(":")
        ):
            yield line.strip()


def convert(line: str) -> Draft:
    """Return the draft that corresponds to a command line.

    Args:
        line: The arguments of ndp-proxy-go, a whole command of a shell or unit, or the assignments
            of rc.conf.

    Raises:
        UsageError: ndp-proxy-go refuses the command line.
    """
    try:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
    except ValueError:
        raise UsageError(
            "the command line of ndp-proxy-go has a quote that is not closed",
            "give it as in --ndp-proxy-go '--no-ra eth0 eth1'",
        ) from None
    draft = Draft()
    given, names = _options(_arguments(words))
    if len(names) < 2:
        raise UsageError(
            "ndp-proxy-go needs an upstream and a downstream interface",
            "as in --ndp-proxy-go 'eth0 eth1'",
        )
    for name in names:
        _check_name(name)
    share = DraftShare(names[0], list(dict.fromkeys(names[1:])))
    if share.upstream in share.downstream:
        raise UsageError(
            f"{share.upstream} is upstream and downstream", "name the interfaces behind this host"
        )
    _apply(draft, share, given)
    if any(map(_VARIABLE.fullmatch, words)):
        share.comments.append(
            "the interfaces have FreeBSD's names; those of this host: ip -br link"
        )
    draft.shares.append(share)
    return draft


def _arguments(words: list[str]) -> list[str]:
    """Return the arguments: what follows the command, or what rc.conf makes of its variables."""
    variables = {found[1]: found[2] for found in map(_VARIABLE.fullmatch, words) if found}
    if variables:
        cache = variables.get("cache_file")
        return [
            *variables.get("flags", "").split(),
            *(["--cache-file", cache] if cache else []),
            *variables.get("upstream", "").split(),
            *variables.get("downstream", "").split(),
        ]
    starts = [at + 1 for at, word in enumerate(words) if _PROGRAM.fullmatch(word)]
    return words[starts[0] :] if starts else words


def _options(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the values of the options, read as Go's flags, and the words after them.

    A switch that is on has the value "true".
    """
    given: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        found = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", word, re.DOTALL)
        key, value = (found[1], found[2]) if found else (word, None)
        if key in ("h", "help"):
            raise UsageError(f"{word} makes ndp-proxy-go print its help", "remove it")
        if key not in (*_SWITCHES, *_VALUES):
            raise UsageError(
                f"ndp-proxy-go has no option {word}",
                "options come before the interfaces, as in --no-ra eth0 eth1",
            )
        if key in _SWITCHES:
            value = "true" if value is None else value
        elif value is None:
            if not rest:
                raise UsageError(f"the option {word} of ndp-proxy-go lacks a value", "give it one")
            value = rest.pop(0)
        given.setdefault(key, []).append(value)
    late = next((word for word in rest if word.startswith("-")), None)
    if late is not None:
        raise UsageError(
            f"ndp-proxy-go takes {late} for an interface, because it follows one",
            "write the options before the interfaces",
        )
    return given, rest


def _check_name(name: str) -> None:
    """Raise UsageError for a text that no interface has as its own name."""
    check_interface(name)
    if len(name.encode()) > INTERFACE_MAX:
        raise UsageError(
            f"'{name}' is longer than {INTERFACE_MAX} bytes: no interface has the name",
            "see: ip -br link",
        )


def _apply(draft: Draft, share: DraftShare, given: dict[str, list[str]]) -> None:
    """Set the keys that correspond to the options, and note those without a counterpart."""
    on = {key for key in _SWITCHES if _is_on(given.get(key, ["false"])[-1], key)}
    if "debug" in on:
        draft.log_level = "debug"
    share.relay = "no-ra" not in on
    for key, why in _WITHOUT_COUNTERPART.items():
        if key in on or (key in given and key not in _SWITCHES):
            share.notes.append(Note(0, f"--{key} has no counterpart: {why}"))
    if "cache-ttl" in given:
        seconds = _seconds(given["cache-ttl"][-1])
        share.expire = _within(share, "--cache-ttl", seconds, *EXPIRE_RANGE, default=_TTL)
    if "cache-max" in given:
        text = given["cache-max"][-1]
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise UsageError(f"'{text}' is no number of neighbors", "as in --cache-max 2048")
        most = _within(share, "--cache-max", int(text), 1, HOSTS_MOST, default=_MAX)
        share.max_hosts = None if most is None else int(most)
    _add_prefixes(share, given.get("static-prefix", []))
    share.comments.append("one MAC has a quarter of max_hosts at most: see max_hosts_per_mac")


def _is_on(text: str, key: str) -> bool:
    """Return the value of a switch as Go's flag package reads it."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise UsageError(f"'{text}' is neither true nor false", f"write --{key}, or leave it out")


def _seconds(text: str) -> float:
    """Return a duration of Go, such as `10m` or `1h30m`, in seconds."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"'{text}' is no duration of Go", "as in --cache-ttl 20m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _within(
    share: DraftShare, option: str, value: float, least: float, most: float, *, default: float
) -> float | None:
    """Return a value within ndxdp's bounds, and note a change; None for ndxdp's default."""
    if not least <= value <= most:
        share.notes.append(Note(0, f"{option} is {value:g}: ndxdp accepts {least:g} to {most:g}"))
    value = min(max(value, least), most)
    return None if value == default else value


def _add_prefixes(share: DraftShare, texts: list[str]) -> None:
    """Add the prefixes of --static-prefix; several in one are one."""
    for text in texts:
        try:
            prefix = parse_shared(text)
        except UsageError as error:
            raise UsageError(f"--static-prefix: {error.message}", error.hint) from None
        if any(each.covers(prefix) for each in share.prefixes):
            continue
        share.prefixes = [each for each in share.prefixes if not prefix.covers(each)]
        share.prefixes.append(prefix)
    if share.prefixes:
        share.notes.append(
            Note(
                0,
                "--static-prefix adds to the prefixes that routers advertise, and prefixes replaces"
                " them: write those, too, or remove the key",
            )
        )
