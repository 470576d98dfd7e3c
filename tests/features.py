"""What older kernels lack, found out by trying, and the tests that need it.

A test that needs one is skipped where it is missing, but fails where the kernel is new enough to
have it: so no skip hides that ndxdp, or the probe, is broken.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import re
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import pytest

from ndxdp.kernel import bpf_hooks, bpf_programs

needs = pytest.mark.needs
"""`@needs("xdp")`: the test needs that feature. Those with a mode's name in their parameters are
known to need XDP without it."""


class Feature(NamedTuple):
    """since: the first kernel that has it."""

    since: tuple[int, int]
    what: str
    is_there: Callable[[], bool]


def _renames_what_is_up() -> bool:
    link = ("ip", "link")
    subprocess.run([*link, "add", "probe1", "up", "type", "bridge"], check=True)
    renamed = subprocess.run([*link, "set", "probe1", "name", "probe2"], capture_output=True)
    name = "probe1" if renamed.returncode else "probe2"
    subprocess.run([*link, "delete", name], check=True)
    return renamed.returncode == 0


def _has_tcx() -> bool:
    query = (ctypes.c_uint32 * 16)(1, bpf_hooks.BPF_TCX_INGRESS)  # what is on `lo`
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, 16, ctypes.byref(query), ctypes.sizeof(query)) == 0)


def _tells_allmulti() -> bool:
    shown = subprocess.run(("ip", "-d", "link", "show", "lo"), stdout=subprocess.PIPE, text=True)
    return " allmulti " in shown.stdout


def _tells_encap() -> bool:
    link, prefix = "probe1", "2001:db8:ffff::/64"
    encap = ("encap", "seg6", "mode", "encap", "segs", "2001:db8::5")
    subprocess.run(("ip", "link", "add", link, "up", "type", "bridge"), check=True)
    subprocess.run(("ip", "-6", "route", "add", prefix, *encap, "dev", link), check=True)
    get = ("ip", "-6", "route", "get", "2001:db8:ffff::1")
    got = subprocess.run(get, stdout=subprocess.PIPE, text=True)
    subprocess.run(("ip", "link", "delete", link), check=True)
    return "encap" in got.stdout


FEATURES = {
    "xdp": Feature((5, 18), "XDP for frames in several pieces", bpf_programs.xdp_has_frags),
    "allmulti": Feature((6, 0), "count of who wants all multicast", _tells_allmulti),
    # Since when exactly was not tried: 5.10 has it not, 6.1 has it.
    "encap": Feature((6, 1), "word of a route's encapsulation when it is asked", _tells_encap),
    "tcx": Feature((6, 6), "BPF links for tc", _has_tcx),
    "rename": Feature((6, 2), "renaming of interfaces that are up", _renames_what_is_up),
}


@functools.cache
def lacks(name: str) -> bool:
    """The kernel has it not. Who may not try is left to the test's own failure."""
    try:
        return not FEATURES[name].is_there()
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        return False


def check(item: pytest.Item) -> None:
    """Skip a test whose needs this kernel does not meet; fail it where it should meet them."""
    names = [str(name) for mark in item.iter_markers("needs") for name in mark.args]
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        words = re.split(r"[-\[\]]", item.callspec.id)
        names += ["xdp"] if {"native", "generic"} & set(words) else []
    for name in names:
        if lacks(name):
            feature = FEATURES[name]
            release = os.uname().release
            version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
            if version >= feature.since:
                pytest.fail(f"Linux {release} has no {feature.what}, it seems", pytrace=False)
            pytest.skip(f"this kernel has no {feature.what}")
