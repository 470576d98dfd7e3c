"""Values in etcd that are refused, as the log and the status name them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from ndxdp.printable import shown

log = logging.getLogger(__name__)

SHOWN_MAX = 20
"""Refused values that the status names."""

_LOGGED_MAX = 20  # lines for one batch of keys


def log_refused(refused: Sequence[tuple[str, str]]) -> None:
    """Log values that are refused now, some of them if there are many.

    Args:
        refused: The key, as text for the log, and the reason.
    """
    for key, reason in refused[:_LOGGED_MAX]:
        log.warning("etcd: %s is refused: %s", key, reason)
    if len(refused) > _LOGGED_MAX:
        log.warning("etcd: %d more values are refused", len(refused) - _LOGGED_MAX)


def shown_refused(segments: Iterable[tuple[str, Mapping[str, str]]]) -> list[dict[str, str]]:
    """Return some of the values that are refused, for the status; another thread may call this.

    Args:
        segments: The segments, and why the values of which names are refused there.
    """
    found = (
        {"key": f"{segment}/{shown(name)}", "reason": reason}
        for segment, refused in segments
        for name, reason in list(refused.items())
    )
    return list(islice(found, SHOWN_MAX))
