"""ndxdp/kernel/abi.py against the BTF of the compiled object: the header defines the layout."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ndxdp.kernel import abi
from ndxdp.kernel.loader import OBJECT
from ndxdp.ndp.frame import FRAME_MAX
from ndxdp.ndp.profile import Answer
from ndxdp.ndp.reason import Reason

BTF = dict[int, dict[str, Any]]
HEADER = Path(__file__).parent.parent / "bpf" / "ndp_abi.h"


@cache
def btf() -> BTF:
    """Return the types of the object by id."""
    return dumped(OBJECT)


def dumped(path: object) -> BTF:
    """Return the types by id, as bpftool prints them."""
    done = subprocess.run(
        ["bpftool", "--json", "btf", "dump", "file", str(path)], check=True, capture_output=True
    )
    return {entry["id"]: entry for entry in json.loads(done.stdout)["types"]}


def named(kind: str, name: str, types: BTF | None = None) -> dict[str, Any]:
    types = types or btf()
    found = [entry for entry in types.values() if (entry["kind"], entry["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name} stands {len(found)} times in the object"
    return found[0]


def size_of(type_id: int, types: BTF | None = None) -> int:
    entry = (types or btf())[type_id]
    if entry["kind"] == "ARRAY":
        return int(entry["nr_elems"]) * size_of(entry["type_id"], types)
    return int(entry["size"]) if "size" in entry else size_of(entry["type_id"], types)


def number(type_id: int) -> int:
    """Return the number that libbpf's __uint() encodes: the length of an array behind a pointer."""
    return int(btf()[btf()[type_id]["type_id"]]["nr_elems"])


IN_NO_MAP = (
    *(abi.REQUEST, abi.EVENT, abi.ADDRESS_TABLE, abi.BUCKET),
    *(abi.DEV_SET, abi.DEV),
)
"""The types that no map of the object has: records of ring buffers, and entries of maps that are in
arrays or that no program uses."""


@pytest.mark.parametrize(
    "layout", [each for each in abi.LAYOUTS if each not in IN_NO_MAP], ids=lambda each: each.name
)
def test_struct(layout: abi.Layout) -> None:
    check_struct(layout, btf())


@pytest.mark.parametrize("layout", IN_NO_MAP, ids=lambda each: each.name)
def test_struct_of_the_header(layout: abi.Layout, tmp_path: Path) -> None:
    made = tmp_path / "header.o"
    code = f"#include <linux/types.h>\n#include <ndp_abi.h>\nstruct {layout.name} one;\n"
    clang = ["clang", "-target", "bpf", "-g", "-xc", "-", "-c", "-o", str(made)]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    clang += [f"-I{HEADER.parent}", f"-I/usr/include/{multiarch}"]
    subprocess.run(clang, input=code.encode(), check=True)
    check_struct(layout, dumped(made))


