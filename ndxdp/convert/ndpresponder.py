"""Conversion of a command line of ndpresponder into a draft. Pure."""

from __future__ import annotations

import re
import shlex

from ndxdp.convert import width
from ndxdp.convert.container_run import after_image
from ndxdp.convert.draft import Draft, DraftInterface, DraftRule, Note
from ndxdp.convert.width import UNKNOWN, Host
from ndxdp.errors import UsageError
from ndxdp.rules.address import parse_address
from ndxdp.rules.interface_name import check_interface
from ndxdp.rules.prefix import Prefix, parse_target

_FLAGS = {
    "i": "ifname",
    "ifname": "ifname",
    "n": "subnet",
    "subnet": "subnet",
    "N": "docker-network",
    "docker-network": "docker-network",
}
_LEVELS = {
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "error": "error",
    "dpanic": "error",
    "panic": "error",
    "fatal": "error",
}
_LOG = re.compile(r"(?:-e|--env=)?NDPRESPONDER_LOG=(.*)", re.DOTALL)
_PROGRAM = re.compile(r"(?:.*/)?ndpresponder(?::[^/@]*)?(?:@[^/]*)?")
_HELP = ("h", "help")


def convert(line: str, host: Host = UNKNOWN) -> Draft:
    """Return the draft that corresponds to a command line.

    Args:
        line: The options of ndpresponder, or a whole command of a shell or unit.
        host: Facts of this machine.

    Raises:
        UsageError: ndpresponder refuses the command line.
    """
    try:
        words = shlex.split(line.replace("\\\n", " "))  # a line that continues in the next one
    except ValueError:
        raise UsageError(
            "the command line of ndpresponder has a quote that is not closed",
            "give it as in --ndpresponder '-i eth0 -n 2001:db8::/120'",
        ) from None
    draft = Draft()
    before, given = _options(words)
    for found in filter(None, map(_LOG.fullmatch, before)):
        # ndpresponder ignores a level that it does not know.
        draft.log_level = _LEVELS.get(found[1].lower(), draft.log_level)
    names = given["ifname"]
    if not names or not names[-1]:
        raise UsageError("ndpresponder needs -i", "as in --ndpresponder '-i eth0 -N web'")
    check_interface(names[-1])
    interface = DraftInterface(names[-1])
    if len(names) > 1:
        interface.notes.append(Note(0, f"-i is given {len(names)} times: the last one counts"))
    for text in given["subnet"]:
        _add_subnet(interface, text)
    interface.rules = list({rule.prefix: rule for rule in interface.rules}.values())
    interface.networks = list(dict.fromkeys(given["docker-network"]))
    for name in interface.networks:
        if not name or not name.isprintable():
            raise UsageError(
                f"'{name}' is not the name of a Docker network", "see: docker network ls"
            )
    if interface.networks:
        interface.announce = ("solicit_gateway", "probe")
    width.restrict(interface, host, "ndpresponder")
    draft.interfaces.append(interface)
    return draft


def _options(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the words before ndpresponder's options, and the values of the options.

    The words before are the name of the program, or a command that runs a container.
    """
    if not words or words[0].startswith("-"):
        return [], _values(words)
    start = after_image(words)
    if start is not None:
        return words[:start], _values(words[start:])
    starts = [number + 1 for number, word in enumerate(words) if _PROGRAM.fullmatch(word)]
    # If the program has another name, the options begin at the first word with a dash.
    option = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    start = starts[0] if starts else option
    return words[:start], _values(words[start:])


def _values(words: list[str]) -> dict[str, list[str]]:
    """Return the values by option, read as Go's flags, and split at commas as ndpresponder does."""
    found: dict[str, list[str]] = {"ifname": [], "subnet": [], "docker-network": []}
    rest = iter(words)
    for word in rest:
        if word == "--":
            break
        option = re.fullmatch(r"--?([^-=][^=]*)(?:=(.*))?", word, re.DOTALL)
        if option is None:  # the first other word ends the options
            break
        if option[1] in _HELP:
            raise UsageError(f"{word} makes ndpresponder print its help", "remove it")
        if option[1] not in _FLAGS:
            raise UsageError(
                f"ndpresponder has no option {word}", "it has -i, -n and -N, and their long names"
            )
        value = option[2] if option[2] is not None else next(rest, None)
        if value is None:
            raise UsageError(f"the option {word} of ndpresponder lacks a value", "give it one")
        key = _FLAGS[option[1]]
        found[key] += [value] if key == "ifname" else [part.strip() for part in value.split(",")]
    return found


def _add_subnet(interface: DraftInterface, text: str) -> None:
    """Add the rule for a value of -n, or a note that it is left out."""
    head, slash, tail = text.partition("/")
    if not slash:
        raise UsageError(
            f"ndpresponder does not accept '{text}' as a subnet", f"write it as in {text}/128"
        )
    if re.fullmatch(r"[0-9.]+", head):
        interface.notes.append(Note(0, f"-n {text} is left out: IPv4 has no solicitations"))
        return
    address = parse_address(head)
    if not re.fullmatch(r"[0-9]{1,3}", tail) or int(tail) > 128:
        raise UsageError(
            f"'{text}' has no prefix length from 0 to 128", "write it as in 2001:db8::/64"
        )
    prefix = Prefix.around(address, int(tail))
    try:
        parse_target(str(prefix))
    except UsageError as error:
        interface.notes.append(Note(0, f"-n {text} is left out: {error.message}"))
        return
    interface.rules.append(DraftRule(prefix))
