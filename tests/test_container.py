"""The container's files agree with each other. `make test-image` runs them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from ndxdp.config import reader

REPOSITORY = Path(__file__).resolve().parent.parent
CONTAINER = REPOSITORY / "packaging" / "container"
COMPOSE, DAEMONSET = ((CONTAINER / name).read_text() for name in ("compose.yaml", "daemonset.yaml"))
UNIT = (REPOSITORY / "ndxdp/data/ndxdp.service").read_text()


def test_compose_daemonset_and_unit_give_the_same_capabilities() -> None:
    (unit,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
    wanted = {name.removeprefix("CAP_") for name in unit.split()}
    (added,) = re.findall(r"cap_add:\n((?: +- .*\n)+)", COMPOSE)
    assert set(re.findall(r"- (\w+)", added)) == wanted
    assert "cap_drop: [ALL]" in COMPOSE
    (added,) = re.findall(r"add: \[(.*)\]", DAEMONSET)
    assert set(added.split(", ")) == wanted
    assert "drop: [ALL]" in DAEMONSET


def test_pins_are_where_the_image_looks_for_them() -> None:
    (place,) = re.findall(
        r"^ENV NDXDP_BPFFS=(.*)$", (CONTAINER / "Containerfile").read_text(), re.M
    )
    assert f"- /sys/fs/bpf:{place} " in COMPOSE
    assert re.search(rf"name: bpf\n +mountPath: {place}\n", DAEMONSET)
    assert re.search(r"name: bpf\n +hostPath:\n +path: /sys/fs/bpf\n", DAEMONSET)


def test_the_daemonsets_configuration_is_a_good_one(tmp_path: Path) -> None:
    (text,) = re.findall(r"  ndxdp\.toml: \|\n((?:    .*\n|\n)+)", DAEMONSET)
    path = tmp_path / "ndxdp.toml"
    path.write_text(textwrap.dedent(text))
    (interface,) = reader.load(str(path)).interfaces
    assert interface.name == "eth0"
    assert len(interface.rules) == 1
