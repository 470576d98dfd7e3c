"""The lease of a host: real members that are killed, stopped, cut off, restored; users and TLS."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.etcd_member import encode
from ndxdp.sources.etcd_lease import guard_of
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster, Member
from tests.fixtures.hostile import NONSENSE, answer
from tests.fixtures.keeping import keeping
from tests.fixtures.network import PATIENCE, eventually, sh
from tests.fixtures.slow_disk import slow_disk
from tests.fixtures.tcp_relay import TcpRelay
from tests.test_etcd import endpoint, settings_of, with_files

TTL = 3


def settings(cluster: Cluster) -> Etcd:
    return replace(settings_of(cluster), lease=TTL)


@pytest.fixture
def three(privacy: None, tmp_path: Path) -> Iterator[Cluster]:
    with etcd.cluster(tmp_path / "etcd", 3) as cluster:
        yield cluster


def leases(cluster: Cluster, member: Member | None = None) -> set[int]:
    found = cluster.call("/v3/lease/leases", {}, member).get("leases") or []
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


def key(name: str, lease: int) -> dict[str, object]:
    return {"key": encode(name), "value": encode("x"), "lease": str(lease)}


# ---- members that fail ---------------------------------------------------------------------------


def test_the_leader_is_killed(three: Cluster) -> None:
    with keeping(settings(three)) as keeper:
        first = keeper.renews(2)
        for _ in range(2):
            leader = three.leader()
            leader.kill()
            last = keeper.renews(4)
            leader.start()
            three.wait_for(leader)
        assert last.lease == first.lease
        assert not keeper.losses


@pytest.mark.parametrize("is_leader", [True, False], ids=["leader", "follower"])
def test_a_member_hangs(three: Cluster, is_leader: bool) -> None:
    """Keep the lease; it is long enough for an election on a busy machine."""
    with keeping(replace(settings(three), lease=2 * TTL)) as keeper:
        first = keeper.renews(2)
        leader = three.leader()
        hung = leader if is_leader else next(m for m in three.members if m is not leader)
        hung.signal(signal.SIGSTOP)
        last = keeper.renews(4, within=30)
        assert keeper.keeper.endpoint != hung.url
        hung.signal(signal.SIGCONT)
        three.wait_for(hung)
        last = keeper.renews(2)
        assert last.lease == first.lease
        assert not keeper.losses


def test_the_disk_of_the_leader_hangs(privacy: None, tmp_path: Path) -> None:
    """Do not believe a leader that answers, but has been replaced (etcd's issue 15247)."""
    sh("ip", "link", "set", "lo", "up")
    with slow_disk() as slow, contextlib.closing(Cluster(tmp_path / "etcd", 3)) as three:
        first, *_ = three.members
        first.disk = slow
        three.start()
        three.lead(first)
        only = replace(settings(three), endpoints=(Endpoint(first.address, 2379, False),))
        with keeping(settings(three)) as keeper, keeping(only) as believer:
            keeper.renews(2)
            believer.renews(2)
            slow.freeze()
            try:
                # Its next write hangs, and others replace it.
                writing = threading.Thread(
                    target=three.try_to_call, args=("/v3/kv/put", key("/k", 0))
                )
                writing.start()
                believer.loses()
                keeper.renews(4, within=30)
                assert leases(three, three.members[1]) == {keeper.keeper.lease}
            finally:
                slow.thaw()
                writing.join()
            assert not keeper.losses
            assert len({renewal.lease for renewal in keeper.renewals}) == 1
            believer.renews()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=lambda each: each.name)
def test_all_members_fail(three: Cluster, number: signal.Signals) -> None:
    """Count as lost when `until` has passed, and not before; the lease survives in etcd's data."""
    with keeping(settings(three)) as keeper:
        first = keeper.renews(2)
        for member in three.members:
            member.signal(number)
        lost, until = keeper.loses(), keeper.renewals[-1].until
        assert 0 <= lost - until < 0.5e9 * PATIENCE
        assert (keeper.keeper.lease, keeper.keeper.until) == (0, 0)
        assert keeper.keeper.problem
        if number == signal.SIGKILL:
            three.kill()
            three.start()
        for member in three.members:
            member.signal(signal.SIGCONT)
        last = keeper.renews(3)
        assert not keeper.keeper.problem
        assert len(keeper.losses) == 1
        # Members that hung count the time: the lease has expired, or is renewed.
        assert last.lease == first.lease or number == signal.SIGSTOP
        eventually(lambda: leases(three) == {last.lease})


def test_a_member_without_a_majority(three: Cluster) -> None:
    with keeping(settings(three)) as keeper:
        keeper.renews(2)
        _, *others = three.members
        for member in others:
            member.kill()
        lost, until = keeper.loses(), keeper.renewals[-1].until
        assert 0 <= lost - until < 0.5e9 * PATIENCE
        for member in others:
            member.start()
        keeper.renews(2)


def test_the_way_to_a_member_is_cut(three: Cluster) -> None:
    relays = [TcpRelay((member.address, 2379)) for member in three.members]
    wanted = replace(settings(three), endpoints=tuple(endpoint(each.port) for each in relays))
    with keeping(wanted) as keeper:
        first = keeper.renews(2)
        for _ in range(3):
            near = next(each for each in relays if str(each.port) in keeper.keeper.endpoint)
            near.cut()
            last = keeper.renews(2)
            assert str(near.port) not in keeper.keeper.endpoint
            near.open()
        assert last.lease == first.lease
        assert not keeper.losses
    for each in relays:
        each.cut()


# ---- the lease in etcd ---------------------------------------------------------------------------


