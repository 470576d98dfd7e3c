"""Conversion of files of other responders, whose kind follows from their content. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ndxdp.convert import ndp_proxy_go, ndppd, openwrt
from ndxdp.convert.draft import Draft
from ndxdp.convert.width import Host
from ndxdp.errors import NdxdpError, UsageError
from ndxdp.printable import printable

_NDPPD = re.compile(r"^[ \t]*(?:proxy|route-ttl|address-ttl)\b", re.MULTILINE)
_UCI = re.compile(r"^[ \t]*(?:config|package)[ \t]+[\"'\w]", re.MULTILINE)


def convert(files: Sequence[tuple[str, str]], host: Host) -> Draft:
    """Return the draft that corresponds to the files of one responder.

    Args:
        files: Names and texts: one file of ndppd or ndp-proxy-go, or files of OpenWrt.
        host: Facts of this machine.

    Raises:
        NdxdpError: The files are wrong.
        UsageError: There are several files, and not all are OpenWrt's.
    """
    if all(_is_uci(text) for _, text in files):
        return openwrt.convert(files)
    if len(files) > 1:
        other = next(name for name, text in files if not _is_uci(text))
        raise UsageError(
            f"only OpenWrt's files are converted together, and {printable(other)} is none of them",
            "as in ndxdp convert /etc/config/dhcp /etc/config/network",
        )
    ((name, text),) = files
    if not _NDPPD.search(text) and ndp_proxy_go.is_about(text):
        try:
            return ndp_proxy_go.convert(ndp_proxy_go.of_file(text))
        except UsageError as error:
            raise NdxdpError(f"{printable(name)}: {error.message}", error.hint) from None
    return ndppd.convert(text, name, host)


def _is_uci(text: str) -> bool:
    return bool(_UCI.search(text)) and not _NDPPD.search(text)
