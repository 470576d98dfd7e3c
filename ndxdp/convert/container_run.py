"""Finds the image in a command line of `docker run`, `podman run` and the like. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENGINE = re.compile(r"(?:.*[/=])?(?:docker|podman|nerdctl)")
"""The program, as a unit file may have it, too: `ExecStart=/usr/bin/docker`."""

_SWITCHES = (
    *("detach", "disable-content-trust", "env-host", "help", "http-proxy", "init", "interactive"),
    *("no-healthcheck", "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged"),
    *("publish-all", "quiet", "read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs"),
    *("sig-proxy", "tls-verify", "tty", "unsetenv-all", "use-api-socket"),
)
"""Long options without a value, of docker 28 and podman 5; all others have one."""

_SHORT_SWITCHES = "diPqt"


def after_image(words: Sequence[str]) -> int | None:
    """Return the place of the first word behind the image; None where no engine runs one."""
    engine = next((at for at, word in enumerate(words) if _ENGINE.fullmatch(word)), None)
    if engine is None:
        return None
    run = next((at for at in range(engine, len(words)) if words[at] in ("run", "create")), None)
    if run is None:
        return None
    at = run + 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        word = words[at]
        at += 1
        if word == "--":
            break
        at += _has_value_behind(word)
    return at + 1 if at < len(words) else None


def _has_value_behind(option: str) -> bool:
    """Return True if the word behind an option is its value."""
    if option.startswith("--"):
        return "=" not in option and option.removeprefix("--") not in _SWITCHES
    # In `-itv /a:/b`, and in `-itv/a:/b`, `v` is the first letter that takes a value.
    letters = option.removeprefix("-").lstrip(_SHORT_SWITCHES)
    return len(letters) == 1