def check_struct(layout: abi.Layout, types: BTF) -> None:
    struct = named("STRUCT", layout.name, types)
    fields = {
        member["name"]: (member["bits_offset"] // 8, size_of(member["type_id"], types))
        for member in struct["members"]
    }
    assert layout.offsets() == fields
    assert layout.size == struct["size"]


@pytest.mark.parametrize(
    ("enum", "prefix", "mirror"),
    [
        ("ndp_reason", "NDP_", Reason),
        ("ndp_answer", "NDP_", Answer),
        ("ndp_na_source", "NDP_SOURCE_", abi.NaSourceCode),
        ("ndp_rule_class_flag", "NDP_CLASS_", abi.ClassFlag),
        ("ndp_rule_flag", "NDP_RULE_", abi.RuleFlag),
        ("ndp_mode", "NDP_MODE_", abi.Mode),
        ("ndp_restore_flag", "NDP_RESTORE_", abi.Restore),
    ],
)
def test_enum(enum: str, prefix: str, mirror: Any) -> None:
    """Mirror the enums of the header; the object lacks an enum that only Python reads."""
    values = header_enum(enum)
    values.pop(f"{prefix}REASON_MAX" if enum == "ndp_reason" else "", None)
    assert {member.name: member.value for member in mirror} == {
        name.removeprefix(prefix): value for name, value in values.items()
    }


def test_reasons_in_the_object() -> None:
    """Compile the program from the current header: its reasons have the header's numbers."""
    compiled = {value["name"]: value["val"] for value in named("ENUM", "ndp_reason")["values"]}
    assert compiled == header_enum("ndp_reason")
    assert compiled["NDP_REASON_MAX"] == len(Reason)


def test_maps() -> None:
    section = named("DATASEC", ".maps")
    found = {}
    for variable in section["vars"]:
        entry = btf()[variable["type_id"]]
        members = {m["name"]: m["type_id"] for m in btf()[entry["type_id"]]["members"]}
        found[entry["name"]] = abi.MapSpec(
            entry["name"],
            number(members["type"]),
            size_of(btf()[members["key"]]["type_id"]) if "key" in members else 0,
            size_of(btf()[members["value"]]["type_id"]) if "value" in members else 0,
            number(members["max_entries"]),
            number(members["map_flags"]) if "map_flags" in members else 0,
        )
    assert found == abi.MAPS


def test_hashes_in_arrays() -> None:
    """The kernel compares all but the capacity of a hash with what the object says."""
    section = named("DATASEC", ".maps")
    found = {}
    for variable in section["vars"]:
        entry = btf()[variable["type_id"]]
        members = {m["name"]: m["type_id"] for m in btf()[entry["type_id"]]["members"]}
        if "values" not in members:
            continue
        inner = btf()[btf()[btf()[members["values"]]["type_id"]]["type_id"]]
        fields = {m["name"]: number(m["type_id"]) for m in inner["members"]}
        found[entry["name"]] = abi.MapSpec(
            entry["name"],
            fields["type"],
            fields["key_size"],
            fields["value_size"],
            0,
            fields["map_flags"],
        )
    expected = {"addresses": abi.TABLE._replace(name="addresses")}
    expected |= {name: spec for name, spec in abi.HASHES.items() if name in abi.MAPS}
    assert found == {name: spec._replace(max_entries=0) for name, spec in expected.items()}


def test_constants() -> None:
    defines = header_defines()
    assert defines["NDP_ABI_VERSION"] == abi.VERSION
    assert defines["NDP_MAX_ADDRESSES"] == abi.MAX_ADDRESSES
    assert defines["NDP_BUCKET_SLOTS"] == abi.BUCKET_SLOTS
    assert defines["NDP_PROBES"] == abi.PROBES
    assert defines["NDP_MAX_PREFIXES"] == abi.MAX_PREFIXES
    assert defines["NDP_HINTS"] == abi.HINTS
    assert defines["NDP_MAX_RULE_CLASSES"] == abi.MAX_RULE_CLASSES
    assert defines["NDP_FIRST_RULE_CLASSES"] == abi.FIRST_RULE_CLASSES
    assert defines["NDP_MAX_DEV_SETS"] == abi.MAX_DEV_SETS
    assert defines["NDP_MAX_SOLICITORS"] == abi.MAX_SOLICITORS
    assert defines["NDP_MAX_DEVS"] == abi.MAX_DEVS
    assert defines["NDP_MAX_LOCALS"] == abi.MAX_LOCALS
    assert defines["NDP_MAX_DRY_RUNS"] == abi.MAX_DRY_RUNS
    assert defines["NDP_EVENTS"] == abi.EVENTS
    assert defines["NDP_EVENT_FRAME"] == abi.EVENT_FRAME
    assert defines["NDP_REQUESTS"] == abi.REQUESTS
    assert defines["NDP_FRAME_MAX"] == FRAME_MAX


@cache
def preprocessed(*flags: str) -> str:
    done = subprocess.run(
        ["clang", "-E", "-P", *flags, str(HEADER)], check=True, capture_output=True, text=True
    )
    return done.stdout


def header_enum(name: str) -> dict[str, int]:
    body = preprocessed().partition(f"enum {name} {{")[2].partition("}")[0]
    pairs = (item.split("=") for item in body.split(",") if item.strip())
    return {key.strip(): int(value) for key, value in pairs}


def header_defines() -> dict[str, int]:
    words = (line.split() for line in preprocessed("-dM").splitlines())
    return {word[1]: int(word[2]) for word in words if word[1].startswith("NDP_") and word[2:]}
