"""Settings of the mixin: the job, the thresholds, the address of the documentation."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path


def _documentation() -> str:
    """Return the address of docs/, from pyproject.toml: a fork changes it there."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    index: str = tomllib.loads(project.read_text())["project"]["urls"]["Documentation"]
    return index.rpartition("/")[0]


@dataclass(frozen=True)
class Config:
    """Settings of the mixin.

    Attributes:
        selector: The selector of ndxdp's series.
        docs: The address of the documentation, which alerts and panels link to.
        map_fill: The fill of a map above which NdxdpMapNearlyFull fires.
        neighbour_fill: The fill of the kernel's neighbour table above which
            NdxdpNeighbourTableNearlyFull fires.
        descriptors: The share of file descriptors in use above which
            NdxdpDescriptorsNearlyUsed fires.
        share_fill: The fill of a share above which NdxdpShareNearlyFull fires.
        lease_left: The part of a lease below which NdxdpFleetLeaseShort fires. Two thirds are left
            when a renewal is due.
        rival_window: The time for which NdxdpFleetRival fires after a rival was seen.
        flood: The solicitations per second on one interface above which NdxdpFlood fires.
        unanswered_window: The time without an answer after which NdxdpNoneAnswered fires.
        unanswered_ignored: Reasons with which a solicitation needs no answer.
    """

    selector: str = 'job="ndxdp"'
    docs: str = field(default_factory=_documentation)
    map_fill: float = 0.9
    neighbour_fill: float = 0.8
    descriptors: float = 0.8
    share_fill: float = 0.8
    lease_left: float = 0.5
    rival_window: str = "10m"
    flood: int = 5000
    unanswered_window: str = "30m"
    unanswered_ignored: str = (
        "other_vlan|own_frame|other_host|denied|paused|dad_ignored|dad_on_link"
    )


CONFIG = Config()
