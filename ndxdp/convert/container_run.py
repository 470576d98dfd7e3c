"""The arguments after the image in a command such as `docker run` or `podman run`. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ENGINE = re.compile(r"(?:.*[/=])?(?:docker|podman|nerdctl)")
"""The engine's command, also as a unit file has it: `ExecStart=/usr/bin/docker`."""

_SWITCHES = (
    *("detach", "disable-content-trust", "env-host", "help", "http-proxy", "init", "interactive"),
    *("no-healthcheck", "no-hostname", "no-hosts", "oom-kill-disable", "passwd", "privileged"),
    *("publish-all", "quiet", "read-only", "read-only-tmpfs", "replace", "rm", "rmi", "rootfs"),
    *("sig-proxy", "tls-verify", "tty", "unsetenv-all", "use-api-socket"),
)
"""Long options of docker 28 and podman 5 that take no value; all others take one."""

_SHORT_SWITCHES = "diPqt"


def after_image(words: Sequence[str]) -> int | None:
    """Return the index of the first word after the image; None if no engine runs a container."""
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
        at += _takes_next_word(word)
    return at + 1 if at < len(words) else None


def _takes_next_word(option: str) -> bool:
    """Return True if the word after an option is its value."""
    if option.startswith("--"):
        return "=" not in option and option.removeprefix("--") not in _SWITCHES
    # In `-itv /a:/b` and `-itv/a:/b`, `v` is the first letter that takes a value.
    letters = option.removeprefix("-").lstrip(_SHORT_SWITCHES)
    return len(letters) == 1
