"""The options by which the commands of `ndxdp fleet` reach etcd."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ndxdp.errors import UsageError

if TYPE_CHECKING:
    from ndxdp.inventory.keyspace import Keyspace
    from ndxdp.sources.etcd_settings import Etcd

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")

_FILE = "/etc/ndxdp/ndxdp.toml"


class Connection(NamedTuple):
    """The options; each is None, or empty, if it is not given, and then as in the file.

    Attributes:
        config: The configuration file.
        endpoints: The URLs of members of etcd.
        key_prefix: The beginning of all keys.
        ca: The file with the certificates of authorities.
        certificate: The file with the certificate of this client.
        private_key: The file with its private key.
        user: The name of a user of etcd.
        password_file: The file with the password.
    """

    config: str | None = None
    endpoints: tuple[str, ...] = ()
    key_prefix: str | None = None
    ca: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    user: str | None = None
    password_file: str | None = None

    def settings(self) -> Etcd:
        """Return the table [etcd] of the file, with the options in place of its keys.

        Raises:
            UsageError: The file or an option is wrong, or there is neither.
        """
        given = {
            _KEYS[name]: each for name, each in self._asdict().items() if each and name in _KEYS
        }
        if not self.endpoints:
            return _of_options(_of_file(self.config) | given) if given else _read(self.config)
        if self.config is not None:
            raise UsageError("-c and --endpoint are both given", "give either of them")
        return _of_options(given | {"endpoints": list(dict.fromkeys(self.endpoints))})


_KEYS = {
    "endpoints": "endpoints",
    "key_prefix": "prefix",
    "ca": "ca",
    "certificate": "certificate",
    "private_key": "key",
    "user": "user",
    "password_file": "password_file",
}
"""The key in [etcd] of each option."""


def _of_file(path: str | None) -> dict[str, Any]:
    """Return the keys of [etcd] in a file."""
    found = _read(path)
    table = {name: each for name in (*_KEYS.values(), "host") if (each := getattr(found, name))}
    return table | {"endpoints": list(map(str, found.endpoints))}


def _of_options(table: dict[str, Any]) -> Etcd:
    """Return the settings that the keys of [etcd] describe."""
    import json

    from ndxdp.config.etcd_tables import read_etcd
    from ndxdp.config.json_table import JsonDocument

    document = JsonDocument(json.dumps({"etcd": table}), "the options")
    try:
        found = read_etcd(document.root, Path.cwd(), segments=True)
        document.finish()
    except UsageError as error:
        also = tuple(map(_in_options, error.also))
        raise UsageError(_in_options(error.message), _in_options(error.hint), also) from None
    assert found is not None
    return found


def _in_options(text: str) -> str:
    """Return a sentence of the reader of files in the words of a command line."""
    for before, after in (
        ("etcd.endpoints[0]: ", ""),
        ("etcd.", "--"),
        ("in endpoints", "in --endpoint"),
        ("this key has no effect", "it has no effect"),
        ("remove this key", "leave it out"),
        ("password_file", "password-file"),
        ('prefix = "', '--prefix "'),
    ):
        text = text.replace(before, after)
    return text


def _read(path: str | None) -> Etcd:
    """Return the settings of a configuration file; raise UsageError if it has none."""
    from ndxdp.config import reader

    if path is None and not os.path.exists(_FILE):
        raise UsageError(
            f"there is no {_FILE} that says where etcd is",
            "name it: --endpoint https://192.0.2.11:2379",
        )
    found = reader.load(path or _FILE).etcd
    if found is None:
        raise UsageError(
            f"{path or _FILE} has no table [etcd]",
            "name a member of etcd: --endpoint https://192.0.2.11:2379",
        )
    return found


def connected(command: _F) -> _F:
    """Give a command the options, whose value is `etcd`: a Connection."""

    @functools.wraps(command)
    def wrapped(**words: Any) -> Any:
        etcd = Connection(**{name: words.pop(name) for name in Connection._fields})
        return command(etcd=etcd, **words)

    for option in (
        click.option("--password-file", metavar="FILE", help="The file with the user's password."),
        click.option("--user", metavar="USER", help="A user of etcd."),
        click.option(
            "--key",
            "private_key",
            metavar="FILE",
            help="The private key of the certificate, in PEM.",
        ),
        click.option("--certificate", metavar="FILE", help="This client's certificate, in PEM."),
        click.option(
            "--ca",
            metavar="FILE",
            help="The authorities to trust, in PEM. Default: as in the file, or the system's.",
        ),
        click.option(
            "--prefix",
            "key_prefix",
            metavar="KEYS",
            help="The beginning of all keys. Default: that in the file, or /ndxdp.",
        ),
        click.option(
            "--endpoint",
            "endpoints",
            multiple=True,
            metavar="URL",
            help="A member of etcd, instead of the file; may be repeated.",
        ),
        click.option(
            *("-c", "--config"),
            metavar="FILE",
            help=f"The configuration file with the table [etcd]. Default: {_FILE}.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def asked(etcd: Connection | Etcd, work: Callable[[Keyspace], Coroutine[None, None, _T]]) -> _T:
    """Return the result of some requests to etcd.

    Args:
        etcd: The options of the command, or the settings that they make.
        work: Sends the requests.

    Raises:
        UsageError: The settings are wrong.
        NdxdpError: etcd does not answer, or a request fails.
    """
    from ndxdp.inventory.keyspace import Keyspace
    from ndxdp.sources.etcd_client import run

    settings = etcd.settings() if isinstance(etcd, Connection) else etcd
    return run(settings, lambda client: work(Keyspace(client, settings)))
