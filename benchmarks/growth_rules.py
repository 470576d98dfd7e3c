"""The curves of rules: prefixes and lists in a configuration, rules of an attached interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.growing import MANY, Bench, Curve, Figures
from benchmarks.wire import LINK, in_host

_PER_LIST = 100
_ONE = "2001:db8:ffff::1"
_LISTS = (10, 100, 1_000, 10_000)
_MILLION = (*MANY, 1_000_000)
_CLASSES = (10, 1_000, 10_000, 60_000)
"""Numbers of rule classes, of which an interface has 65 536."""


def _address(number: int) -> str:
    """Return an address; each has a solicited-node group of its own."""
    return f"2001:db8:0:1:c:0:{number >> 16:x}:{number & 0xFFFF:x}"


def _addresses(count: int, first: int = 0) -> Iterator[str]:
    return (f"{_address(first + n)}\n" for n in range(count))


def _prefixes(count: int) -> Iterator[str]:
    return (f"2001:db8:{n >> 16:x}:{n & 0xFFFF:x}::/64\n" for n in range(count))


def _interface(tables: str, room: int = 0) -> str:
    return (
        f'[[interface]]\nname = "{LINK}"\nmode = "native"\non_stop = "detach"\n'
        f"max_addresses = {room + 1000}\n{tables}"
    )


def _table(key: str, value: str) -> str:
    return f'[[interface.prefix]]\n{key} = "{value}"\n'


# ---- reading a configuration --------------------------------------------------------------------


def _check_prefixes(bench: Bench, count: int) -> Figures:
    text = _interface("".join(_table("prefix", _address(n)) for n in range(count)), count)
    return bench.command("check", "-c", str(bench.file("it.toml", [text])))


def _check_twice(bench: Bench, count: int) -> Figures:
    text = _interface("".join(_table("prefix", _address(n // 2)) for n in range(count)), count)
    return bench.command("check", "-c", str(bench.file("it.toml", [text])), fails=True)


def _list_files(bench: Bench, count: int) -> str:
    for n in range(count):
        bench.file(f"list{n}", _addresses(_PER_LIST, n * _PER_LIST))
    return _interface("".join(_table("file", f"list{n}") for n in range(count)), count * _PER_LIST)


def _check_lists(bench: Bench, count: int) -> Figures:
    text = _list_files(bench, count)
    return bench.command("check", "-c", str(bench.file("it.toml", [text])))


def _check_list(bench: Bench, count: int) -> Figures:
    bench.file("list", _addresses(count))
    text = _interface(_table("file", "list"), count)
    return bench.command("check", "-c", str(bench.file("it.toml", [text])))


# ---- a daemon -----------------------------------------------------------------------------------


def _start_prefixes(bench: Bench, count: int) -> Figures:
    text = _interface("".join(_table("prefix", _address(n)) for n in range(count)), count)
    with bench.daemon(bench.file("it.toml", [text])) as daemon:
        return {"daemon s": daemon.spent, "peak MB": daemon.peak}


def _start_lists(bench: Bench, count: int) -> Figures:
    with bench.daemon(bench.file("it.toml", [_list_files(bench, count)])) as daemon:
        return {"daemon s": daemon.spent, "peak MB": daemon.peak}


def _start_list(bench: Bench, count: int) -> Figures:
    bench.file("list", _addresses(count))
    text = _interface(_table("file", "list"), count)
    with bench.daemon(bench.file("it.toml", [text])) as daemon:
        return {"daemon s": daemon.spent, "peak MB": daemon.peak}


def _reload(bench: Bench, count: int) -> Figures:
    """All addresses are different ones afterwards."""
    bench.file("list", _addresses(count))
    configuration = bench.file("it.toml", [_interface(_table("file", "list"), 2 * count)])
    found: dict[str, float] = {}
    with bench.daemon(configuration) as daemon:
        bench.file("list", _addresses(count, count))
        with daemon.working(found):
            daemon.send_hangup()
        found["peak MB"] = daemon.peak
    return found


def _reload_few(bench: Bench, count: int) -> Figures:
    """Reload after a change of one address."""
    bench.file("list", _addresses(count))
    configuration = bench.file("it.toml", [_interface(_table("file", "list"), 2 * count)])
    found: dict[str, float] = {}
    with bench.daemon(configuration) as daemon:
        bench.file("list", _addresses(count, 1))
        with daemon.working(found):
            daemon.send_hangup()
    return found


# ---- rules of an attached interface -------------------------------------------------------------


def _change(bench: Bench, lines: Iterable[str], room: int, *words: str) -> Figures:
    """Add or delete a rule while a daemon has those of a list."""
    bench.file("list", lines)
    configuration = bench.file("it.toml", [_interface(_table("file", "list"), room)])
    found: dict[str, float] = {}
    with bench.daemon(configuration) as daemon:
        if words[0] == "del":
            bench.command("prefix", "add", "-i", LINK, *words[1:])
        with daemon.working(found):
            found |= bench.command("prefix", words[0], "-i", LINK, *words[1:])
    return found


def _add_to_addresses(bench: Bench, count: int) -> Figures:
    return _change(bench, _addresses(count), count, "add", _ONE)


def _add_to_prefixes(bench: Bench, count: int) -> Figures:
    return _change(bench, _prefixes(count), 0, "add", _ONE)


def _classes(bench: Bench, count: int, more: str = "") -> Path:
    """Write a configuration with a rule class for each of `count` prefixes."""
    tables = (
        _table("prefix", prefix.strip()) + more.format(n=n)
        for n, prefix in enumerate(_prefixes(count))
    )
    return bench.file("it.toml", [_interface("".join(tables))])


def _add_to_classes(bench: Bench, count: int) -> Figures:
    found: dict[str, float] = {}
    with bench.daemon(_classes(bench, count)) as daemon, daemon.working(found):
        found |= bench.command("prefix", "add", "-i", LINK, _ONE)
    return found


def _scrape(bench: Bench, count: int) -> Figures:
    with bench.daemon(_classes(bench, count)):
        return bench.command("metrics")


def _link_event(bench: Bench, count: int) -> Figures:
    """Measure a daemon when an interface appears that one of the sets of `dev` matches."""
    more = 'answer = "routed"\ndev = ["tap{n}", "none"]\n'
    found: dict[str, float] = {}
    with bench.daemon(_classes(bench, count, more)) as daemon:
        try:
            with daemon.working(found):
                in_host("ip", "link", "add", "tap7", "type", "veth", "peer", "name", "peer7")
        finally:
            in_host("ip", "link", "delete", "tap7")
    return found


def _delete(bench: Bench, count: int) -> Figures:
    return _change(bench, _addresses(count), count, "del", _ONE)


def _add_all(bench: Bench, count: int) -> Figures:
    file = bench.file("list", _addresses(count))
    with bench.attached("--max-addresses", str(count + 1000)):
        return bench.command("prefix", "add", "-i", LINK, "--file", str(file))


def _delete_all(bench: Bench, count: int) -> Figures:
    file = bench.file("list", _addresses(count))
    with bench.attached("--max-addresses", str(count + 1000), "--file", str(file)):
        return bench.command("prefix", "del", "-i", LINK, "--all")


def _list(bench: Bench, count: int, *words: str) -> Figures:
    file = bench.file("list", _addresses(count))
    with bench.attached("--max-addresses", str(count + 1000), "--file", str(file)):
        return bench.command("prefix", "list", "-i", LINK, *words)


def _list_text(bench: Bench, count: int) -> Figures:
    return _list(bench, count)


def _list_json(bench: Bench, count: int) -> Figures:
    return _list(bench, count, "--json")


CURVES = (
    Curve("check, [[interface.prefix]] with a prefix", _check_prefixes, _CLASSES),
    Curve("check, prefixes of which each is there twice", _check_twice),
    Curve("check, lists of 100 addresses", _check_lists, _LISTS),
    Curve("check, addresses in a list", _check_list, _MILLION),
    Curve("daemon starts, [[interface.prefix]] with a prefix", _start_prefixes, _CLASSES),
    Curve("daemon starts, lists of 100 addresses", _start_lists, _LISTS),
    Curve("daemon starts, addresses in a list", _start_list, MANY),
    Curve("reload, all addresses of a list changed", _reload, MANY),
    Curve("reload, one address of a list changed", _reload_few, MANY),
    Curve("prefix add of one beside addresses", _add_to_addresses, _MILLION),
    Curve("prefix add of one beside prefixes", _add_to_prefixes, _MILLION),
    Curve("prefix add of one beside rule classes", _add_to_classes, _CLASSES),
    Curve("scrape of the metrics, rule classes", _scrape, _CLASSES),
    Curve("interface appears, rules of different `dev`", _link_event, _CLASSES[:3]),
    Curve("prefix del of one beside addresses", _delete, _MILLION),
    Curve("prefix add of a list of addresses", _add_all, _MILLION),
    Curve("prefix del --all of addresses", _delete_all, _MILLION),
    Curve("prefix list of addresses", _list_text, _MILLION),
    Curve("prefix list --json of addresses", _list_json, _MILLION),
)
