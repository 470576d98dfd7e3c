"""Writing of TOML, for files that ndxdp proposes. Pure."""

from __future__ import annotations

import json


def quoted(text: str) -> str:
    """Return a basic string of TOML: as in JSON, except that DEL must be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
