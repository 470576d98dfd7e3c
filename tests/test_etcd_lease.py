"""The lease of a host: real members that are killed, stopped, cut off, restored; users and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ndxdp.sources.etcd_lease import guard_of
from ndxdp.sources.etcd_settings import Etcd
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.keeping import keeping
from tests.test_etcd import settings_of

TTL = 3


def settings(cluster: Cluster) -> Etcd:
    return replace(settings_of(cluster), lease=TTL)


@pytest.fixture
def one(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    with etcd.cluster(tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
def three(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    with etcd.cluster(tmp_path / "etcd", 3) as cluster:
        yield cluster


def leases(cluster: Cluster) -> set[int]:
    found = cluster.call("/v3/lease/leases", {}).get("leases") or []
    return {int(each["ID"]) for each in found}


def test_a_lease_is_granted_renewed_and_revoked(one: Cluster) -> None:
    with keeping(settings(one)) as keeper:
        first = keeper.renews()
        last = keeper.renews(3)
        assert last.lease == first.lease == keeper.keeper.lease
        assert leases(one) == {last.lease}
        for each in keeper.renewals:
            left = (each.until - each.at) / 1e9
            assert left <= TTL - guard_of(TTL)
        apart = [b.at - a.at for a, b in zip(keeper.renewals, keeper.renewals[1:], strict=False)]
        assert min(apart) > 0.85 * TTL / 3 * 1e9
        assert keeper.run(keeper.keeper.revoke())
        assert leases(one) == set()
        assert not keeper.losses
