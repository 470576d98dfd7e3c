"""Mirror of bpf/ndp_abi.h: struct layouts, maps, limits, flags.

The header is authoritative; tests/test_abi.py compares this module with the BTF of the compiled
object. All integers are in the host's byte order; addresses and MACs are bytes as on the wire.
"""

from __future__ import annotations

import struct
import sys
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 8
FORMER_VERSIONS = (6, 7)
"""The versions whose pins and files attaching takes over; see session/former_layout.py."""

IS_LITTLE_ENDIAN = sys.byteorder == "little"

MAX_ADDRESSES = 131072
BUCKET_SLOTS = 3
PROBES = 16
MAX_PREFIXES = 1048576
MAX_RULE_CLASSES = 65536
FIRST_RULE_CLASSES = 1024
MAX_DEV_SETS = 65536
REASON_MAX = 36
HINTS = 1024
MAX_SOLICITORS = 8192
MAX_DEVS = 65536
MAX_LOCALS = 65536
MAX_ON_LINK = 16384
MAX_GATEWAYS = 64
MAX_DRY_RUNS = 64
EVENTS = 262144
EVENT_FRAME = 128
REQUESTS = 65536


class Mode(IntEnum):
    """enum ndp_mode: the hook to which the program is attached, or a process without a program."""

    NATIVE = 1
    GENERIC = 2
    TC = 3
    USERSPACE = 4

    @property
    def label(self) -> str:
        """The mode's name in the configuration and in output."""
        return self.name.lower()

    @property
    def program(self) -> str:
        """Return the name of the entry point for this hook."""
        return "ndp_tc" if self is Mode.TC else "ndp_xdp"


class Restore(IntFlag):
    """enum ndp_restore_flag: what detaching restores, and how the program is attached."""

    ALLMULTI = 1
    CLSACT = 2
    NETLINK = 4
    RUN = 8
    MCAST_ROUTER = 16


class NaSourceCode(IntEnum):
    """enum ndp_na_source."""

    TARGET = 0
    LINK_LOCAL = 1
    ADDRESS = 2


class ClassFlag(IntFlag):
    """enum ndp_rule_class_flag."""

    ROUTER = 1
    OVERRIDE = 2
    DEFEND = 4
    LLADDR = 8
    DYNAMIC = 16
    DEV = 32
    LEASED = 64


class RuleFlag(IntFlag):
    """enum ndp_rule_flag."""

    OWNED = 1
    PRESENT = 2


class Layout:
    """Layout of a C struct: its fields in order, each with its `struct` code, without padding."""

    def __init__(self, name: str, **fields: str) -> None:
        self.name = name
        self.fields = fields
        self._struct = struct.Struct("=" + "".join(fields.values()))
        self.size = self._struct.size

    def pack(self, **values: Any) -> bytes:
        """Return the bytes of the struct; a field that is not named is zero."""
        zeros = (b"" if code.endswith("s") else 0 for code in self.fields.values())
        return self._struct.pack(*(dict(zip(self.fields, zeros, strict=True)) | values).values())

    def pack_all(self, *values: Any) -> bytes:
        """Return the bytes of the struct from all fields in order, in a tenth of pack()'s time."""
        return self._struct.pack(*values)

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Return the fields of the struct by name."""
        return dict(zip(self.fields, self._struct.unpack(data), strict=True))

    def offsets(self) -> dict[str, tuple[int, int]]:
        """Return the offset and the size of each field, in bytes."""
        at, found = 0, {}
        for field, code in self.fields.items():
            size = struct.calcsize("=" + code)
            found[field] = (at, size)
            at += size
        return found


_WORDS = struct.Struct("=4I")


def hint(address: bytes) -> int:
    """Return the number of an address's bit in `hints`, as ndp_hint() does."""
    words: tuple[int, int, int, int] = _WORDS.unpack(address)
    a, b, c, d = words
    return ((a * 0x85EBCA6B ^ b * 0xC2B2AE35 ^ c * 0x27D4EB2F ^ d * 0x9E3779B1) & 0xFFFFFFFF) >> 16


