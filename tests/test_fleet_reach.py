"""How `ndxdp fleet` reaches etcd: options, TLS, users, members that fail, and none at all."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ndxdp.cli.fleet_options import Connection
from ndxdp.errors import UsageError
from tests.fixtures import etcd
from tests.fixtures.etcd import Cluster
from tests.fixtures.fleet_commands import MAIL, URL, WEB, did, refused
from tests.fixtures.network import ndxdp, sh


def test_no_member_answers(privacy: None) -> None:
    for words in (("status",), ("list",), ("put", "shared/a/b", WEB), ("drain", "h1")):
        assert "cannot reach etcd: " in refused(1, *words)
    assert "Traceback" not in refused(1, "move", "a/b", "h1")


def test_another_server_than_etcd(privacy: None) -> None:
    sh("ip", "link", "set", "lo", "up")
    with socket.create_server(("127.0.0.1", 2379)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    link.recv(65536)
                    link.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
                    link.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert "the answer is not HTTP" in refused(1, "status")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_member_that_fails_is_left(privacy: None, tmp_path: Path) -> None:
    with etcd.cluster(tmp_path / "etcd", size=3) as three:
        words = [word for each in three.members for word in ("--endpoint", each.url)]
        assert ndxdp("fleet", "put", "shared/a/b", WEB, *words).code == 0
        three.members[1].kill()
        three.leader()
        for _ in range(4):
            found = ndxdp("fleet", "list", "--json", *words)
            assert [each["key"] for each in found.json()] == ["shared/a/b"]


def test_tls(privacy: None, tmp_path: Path) -> None:
    files = etcd.certificates(tmp_path / "pki")
    other = etcd.certificates(tmp_path / "other")
    url = ("--endpoint", "https://127.0.0.1:2379")
    pair = ("--certificate", str(files.client), "--key", str(files.client_key))
    with etcd.cluster(tmp_path / "etcd", files=files):
        assert (
            ndxdp("fleet", "put", "shared/a/b", WEB, *url, "--ca", str(files.ca), *pair).code == 0
        )
        for wrong in (
            ("--ca", str(other.ca), *pair),
            ("--ca", str(files.ca)),
            (
                "--ca",
                str(files.ca),
                "--certificate",
                str(other.client),
                "--key",
                str(other.client_key),
            ),
        ):
            found = ndxdp("fleet", "list", *url, *wrong)
            assert (found.code, found.out) == (1, "")
            assert found.err.startswith("ndxdp: cannot reach etcd: https://127.0.0.1:2379: ")
        mixed = ("--ca", str(files.ca), "--certificate", str(files.client), "--key")
        found = ndxdp("fleet", "list", *url, *mixed, str(other.client_key))
        assert found.code == 2
        assert "does not belong to the certificate" in found.err
        found = ndxdp("fleet", "list", *url, "--ca", str(tmp_path / "none.pem"))
        assert "cannot read" in found.err


def test_users(one: Cluster, tmp_path: Path) -> None:
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text("secret\n")
    wrong.write_text("guess\n")
    did("put", "shared/vlan7/web", WEB)
    one.add_user("reader", "secret")
    try:
        user = ("--user", "reader", "--password-file", str(password))
        assert len(did("list", *user).splitlines()) == 1
        assert "etcd does not let the user reader write /ndxdp/v1/shared/vlan7/mail" in refused(
            1, "put", "shared/vlan7/mail", MAIL, *user
        )
        assert "etcd does not let the user reader write" in refused(1, "drain", "h1", *user)
        assert "etcd does not let the user reader write" in refused(
            1, "delete", "shared/vlan7/web", *user
        )
        assert "etcd does not accept the user reader or the password" in refused(
            1, "list", "--user", "reader", "--password-file", str(wrong)
        )
        text = refused(1, "list")
        assert "etcd does not let a client without a user read /ndxdp/v1/hosts/, and 1 more" in text
        assert "--password-file" in text
        assert "cannot read" in refused(
            2, "list", "--user", "reader", "--password-file", str(tmp_path / "none")
        )
    finally:
        one.token = ""


FILE = '[[interface]]\nname = "eth0"\n'
ETCD = (
    '[etcd]\nendpoints = ["{0}"]\nhost = "h1"\n{1}' + FILE + '[[interface.etcd]]\nsegment = "a"\n'
)


def settings(path: Path, text: str, **options: Any) -> Any:
    path.write_text(text)
    return Connection(str(path), **options).settings()


def test_options_replace_the_keys_of_the_file(tmp_path: Path) -> None:
    file, word = tmp_path / "ndxdp.toml", tmp_path / "word"
    text = ETCD.format(URL, f'prefix = "/own"\nuser = "a"\npassword_file = "{word}"\n')
    found = settings(file, text)
    assert (found.host, found.root, found.user, found.password_file) == (
        "h1",
        "/own/v1/",
        "a",
        str(word),
    )
    found = settings(file, text, user="b", key_prefix="/other")
    assert (found.host, found.root, found.user, found.password_file) == (
        "h1",
        "/other/v1/",
        "b",
        str(word),
    )
    found = Connection(endpoints=(URL, URL), key_prefix="/x").settings()
    assert (len(found.endpoints), found.root, found.host) == (1, "/x/v1/", socket.gethostname())


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [
        (Connection("FILE", (URL,)), "-c and --endpoint are both given"),
        (Connection(endpoints=("foo",)), "'foo' is not the URL of a member of etcd"),
        (Connection(endpoints=(URL,), ca="x"), "--ca: it has no effect"),
        (Connection(endpoints=("https://h:1",), private_key="x"), "--key: a key without"),
        (Connection(endpoints=(URL,), user="a"), "--user: user needs password-file"),
        (Connection(endpoints=(URL,), key_prefix="a b"), "--prefix: 'a b' is not the beginning"),
        (Connection("FILE"), "has no table [etcd]"),
        (Connection("FILE", user="a"), "has no table [etcd]"),
        (Connection("/nonexistent"), "/nonexistent"),
        (Connection(), "there is no /etc/ndxdp/ndxdp.toml that says where etcd is"),
    ],
)
def test_wrong_options(tmp_path: Path, connection: Connection, sentence: str) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text(FILE + '[[interface.prefix]]\nprefix = "2001:db8:0:1:c::/80"\n')
    if connection.config == "FILE":
        connection = connection._replace(config=str(file))
    with pytest.raises(UsageError) as caught:
        connection.settings()
    assert sentence in caught.value.message
    assert caught.value.hint
