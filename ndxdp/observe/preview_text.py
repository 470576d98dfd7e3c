"""Previews of changes as a diff for people, and as data for `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ndxdp.kernel.abi import Mode
from ndxdp.observe.render import rule_data, rule_text
from ndxdp.rules.difference import difference
from ndxdp.rules.prefix import Prefix
from ndxdp.rules.rule import Rule
from ndxdp.session import modes
from ndxdp.session.preview import Preview


def attach_summary(preview: Preview) -> str:
    """Return a few words on the mode that an attach leads to."""
    was, now = preview.before.get("mode"), preview.after.get("mode")
    if now is None:
        return "nothing is attached"
    words = f"would be attached in {now} mode"
    if was == now:
        words = f"stays in {now} mode"
    elif was is not None:
        words = f"would change from {was} to {now} mode"
    others = [mode.label for mode in preview.modes[1:]]
    if others:
        words += f", or in {' or '.join(others)} mode if the driver refuses"
    elif was != now and now == Mode.NATIVE.label:
        words += ", unless the driver refuses"
    refused = "; ".join(modes.format_refusals(preview.refusals))
    return words + (f" ({refused})" if refused else "")


def detach_summary(preview: Preview) -> str:
    """Return a few words on what a detach removes."""
    was = preview.before.get("mode")
    return f"would be detached from {was} mode" if was else "nothing is attached"


def rules_summary(preview: Preview) -> str:
    """Return the number of rules that change."""
    counts = {"+": 0, "-": 0}
    for sign, _, _ in _changed_rules(preview):
        counts[sign] += 1
    return f"rules: {counts['+']} added, {counts['-']} removed"


def preview_lines(preview: Preview, summary: str) -> Iterator[str]:
    """Yield the summary, the notes, and a diff of the state and of the rules, by prefix."""
    yield f"{preview.interface}  {summary}"
    for note in preview.notes:
        yield f"  {note}"
    is_same = True
    for line in _diff(preview):
        is_same = False
        yield line
    if is_same and not preview.notes:
        yield "  nothing would change"


def preview_data(preview: Preview, *, dry_run: bool) -> dict[str, Any]:
    """Return a preview, or the change that it has become, as data."""
    rules: dict[str, list[dict[str, Any]]] = {"add": [], "remove": []}
    for sign, prefix, rule in _changed_rules(preview):
        rules["add" if sign == "+" else "remove"].append(rule_data(prefix, rule))
    return {
        "interface": preview.interface,
        "dry_run": dry_run,
        "mode": preview.after.get("mode"),
        "other_modes": [mode.label for mode in preview.modes[1:]],
        "steps_down": [{"mode": mode.label, "why": why} for mode, why in preview.refusals],
        "before": preview.before,
        "after": preview.after,
        "rules": rules,
        "notes": list(preview.notes),
    }


def _diff(preview: Preview) -> Iterator[str]:
    for name, now in preview.after.items():
        was = preview.before.get(name)
        if was == now:
            continue
        # What is off or 0 where nothing was attached, or will be, is no change.
        if was is not None and (was or now is not None):
            yield f"- {name} {_word(was)}"
        if now is not None and (now or was is not None):
            yield f"+ {name} {_word(now)}"
    for sign, prefix, rule in _changed_rules(preview):
        yield f"{sign} {rule_text(prefix, rule)}"


def _changed_rules(preview: Preview) -> Iterator[tuple[str, Prefix, Rule]]:
    """Yield the rules that are removed (-) and added (+), in the order of their prefixes."""
    change = difference(preview.desired, preview.actual)
    removed = dict(change.remove.pairs()) | dict(preview.actual.restricted_to(change.write).pairs())
    added = dict(change.write.pairs())
    for prefix in sorted({*removed, *added}):
        if prefix in removed:
            yield "-", prefix, removed[prefix]
        if prefix in added:
            yield "+", prefix, added[prefix]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
