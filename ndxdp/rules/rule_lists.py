"""Rules as users write them: prefixes on a command line, and list files. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import replace

from ndxdp.errors import UsageError
from ndxdp.ndp.profile import DEFAULT_PROFILE, Answer
from ndxdp.rules.address_set import AddressSet
from ndxdp.rules.prefix import Prefix, parse_target
from ndxdp.rules.rule import Rule
from ndxdp.rules.ruleset import Rules

_ALWAYS = Rule()


def compile_rules(
    answered: Iterable[str],
    excepted: Iterable[str] = (),
    *,
    rule: Rule = _ALWAYS,
) -> Rules:
    """Make the rules of a command line.

    The label of a rule is its prefix, unless `rule` has a label.

    Args:
        answered: Prefixes that `rule` applies to (`-n`).
        excepted: Prefixes that are never answered for (`--except`).
        rule: The rule for the answered prefixes.

    Raises:
        UsageError: A text is no prefix, or a prefix is given twice.
    """
    rules: dict[Prefix, Rule] = {}
    never = replace(rule, answer=Answer.NEVER, profile=DEFAULT_PROFILE, dev=())
    for texts, template in ((answered, rule), (excepted, never)):
        for text in texts:
            prefix = parse_target(text)
            if prefix in rules:
                raise UsageError(
                    f"{prefix} is given twice"
                    + ("" if rules[prefix].answer is template.answer else ", to answer and not to"),
                    "name every prefix once",
                )
            rules[prefix] = template if template.label else replace(template, label=str(prefix))
    return Rules.of(rules)


def rules_of_lines(lines: Iterable[str], name: str, rule: Rule) -> Rules:
    """Make the rules of a list: one prefix or address in a line, # starts a comment.

    All prefixes share one rule, so that they are counted together.

    Args:
        lines: The lines.
        name: The name of the list, which becomes the rule's label, unless `rule` has a label.
        rule: The rule.

    Raises:
        UsageError: A text is no prefix, or a prefix is given twice; the message names the list and
            the line.
    """
    rule = rule if rule.label else replace(rule, label=name)
    wider: dict[Prefix, Rule] = {}
    packed, lines_of = bytearray(), array("Q")
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            prefix = parse_target(text)
        except UsageError as error:
            raise UsageError(f"{name}:{number}: {error.message}", error.hint) from None
        if prefix.length == 128:
            packed += prefix.address
            lines_of.append(number)
        elif prefix in wider:
            raise _twice(prefix, name, number)
        else:
            wider[prefix] = rule
    addresses = AddressSet(packed)
    if len(addresses) < len(lines_of):
        seen: set[bytes] = set()
        for at, number in enumerate(lines_of):
            address = bytes(packed[at * 16 : (at + 1) * 16])
            if address in seen:
                raise _twice(Prefix(address, 128), name, number)
            seen.add(address)
    return Rules({rule: addresses}, wider)


def _twice(prefix: Prefix, name: str, line: int) -> UsageError:
    return UsageError(f"{name}:{line}: {prefix} is given twice", "name every prefix once")
