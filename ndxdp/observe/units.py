"""Durations as text. Pure."""


def elapsed(seconds: float) -> str:
    """Format a duration: `3 s`, `5 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
