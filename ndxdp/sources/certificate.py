"""The time when a certificate in a PEM file expires. Pure, but for reading the file.

Python's ssl decodes the certificates of peers and of authorities only. This module reads the one
field of a client's own certificate (RFC 5280 section 4.1) from its DER encoding.
"""

from __future__ import annotations

import base64
import calendar
import re
import time
from pathlib import Path

from ndxdp.errors import UsageError

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def expiry_of(path: str) -> float:
    """Return when the first certificate in a file expires, in seconds since 1970.

    Raises:
        UsageError: The file cannot be read, or has no certificate in PEM.
    """
    try:
        match = _PEM.search(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    try:
        if match is None:
            raise ValueError("no PEM")
        return not_after(base64.b64decode(match[1]))
    except (ValueError, IndexError):
        raise UsageError(
            f"{path} has no certificate in PEM",
            f"openssl x509 -in {path} -noout -enddate shows what it has",
        ) from None


def unreadable(path: str, error: OSError | ValueError) -> UsageError:
    """Return the error for a file that cannot be read, or whose path no file can have."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(f"cannot read {path}: {reason}", f"to see its permissions: namei -l {path}")


def not_after(der: bytes) -> float:
    """Return the end of a certificate's validity, in seconds since 1970.

    Raises:
        ValueError: The bytes are no certificate.
        IndexError: The bytes break off.
    """
    at, _ = _enter(der, 0, _SEQUENCE)  # Certificate
    at, _ = _enter(der, at, _SEQUENCE)  # tbsCertificate
    if der[at] == _VERSION:
        at = _skip(der, at)
    for _ in ("serialNumber", "signature", "issuer"):
        at = _skip(der, at)
    at, _ = _enter(der, at, _SEQUENCE)  # validity
    at = _skip(der, at)  # notBefore
    tag = der[at]
    begin, end = _enter(der, at, tag)
    text = der[begin:end].decode("ascii")
    if tag == _UTC_TIME:  # two digits of the year: 1950 to 2049
        text = f"{'19' if text[:2] >= '50' else '20'}{text}"
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _enter(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """Return where the content of the element at `at` begins and ends."""
    if der[at] != tag:
        raise ValueError("another element")
    length = der[at + 1]
    begin = at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise ValueError("a length")
        length = int.from_bytes(der[begin : begin + size], "big")
        begin += size
    if begin + length > len(der):
        raise ValueError("the element breaks off")
    return begin, begin + length


def _skip(der: bytes, at: int) -> int:
    """Return where the element after the one at `at` begins."""
    return _enter(der, at, der[at])[1]