PREFIX = Layout("ndp_prefix", length="I", address="16s")
RULE = Layout("ndp_rule", rule_class="H", answer="B", flags="B", prefix_len="B", reserved="3s")
ADDRESS_TABLE = Layout(
    "ndp_address_table",
    seed="40s",
    buckets="I",
    max_addresses="I",
    used="I",
    reserved="12s",
)
BUCKET = Layout(
    "ndp_bucket", addresses=f"{BUCKET_SLOTS * 16}s", rules=f"{BUCKET_SLOTS * 4}s", passed="I"
)
RULE_CLASS = Layout(
    "ndp_rule_class",
    na_source="B",
    flags="B",
    lladdr="6s",
    address="16s",
    dev_set="I",
    origin="16s",
    label="48s",
)
DEV_SET = Layout("ndp_dev_set", patterns="128s")
SHARE = Layout("ndp_share", answers="Q", requests="Q")
DEV = Layout("ndp_dev", dev_set="I", ifindex="I")
REQUEST = Layout(
    "ndp_request",
    time="Q",
    source="16s",
    target="16s",
    eth_source="6s",
    peer="6s",
    rule_class="H",
    reserved="2s",
)
RESOLVER = Layout("ndp_resolver", asked="Q", answered="Q", failed="Q", refused="Q")
CLASS_COUNT = Layout("ndp_class_count", solicited="Q", answered="Q", last_answer="Q")
SETTINGS = Layout(
    "ndp_settings",
    heartbeat="Q",
    heartbeat_timeout="Q",
    rate_interval="Q",
    rate_credit="Q",
    total_interval="Q",
    total_credit="Q",
    gateway_interval="Q",
    gateway_credit="Q",
    resolve_interval="Q",
    resolve_credit="Q",
    resolve_total_interval="Q",
    resolve_total_credit="Q",
    resolve_gateway_interval="Q",
    resolve_gateway_credit="Q",
    trace_until="Q",
    link_local="16s",
    mac="6s",
    paused="B",
    solicits="B",
    l3_ifindex="I",
    trace_every="I",
    ifindex="I",
    reserved1="4s",
    netns="Q",
    mode="B",
    restore="B",
    bcc="B",
    reserved="5s",
    refusals="256s",
)
LEASE = Layout("ndp_lease", until="Q")
EXPLAINED = Layout(
    "ndp_explained",
    rule_class="H",
    reason="B",
    matched="B",
    answer="B",
    flags="B",
    prefix_len="B",
    reserved="B",
)
EVENT = Layout(
    "ndp_event",
    time="Q",
    length="I",
    captured="I",
    verdict=f"{EXPLAINED.size}s",
    frame=f"{EVENT_FRAME}s",
    reply="86s",
    reserved="2s",
)
TRACER = Layout("ndp_tracer", seen="Q", lost="Q", event=f"{EVENT.size}s")

LAYOUTS = (
    *(PREFIX, RULE, ADDRESS_TABLE, BUCKET, RULE_CLASS, CLASS_COUNT, DEV_SET, DEV, SHARE, REQUEST),
    *(RESOLVER, SETTINGS, LEASE, EXPLAINED, EVENT, TRACER),
)

# enum bpf_map_type and flags, linux/bpf.h
HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, _LRU_HASH = 1, 2, 5, 6, 9
_LPM_TRIE, ARRAY_OF_MAPS, _QUEUE, _RINGBUF = 11, 12, 22, 27
NO_PREALLOC, _MMAPABLE, _INNER_MAP = 1, 1 << 10, 1 << 12


class MapSpec(NamedTuple):
    """Declaration of a map in the program; sizes in bytes."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


_MORE_RULE_CLASSES = MAX_RULE_CLASSES - FIRST_RULE_CLASSES

MORE_SLOTS = {"groups": "more_classes", "group_counters": "more_counters"}
"""The hash that has the further slots of an array. In userspace mode, the array's file grows."""