def test_a_lease_is_adopted(one: Cluster) -> None:
    with keeping(settings(one)) as former:
        lease = former.renews().lease
    assert leases(one) == {lease}, "stop() leaves it as it is"
    with keeping(settings(one), lease) as keeper:
        keeper.renews(2)
        assert {renewal.lease for renewal in keeper.renewals} == {lease}
    with keeping(settings(one), 4711) as keeper:
        assert keeper.renews(2).lease not in (lease, 4711)
        assert not keeper.losses


def test_somebody_revokes_the_lease(one: Cluster) -> None:
    with keeping(settings(one)) as keeper:
        first = keeper.renews()
        one.call("/v3/kv/put", key("/k", first.lease))
        one.call("/v3/lease/revoke", {"ID": str(first.lease)})
        keeper.loses()
        last = keeper.renews(2)
        assert last.lease != first.lease
        assert len(keeper.losses) == 1
        assert leases(one) == {last.lease}


def test_etcd_is_restarted(one: Cluster) -> None:
    with keeping(replace(settings(one), lease=10)) as keeper:
        first = keeper.renews()
        one.kill()
        eventually(lambda: keeper.keeper.problem)
        one.start()
        assert keeper.renews(2).lease == first.lease
        assert not keeper.losses
        assert not keeper.keeper.problem


@pytest.mark.parametrize("is_known", [True, False], ids=["lease-in-backup", "lease-lost"])
def test_a_backup_is_restored(one: Cluster, tmp_path: Path, is_known: bool) -> None:
    if not is_known:
        one.save(tmp_path / "backup")
    with keeping(replace(settings(one), lease=10)) as keeper:
        first = keeper.renews()
        if is_known:
            one.save(tmp_path / "backup")
        one.restore(tmp_path / "backup")
        last = keeper.renews(2)
        assert (last.lease == first.lease) is is_known
        assert len(keeper.losses) == (0 if is_known else 1)


def test_the_end_of_a_lease_while_etcd_is_away(one: Cluster) -> None:
    with keeping(settings(one)) as keeper:
        lease = keeper.renews().lease
        one.members[0].signal(signal.SIGSTOP)
        assert not keeper.run(keeper.keeper.revoke(0.5))
        one.members[0].signal(signal.SIGCONT)
        assert not keeper.losses
        eventually(lambda: lease not in leases(one), within=4 * TTL)


# ---- TLS and users -------------------------------------------------------------------------------


def test_tls(privacy: None, tmp_path: Path) -> None:
    files = etcd.certificates(tmp_path / "pki")
    with etcd.cluster(tmp_path / "etcd", files=files) as cluster:
        wanted = with_files(settings(cluster), files)
        with keeping(wanted) as keeper:
            keeper.renews(5)
            session = keeper.keeper._client._session
            assert session is not None
            assert session.connection.opened == 1
            assert not keeper.losses
        with keeping(replace(wanted, ca=str(tmp_path / "none"))) as keeper:
            eventually(lambda: "No such file" in keeper.keeper.problem)


def test_users(privacy: None, tmp_path: Path) -> None:
    """Get a new token when the former one has expired, or users have changed."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    with etcd.cluster(tmp_path / "etcd", more=("--auth-token-ttl", "2")) as one:
        one.add_user("ndxdp", "secret", settings(one).directory)
        named = replace(settings(one), user="ndxdp", password_file=str(password))
        with keeping(settings(one)) as stranger, keeping(named) as keeper:
            keeper.renews(2)
            one.log_in()
            one.call("/v3/auth/user/add", {"name": "more", "password": "x"})
            last = keeper.renews(5)
            assert last.lease == keeper.renewals[0].lease
            assert not keeper.losses
            assert "user name is empty" in stranger.keeper.problem
            assert keeper.run(keeper.keeper.revoke())


# ---- members that are none -----------------------------------------------------------------------


WRONG = {
    **NONSENSE,
    "no id": answer('{"header": {"revision": "1"}, "TTL": "5"}'),
    "no ttl": answer('{"header": {"revision": "1"}, "ID": "5"}'),
    "a ttl below 0": answer('{"header": {"revision": "1"}, "ID": "5", "TTL": "-3"}'),
    "an id below 0": answer('{"header": {"revision": "1"}, "ID": "-5", "TTL": "3"}'),
    "an error in a stream": answer('{"error": {"grpc_code": 14, "message": "no leader"}}'),
    "an error of another kind": answer('{"error": {"grpc_code": [], "http_code": "x"}}'),
}


@pytest.mark.parametrize("what", WRONG)
def test_nonsense_is_no_lease(hostile: tuple[Etcd, list[bytes]], what: str) -> None:
    wanted, answers = hostile
    answers.append(WRONG[what])
    with keeping(replace(wanted, lease=TTL)) as keeper:
        eventually(lambda: keeper.keeper.problem, within=15)
        assert keeper.keeper.problem.isprintable()
        assert not keeper.renewals


@pytest.mark.parametrize("what", WRONG)
def test_nonsense_is_no_renewal(hostile: tuple[Etcd, list[bytes]], what: str) -> None:
    wanted, answers = hostile
    answers.append(WRONG[what])
    with keeping(replace(wanted, lease=TTL), 7) as keeper:
        eventually(lambda: keeper.keeper.problem, within=15)
        assert not keeper.renewals
        assert not keeper.losses


def test_a_renewal_of_another_lease(hostile: tuple[Etcd, list[bytes]]) -> None:
    wanted, answers = hostile
    answers.append(answer('{"header": {"revision": "1"}, "result": {"ID": "8", "TTL": "60"}}'))
    with keeping(replace(wanted, lease=TTL), 7) as keeper:
        eventually(lambda: "another lease" in keeper.keeper.problem, within=15)
        assert not keeper.renewals
