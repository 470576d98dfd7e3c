"""The permissions that docs/fleet.md names suffice for shared addresses, and permit no more."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ndxdp.sources.etcd_client import EtcdClient, error_of
from ndxdp.sources.etcd_session import Denied
from ndxdp.sources.etcd_settings import Etcd
from ndxdp.sources.etcd_store import Store
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.keeping import keeping
from tests.fixtures.network import REPOSITORY
from tests.fixtures.ranges import watching
from tests.test_etcd import settings_of
from tests.test_etcd_store import delete, put

ROOT = "/ndxdp/v1/"
_PAGE = REPOSITORY / "docs" / "fleet.md"


def documented() -> list[str]:
    """Return the commands of the section, in its order."""
    section = _PAGE.read_text().partition("\n## Who may write what\n")[2].partition("\n## ")[0]
    return re.findall(r"^# (etcdctl .*)$", section, re.MULTILINE)


@pytest.fixture
def node7(privacy: None, tmp_path: Path) -> Iterator[tuple[Cluster, Etcd]]:
    """Yield etcd with the users and roles of the page, and settings of the user node7."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    with etcd.cluster(tmp_path / "etcd") as one:
        commands = documented()
        assert len(commands) > 7
        for command in commands:
            words = shlex.split(command.replace("user add node7", "user add node7:secret"))
            env = os.environ | {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": one.members[0].url}
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=20)
            assert done.returncode == 0, (command, done.stderr)
        one.put_all(
            {"shared/vlan7/a": "1", "hosts/node7/vlan7/a": "2", "hosts/node8/vlan7/a": "3"}, ROOT
        )
        one.enable_users()
        named = replace(settings_of(one), host="node7", user="node7", password_file=str(password))
        yield one, replace(named, lease=3)


def test_a_host_does_its_part(node7: tuple[Cluster, Etcd]) -> None:
    _, settings = node7
    kinds = ("drained/", "shared/vlan7/", "members/vlan7/", "holders/vlan7/", "moves/vlan7/")
    with (
        watching(settings) as own,
        watching(settings, *(ROOT + kind for kind in kinds)) as watcher,
        keeping(settings) as keeper,
    ):
        own.becomes({f"{ROOT}hosts/node7/vlan7/a": b"2"})
        lease = keeper.renews().lease

        async def work() -> None:
            client = EtcdClient(settings)
            member = {f"{ROOT}members/vlan7/node7": b"m"}
            assert await client.call(lambda etcd: etcd.acquire(member, lease))
            await client.call(put(f"{ROOT}moves/vlan7/a"))
            keys = {f"{ROOT}holders/vlan7/a": b"h"}
            moves = {f"{ROOT}holders/vlan7/a": f"{ROOT}moves/vlan7/a"}
            assert await client.call(lambda etcd: etcd.acquire(keys, lease, moves))
            client.close()

        asyncio.run(work())
        shared = {f"{ROOT}shared/vlan7/a": b"1"}
        watcher.becomes(
            {**shared, f"{ROOT}members/vlan7/node7": b"m", f"{ROOT}holders/vlan7/a": b"h"},
            within=20,
        )
        keeper.renews(2)
        assert keeper.run(keeper.keeper.revoke())
        watcher.becomes(shared)


DENIED: dict[str, Callable[[Store], Coroutine[Any, Any, object]]] = {
    "another host": lambda etcd: etcd.below(f"{ROOT}hosts/node8/"),
    "all hosts": lambda etcd: etcd.below(f"{ROOT}hosts/"),
    "all": lambda etcd: etcd.below("/"),
    "own rules": put(f"{ROOT}hosts/node7/vlan7/b"),
    "shared": put(f"{ROOT}shared/vlan7/b"),
    "delete": delete(f"{ROOT}shared/vlan7/a"),
    "another segment": put(f"{ROOT}holders/vlan8/a"),
    "drained": put(f"{ROOT}drained/node7"),
}


def test_a_host_does_nothing_else(node7: tuple[Cluster, Etcd]) -> None:
    _, settings = node7

    async def work() -> None:
        client = EtcdClient(settings)
        for what, request in DENIED.items():
            with pytest.raises(Denied) as raised:
                await client.call(request)
            error = error_of(raised.value, settings)
            assert "etcd does not let the user node7 send this request" in error.message, what
            assert "permission denied" in error.message, what
            assert error.hint
        client.close()

    asyncio.run(work())
