"""Rules from etcd: real members, alone and three, with TLS and users; loss, compaction, backups."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab.etcd_member import encode
from ndxdp.sources import etcd as source
from ndxdp.sources import etcd_api, etcd_session, http
from ndxdp.sources.etcd_api import EtcdApi
from ndxdp.sources.etcd_settings import Endpoint, Etcd
from tests.fixtures import etcd
from tests.fixtures.etcd import Certificates, Cluster
from tests.fixtures.following import Following, following
from tests.fixtures.hostile import NONSENSE
from tests.fixtures.network import eventually
from tests.fixtures.tcp_relay import TcpRelay


def value(number: int) -> dict[str, object]:
    return {"prefix": address(number)}


def address(number: int) -> str:
    return f"2001:db8::{number:x}"


def endpoint(port: int = 2379, host: str = "127.0.0.1", *, tls: bool = False) -> Endpoint:
    return Endpoint(host, port, tls)


def settings_of(cluster: Cluster) -> Etcd:
    tls = cluster.files is not None
    return Etcd(tuple(endpoint(host=each.address, tls=tls) for each in cluster.members), "h1")


@pytest.fixture
def relayed(one: Cluster) -> Iterator[tuple[Cluster, TcpRelay, Following]]:
    """Yield a member with two keys, a relay before it, and a follower that has read the keys."""
    one.put_all({"vlan7/a": value(1), "vlan7/b": value(2)})
    relay = TcpRelay(("127.0.0.1", 2379))
    with following(Etcd((endpoint(relay.port),), "h1")) as follower:
        follower.becomes(address(1), address(2))
        follower.connects()
        yield one, relay, follower
    relay.cut()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each time that all keys are read."""
    noted: list[int] = []
    pages = EtcdApi.pages

    def counting(self: EtcdApi) -> object:
        noted.append(len(noted))
        return pages(self)

    monkeypatch.setattr(EtcdApi, "pages", counting)
    return noted


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times after which silence is noticed."""
    monkeypatch.setattr(source, "_FIRST_CHECK", 0.2)
    monkeypatch.setattr(source, "_CHECK_AFTER", 0.5)
    monkeypatch.setattr(source, "_LAG", 0.3)
    monkeypatch.setattr(source, "_DELAY_MAX", 0.5)
    monkeypatch.setattr(etcd_session, "_TIMEOUT", 1.0)


# ---- keys ----------------------------------------------------------------------------------------


def test_keys_that_come_change_and_go(one: Cluster) -> None:
    one.put("vlan7/first", value(1))
    one.put("vlan8/other", value(9))
    one.put("vlan7/x", value(10), "/ndxdp/v1/hosts/h10/")
    with following(settings_of(one)) as follower:
        follower.becomes(address(1))
        one.put("vlan7/second", {"prefix": "2001:db8:0:1::/64", "answer": "routed"})
        follower.becomes(address(1), "2001:db8:0:1::/64")
        one.put("vlan7/first", value(3))
        follower.becomes(address(3), "2001:db8:0:1::/64")
        one.delete("vlan7/second")
        follower.becomes(address(3))
        one.put_all({f"vlan7/{number}": value(number) for number in range(100, 150)})
        follower.becomes(address(3), *map(address, range(100, 150)))
        one.delete_all()
        follower.becomes()
        one.put_all({"vlan7/first": value(3)})
        follower.becomes(address(3))
        eventually(lambda: follower.state.revision == one.revision())
        assert follower.state.rules == 1
        assert follower.state.last_event is not None


def test_the_first_key(one: Cluster, reads: list[int]) -> None:
    with following(settings_of(one)) as follower:
        follower.connects()
        assert follower.prefixes == set()
        one.put("vlan7/first", value(1))
        follower.becomes(address(1))
        eventually(lambda: follower.state.confirmed)
        assert len(reads) == 1


def test_more_keys_than_one_page(one: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    one.put_all({f"vlan7/{number}": value(number) for number in range(1, 2602)})
    with following(settings_of(one)) as follower:
        follower.becomes(*map(address, range(1, 2602)))
        assert len(follower.sets) == 1, "not one set for each page"
    # A page that is too long is requested again in parts.
    monkeypatch.setattr(etcd_api, "_PAGE_BYTES", 20_000)
    with following(settings_of(one)) as follower:
        follower.becomes(*map(address, range(1, 2602)))


def test_a_bad_value_is_refused_alone(one: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    one.put_all(
        {
            "vlan7/good": value(1),
            "vlan7/json": "{",
            "vlan7/twice": value(1),
            "vlan7/wide": {"prefix": "::/0"},
            "vlan7/long": "[" * 20_000,
            "vlan7/bytes": b"\xff\x00",
            "vlan7": value(2),
            "vlan7/\x1b[1m": 7,
            "vlan9/unused": value(4),
        }
    )
    with following(settings_of(one)) as follower:
        follower.becomes(address(1))
        assert follower.refused == {
            "vlan7/json": "the value is wrong: not JSON (Expecting property name enclosed in double"
            " quotes: line 1 column 2 (char 1))",
            "vlan7/twice": f"good has {address(1)} already",
            "vlan7/wide": "prefix: the always rule for ::/0 answers for nearly every address, those"
            " of other nodes too",
            "vlan7/long": "the value has 20000 bytes, more than 16384",
            "vlan7/bytes": "the value is not UTF-8",
            "vlan7/": "the key ends after the segment",
            "vlan7/\\x1b[1m": "the value is an integer, not a JSON object",
        }
        assert follower.state.refused == 7
        assert follower.state.unused == {"vlan9": 1}
        lines = [record.message for record in caplog.records if "is refused" in record.message]
        assert len(lines) == 7, lines
        one.put("vlan7/json", value(5))
        follower.becomes(address(1), address(5))
        one.delete("vlan7/good")
        one.put("vlan7/more", value(6))
        follower.becomes(address(1), address(5), address(6))
        assert not {"vlan7/json", "vlan7/twice"} & set(follower.refused)


def test_a_key_that_is_not_utf8(one: Cluster) -> None:
    one.call(
        "/v3/kv/put",
        {"key": encode(etcd.DIRECTORY.encode() + b"vlan7/\xff"), "value": encode("x")},
    )
    with following(settings_of(one)) as follower:
        eventually(lambda: follower.refused)
        assert list(follower.refused) == ["vlan7/\\udcff"]


def test_segments_of_a_reload(one: Cluster, reads: list[int]) -> None:
    one.put_all({"vlan7/a": value(1), "vlan8/b": value(2), "vlan8/a": value(1)})
    settings = settings_of(one)
    with following(settings) as follower:
        follower.becomes(address(1))

        def change(segments: tuple[str, ...]) -> None:
            follower.uplink.spec.segments = segments
            follower.call(lambda: follower.rules.watch(settings, segments))

        change(("vlan7", "vlan8"))
        follower.becomes(address(1), address(2))
        change(("vlan8",))
        follower.becomes(address(1), address(2))
        change(("vlan9",))
        follower.becomes()
        assert len(reads) == 1, "the connection is kept"
        # Another host's keys: the rules stay until those are read.
        one.put("vlan9/c", value(3), "/ndxdp/v1/hosts/h2/")
        follower.call(lambda: follower.rules.watch(replace(settings, host="h2"), ("vlan9",)))
        follower.becomes(address(3))
        assert len(reads) == 2
        follower.call(lambda: follower.rules.watch(None, ()))
        eventually(lambda: follower.status.etcd is None)


# ---- loss of the connection ----------------------------------------------------------------------


def test_a_lost_connection_is_resumed(
    relayed: tuple[Cluster, TcpRelay, Following], reads: list[int]
) -> None:
    cluster, relay, follower = relayed
    relay.cut()
    assert follower.loses().startswith(f"http://127.0.0.1:{relay.port}: ")
    assert follower.prefixes == {address(1), address(2)}
    cluster.put("vlan7/c", value(3))
    cluster.delete("vlan7/a")
    relay.open()
    follower.becomes(address(2), address(3))
    assert not reads, "only the changes were read"


def test_a_compacted_revision_makes_it_read_all_keys(
    relayed: tuple[Cluster, TcpRelay, Following], reads: list[int]
) -> None:
    cluster, relay, follower = relayed
    relay.cut()
    follower.loses()
    cluster.put("vlan7/c", value(3))
    cluster.delete("vlan7/a")
    cluster.put("vlan7/d", value(4))
    cluster.compact()
    relay.open()
    follower.becomes(address(2), address(3), address(4))
    assert len(reads) == 1


def test_compaction_while_connected(relayed: tuple[Cluster, TcpRelay, Following]) -> None:
    cluster, _, follower = relayed
    cluster.compact()
    cluster.put("vlan7/c", value(3))
    follower.becomes(address(1), address(2), address(3))


def test_etcd_restarted(one: Cluster) -> None:
    one.put("vlan7/a", value(1))
    with following(settings_of(one)) as follower:
        follower.becomes(address(1))
        one.kill()
        assert "http://127.0.0.1:2379: " in follower.loses()
        assert follower.prefixes == {address(1)}
        one.start()
        follower.connects()
        one.put("vlan7/b", value(2))
        follower.becomes(address(1), address(2))


@pytest.mark.parametrize("more", [0, 20], ids=["revision-behind", "revision-ahead"])
def test_a_backup_is_restored(
    relayed: tuple[Cluster, TcpRelay, Following], tmp_path: Path, more: int
) -> None:
    """Take the keys of the backup, whether its revisions have overtaken the former ones or not."""
    cluster, relay, follower = relayed
    cluster.save(tmp_path / "backup")
    cluster.put("vlan7/b", value(3))
    cluster.put("vlan7/a", value(5))
    follower.becomes(address(3), address(5))
    relay.cut()
    follower.loses()
    cluster.restore(tmp_path / "backup")
    for number in range(more):
        cluster.put("other", str(number), "/")
    relay.open()
    follower.becomes(address(1), address(2))


def test_an_empty_cluster_in_place_of_the_former(
    relayed: tuple[Cluster, TcpRelay, Following], tmp_path: Path
) -> None:
    cluster, relay, follower = relayed
    relay.cut()
    follower.loses()
    cluster.kill()
    fresh = Cluster(tmp_path / "fresh")
    try:
        fresh.start()
        relay.open()
        follower.becomes()
    finally:
        fresh.kill()


def test_a_change_that_the_stream_does_not_report(
    one: Cluster, hasty: None, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one.put("vlan7/a", value(1))
    changes = etcd_api._changes

    def deaf(answer: dict[str, object]) -> object:
        return changes(answer)._replace(items=[])

    monkeypatch.setattr(etcd_api, "_changes", deaf)
    with following(settings_of(one)) as follower:
        follower.becomes(address(1))
        one.put("vlan7/b", value(2))
        follower.becomes(address(1), address(2))
        assert len(reads) == 2
        eventually(lambda: follower.state.confirmed)


def test_a_key_that_is_missed_while_others_change(
    one: Cluster, hasty: None, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = etcd_api._changes

    def deaf(answer: dict[str, object]) -> object:
        found = changes(answer)
        return found._replace(items=[each for each in found.items if b"missed" not in each.key])

    monkeypatch.setattr(etcd_api, "_changes", deaf)
    with following(settings_of(one)) as follower:
        follower.connects()
        one.put("vlan7/missed", value(1))

        def found() -> bool:
            one.put("vlan7/busy", value(2))
            return follower.prefixes == {address(1), address(2)}

        eventually(found, within=15)
        assert len(reads) == 2


# ---- a cluster -----------------------------------------------------------------------------------


def test_three_members_of_which_some_fail(privacy: None, tmp_path: Path, hasty: None) -> None:
    with etcd.cluster(tmp_path / "etcd", 3) as cluster:
        members = {member.url: member for member in cluster.members}
        numbers = iter(range(1, 100))
        present: list[str] = []
        with following(settings_of(cluster)) as follower:
            follower.becomes()
            follower.connects()

            def changes_arrive() -> None:
                number = next(numbers)
                living = cluster.leader()
                cluster.call(
                    "/v3/kv/put",
                    {
                        "key": encode(f"{etcd.DIRECTORY}vlan7/{number}"),
                        "value": encode(f'{{"prefix": "{address(number)}"}}'),
                    },
                    living,
                )
                present.append(address(number))
                follower.becomes(*present, within=20)

            changes_arrive()
            # The member that it is connected to is killed.
            gone = members[follower.state.endpoint]
            gone.kill()
            changes_arrive()
            gone.start()
            changes_arrive()
            # The leader is killed.
            leader = cluster.leader()
            leader.kill()
            changes_arrive()
            leader.start()
            changes_arrive()
            # The member that it is connected to hangs.
            hung = members[follower.state.endpoint]
            hung.signal(signal.SIGSTOP)
            follower.connects()
            eventually(lambda: follower.state.endpoint != hung.url, within=20)
            hung.signal(signal.SIGCONT)
            changes_arrive()
            # A single member cannot confirm anything.
            alone = members[follower.state.endpoint]
            for member in cluster.members:
                if member is not alone:
                    member.kill()
            follower.loses()
            assert follower.prefixes == set(present)
            alone.kill()
            cluster.start()
            follower.connects()
            changes_arrive()


# ---- TLS and users -------------------------------------------------------------------------------


@pytest.fixture
def files(privacy: None, tmp_path: Path) -> Certificates:
    return etcd.certificates(tmp_path / "pki")


def with_files(settings: Etcd, files: Certificates) -> Etcd:
    certificate, key = str(files.client), str(files.client_key)
    return replace(settings, ca=str(files.ca), certificate=certificate, key=key)


def test_tls_with_a_client_certificate(files: Certificates, tmp_path: Path) -> None:
    with etcd.cluster(tmp_path / "etcd", files=files) as cluster:
        cluster.put("vlan7/a", value(1))
        good = with_files(settings_of(cluster), files)
        with following(good) as follower:
            follower.becomes(address(1))
            cluster.put("vlan7/b", value(2))
            follower.becomes(address(1), address(2))
        other = etcd.certificates(tmp_path / "other")
        for bad, why in (
            (replace(good, ca=str(other.ca)), "certificate verify failed"),
            (replace(good, certificate="", key=""), "certificate"),
            (replace(good, certificate=str(other.client)), "does not belong to the certificate"),
            (replace(good, ca=str(tmp_path / "none.pem")), "No such file or directory"),
            (replace(good, endpoints=(endpoint(),)), ""),
        ):
            with following(bad) as follower:
                assert why in follower.loses()
                assert "_ssl.c" not in follower.state.problem
                assert follower.prefixes is None
        # A file that is replaced is read again.
        client = tmp_path / "client.pem"
        client.write_bytes(other.client.read_bytes())
        with following(replace(good, certificate=str(client))) as follower:
            follower.loses()
            client.write_bytes(files.client.read_bytes())
            follower.becomes(address(1), address(2))


def test_users(one: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one.put("vlan7/a", value(1))
    password = tmp_path / "password"
    password.write_text("wrong\n")
    named = replace(settings_of(one), user="ndxdp", password_file=str(password))
    with following(named) as follower:
        follower.becomes(address(1))  # authentication is not enabled yet
    one.add_user("ndxdp", "secret")
    with following(settings_of(one)) as follower:
        assert "user name is empty" in follower.loses()
    with following(named) as follower:
        assert "authentication failed" in follower.loses()
        password.write_text("secret\n")
        follower.becomes(address(1))
        # All tokens are lost with the process; the follower gets a new one.
        one.kill()
        follower.loses()
        one.start()
        one.log_in()
        one.put("vlan7/b", value(2))
        follower.becomes(address(1), address(2))
        # A change of users makes tokens invalid while the follower is connected.
        one.call("/v3/auth/user/add", {"name": "more", "password": "x"})
        one.log_in()
        one.put("vlan7/c", value(3))
        follower.becomes(address(1), address(2), address(3))
    with following(replace(named, host="h2", prefix="/elsewhere")) as follower:
        assert "permission denied" in follower.loses()
    assert "secret" not in caplog.text


def test_a_token_that_expires(one: Cluster, tmp_path: Path, hasty: None) -> None:
    """Get a new token, without losing the stream, when etcd does not accept the old one."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    one.put("vlan7/a", value(1))
    one.add_user("ndxdp", "secret")
    named = replace(settings_of(one), user="ndxdp", password_file=str(password))
    with following(named) as follower:
        follower.connects()
        eventually(lambda: follower.state.confirmed)
        since, confirmed = follower.state.since, follower.state.confirmed
        assert confirmed is not None
        one.call("/v3/auth/user/add", {"name": "more", "password": "x"})  # a new revision of users
        eventually(lambda: (follower.state.confirmed or 0) > confirmed + 1)
        assert follower.state.since == since