MAPS = {
    spec.name: spec
    for spec in (
        MapSpec("addresses", ARRAY_OF_MAPS, 4, 4, 1),
        MapSpec("hints", ARRAY, 4, 8, HINTS),
        MapSpec("prefixes", _LPM_TRIE, PREFIX.size, RULE.size, MAX_PREFIXES, NO_PREALLOC),
        MapSpec("groups", ARRAY, 4, RULE_CLASS.size, FIRST_RULE_CLASSES),
        MapSpec("more_classes", ARRAY_OF_MAPS, 4, 4, 1),
        MapSpec("group_counters", PERCPU_ARRAY, 4, CLASS_COUNT.size, FIRST_RULE_CLASSES),
        MapSpec("more_counters", ARRAY_OF_MAPS, 4, 4, 1),
        MapSpec("reasons", PERCPU_ARRAY, 4, 8, REASON_MAX),
        MapSpec("settings", ARRAY, 4, SETTINGS.size, 1),
        MapSpec("lease", ARRAY, 4, LEASE.size, 1),
        MapSpec("limiter", _LRU_HASH, 8, 8, MAX_SOLICITORS),
        MapSpec("requesters", _LRU_HASH, 8, 8, MAX_SOLICITORS),
        MapSpec("gateways", HASH, 8, SHARE.size, MAX_GATEWAYS, NO_PREALLOC),
        MapSpec("shares", ARRAY, 4, SHARE.size, 1),
        MapSpec("requests", _RINGBUF, 0, 0, REQUESTS),
        MapSpec("resolver", ARRAY, 4, RESOLVER.size, 1),
        MapSpec("vias", ARRAY_OF_MAPS, 4, 4, 1),
        MapSpec("locals", _LPM_TRIE, PREFIX.size, 1, MAX_LOCALS, NO_PREALLOC),
        MapSpec("on_link", HASH, 16, 1, MAX_ON_LINK, NO_PREALLOC),
        MapSpec("events", _RINGBUF, 0, 0, EVENTS),
        MapSpec("tracers", PERCPU_ARRAY, 4, TRACER.size, 1),
        MapSpec("explained", HASH, 4, EXPLAINED.size, MAX_DRY_RUNS, NO_PREALLOC),
    )
}

HASHES = {
    spec.name: spec
    for spec in (
        MapSpec("more_classes", HASH, 4, RULE_CLASS.size, _MORE_RULE_CLASSES, NO_PREALLOC),
        MapSpec("more_counters", PERCPU_HASH, 4, CLASS_COUNT.size, _MORE_RULE_CLASSES, NO_PREALLOC),
        MapSpec("vias", HASH, DEV.size, 1, MAX_DEVS, NO_PREALLOC),
        MapSpec("dev_sets", HASH, 4, DEV_SET.size, MAX_DEV_SETS, NO_PREALLOC),
    )
}
"""The hashes that exist only once they have had an entry; see store/late_hash.py. Each is then the
only element of the map of its name in MAPS. The program does not use `dev_sets`, which has none."""

TABLE = MapSpec("address_table", ARRAY, 4, BUCKET.size, 1, _MMAPABLE | _INNER_MAP)
"""The table of exact addresses, the only element of `addresses`, with as many elements as it needs;
see store/address_table.py."""

CHANGES = MapSpec("changes", _QUEUE, 0, PREFIX.size, 256)
"""The queue of prefixes that commands change, for the daemon; see store/handover.py. No program
uses it, so the header has no counterpart."""

USERSPACE = Layout("userspace", reserved="Q", overflows="Q", errors="Q", seen="Q", lost="Q")
"""Counters of userspace mode beside the reasons: solicitations for which the socket had no room,
errors of the socket, and the counters of ndp_tracer. `reserved` keeps their places in files that
version 7 has written. The header has no counterpart."""

_PROGRAM_ALONE = {
    *(
        "hints",
        "limiter",
        "requesters",
        "gateways",
        "shares",
        "requests",
        "vias",
        *MORE_SLOTS.values(),
        "locals",
        "on_link",
        "events",
        "tracers",
        "explained",
    )
}

FILES = {name: spec for name, spec in MAPS.items() if name not in _PROGRAM_ALONE} | {
    "addresses": MapSpec("addresses", HASH, 16, RULE.size, MAX_ADDRESSES),
    "dev_sets": HASHES["dev_sets"],
    "userspace": MapSpec("userspace", ARRAY, 4, USERSPACE.size, 1),
}
"""Files of userspace mode: the maps, except those that only the BPF program uses. The entries of
`addresses` are an address and an abi.RULE there, and there are no buckets."""

GROWING = dict.fromkeys(MORE_SLOTS, MAX_RULE_CLASSES)
"""Elements that those arrays of FILES can have that grow."""


def not_ours(path: Path) -> tuple[str, str]:
    """Return problem and hint for a pin or a file that is not a map of this ABI version."""
    return (
        f"{path} is not a map of ABI version {VERSION}",
        f"another program made it; to remove it: rm -r {path.parent}",
    )
