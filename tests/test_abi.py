"""ndxdp/kernel/abi.py against the BTF of the compiled object: the header is the single truth."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ndxdp import ndp
from ndxdp.kernel import abi
from ndxdp.kernel.loader import OBJECT

BTF = dict[int, dict[str, Any]]


@cache
def btf() -> BTF:
    """Type id -> type, as bpftool prints it."""
    done = subprocess.run(
        ["bpftool", "--json", "btf", "dump", "file", str(OBJECT)], check=True, capture_output=True
    )
    return {entry["id"]: entry for entry in json.loads(done.stdout)["types"]}


def named(kind: str, name: str) -> dict[str, Any]:
    found = [entry for entry in btf().values() if (entry["kind"], entry["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name} stands {len(found)} times in the object"
    return found[0]


def size_of(type_id: int) -> int:
    entry = btf()[type_id]
    if entry["kind"] == "ARRAY":
        return int(entry["nr_elems"]) * size_of(entry["type_id"])
    return int(entry["size"]) if "size" in entry else size_of(entry["type_id"])


def number(type_id: int) -> int:
    """What libbpf's __uint() hides in a type: a pointer to an array of so many elements."""
    return int(btf()[btf()[type_id]["type_id"]]["nr_elems"])


@pytest.mark.parametrize("layout", abi.LAYOUTS, ids=lambda layout: layout.name)
def test_struct(layout: abi.Layout) -> None:
    struct = named("STRUCT", layout.name)
    fields = {
        member["name"]: (member["bits_offset"] // 8, size_of(member["type_id"]))
        for member in struct["members"]
    }
    assert layout.offsets() == fields
    assert layout.size == struct["size"]


@pytest.mark.parametrize(
    ("enum", "prefix", "mirror"),
    [
        ("ndp_reason", "NDP_", ndp.Reason),
        ("ndp_answer", "NDP_", ndp.Answer),
        ("ndp_na_source", "NDP_SOURCE_", abi.NaSourceCode),
        ("ndp_group_flag", "NDP_GROUP_", abi.GroupFlag),
        ("ndp_rule_flag", "NDP_RULE_", abi.RuleFlag),
        ("ndp_mode", "NDP_MODE_", abi.Mode),
        ("ndp_left_flag", "NDP_LEFT_", abi.Left),
    ],
)
def test_enum(enum: str, prefix: str, mirror: Any) -> None:
    """From the header: an enum that only Python reads leaves no trace in the object."""
    values = header_enum(enum)
    values.pop(f"{prefix}REASON_MAX" if enum == "ndp_reason" else "", None)
    assert {member.name: member.value for member in mirror} == {
        name.removeprefix(prefix): value for name, value in values.items()
    }


def test_reasons_in_the_object() -> None:
    """The program that was compiled has the header's numbers, not those of another day."""
    compiled = {value["name"]: value["val"] for value in named("ENUM", "ndp_reason")["values"]}
    assert compiled == header_enum("ndp_reason")
    assert compiled["NDP_REASON_MAX"] == len(ndp.Reason)


def test_maps() -> None:
    section = named("DATASEC", ".maps")
    found = {}
    for variable in section["vars"]:
        entry = btf()[variable["type_id"]]
        members = {m["name"]: m["type_id"] for m in btf()[entry["type_id"]]["members"]}
        found[entry["name"]] = abi.MapSpec(
            entry["name"],
            number(members["type"]),
            size_of(btf()[members["key"]]["type_id"]),
            size_of(btf()[members["value"]]["type_id"]),
            number(members["max_entries"]),
            number(members["map_flags"]),
        )
    assert found == abi.MAPS


def test_constants() -> None:
    defines = header_defines()
    assert defines["NDP_ABI_VERSION"] == abi.VERSION
    assert defines["NDP_MAX_ADDRESSES"] == abi.MAX_ADDRESSES
    assert defines["NDP_MAX_PREFIXES"] == abi.MAX_PREFIXES
    assert defines["NDP_MAX_GROUPS"] == abi.MAX_GROUPS
    assert defines["NDP_MAX_SOLICITORS"] == abi.MAX_SOLICITORS
    assert defines["NDP_FRAME_MAX"] == ndp.FRAME_MAX


@cache
def preprocessed(*flags: str) -> str:
    header = Path(__file__).parent.parent / "bpf" / "ndp_abi.h"
    done = subprocess.run(
        ["clang", "-E", "-P", *flags, str(header)], check=True, capture_output=True, text=True
    )
    return done.stdout


def header_enum(name: str) -> dict[str, int]:
    body = preprocessed().partition(f"enum {name} {{")[2].partition("}")[0]
    pairs = (item.split("=") for item in body.split(",") if item.strip())
    return {key.strip(): int(value) for key, value in pairs}


def header_defines() -> dict[str, int]:
    words = (line.split() for line in preprocessed("-dM").splitlines())
    return {word[1]: int(word[2]) for word in words if word[1].startswith("NDP_") and word[2:]}