# ---- members that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_a_lost_connection(
    hostile: tuple[Etcd, list[bytes]], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, answers = hostile
    answers.append(NONSENSE[what])
    with following(settings) as follower:
        assert follower.loses()
        assert follower.prefixes is None
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all(record.message.isprintable() for record in caplog.records)


def test_a_name_that_no_server_knows(privacy: None) -> None:
    with following(Etcd((endpoint(host="nowhere.invalid"),), "h1")) as follower:
        assert "nowhere.invalid" in follower.loses()


# ---- requests ------------------------------------------------------------------------------------


def test_a_header_with_a_line_end_is_not_sent() -> None:
    import asyncio

    async def send() -> None:
        near, far = socket.socketpair()
        with near, far:
            reader, writer = await asyncio.open_connection(sock=near)
            exchange = http.Exchange(reader, writer)
            await exchange.send("x", http.Request("/", headers=(("Authorization", "a\r\nb: c"),)))

    with pytest.raises(http.NoAnswer, match="the request is not HTTP"):
        asyncio.run(send())


def test_openssl_is_loaded_for_tls_only(one: Cluster, tmp_path: Path) -> None:
    """Load nothing of TLS for http://; and repair asyncio, imported without ssl, for https://."""
    script = """if True:
        import sys
        from ndxdp import memory
        memory.import_without("ssl", "asyncio")
        import asyncio
        from ndxdp.sources.etcd import Watcher
        from ndxdp.sources.etcd_settings import Endpoint, Etcd
        tls = sys.argv[1] == "tls"
        settings = Etcd((Endpoint("127.0.0.1", 2379, tls),), "h1", ca=sys.argv[2] if tls else "")
        async def main():
            watcher = Watcher(settings)
            async for batch in watcher.watch(lambda: 0):
                return batch
        async def losing():
            watcher = Watcher(settings)
            task = asyncio.ensure_future(anext(watcher.watch(lambda: 0)))
            while not watcher.problem:
                await asyncio.sleep(0.01)
            task.cancel()
            return watcher.problem
        print(asyncio.run(losing() if tls else main()))
        print("_ssl" in sys.modules)
    """
    files = etcd.certificates(tmp_path / "pki")

    def run(word: str) -> str:
        command = (sys.executable, "-c", script, word, str(files.ca))
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Batch" in run("http")
    assert "False" in run("http")
    assert "https://127.0.0.1:2379: " in run("tls")  # the member speaks HTTP
    assert "True" in run("tls")
