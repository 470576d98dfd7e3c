"""The settings of [etcd]: how to reach etcd, and which keys are this host's. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ndxdp.errors import UsageError

PREFIX = "/ndxdp"
"""The beginning of all keys by default."""

VERSION = "v1"
"""The part of a key that names the layout of keys and values."""


class Endpoint(NamedTuple):
    """The address of one member of etcd.

    Attributes:
        host: A name, or an address without brackets.
        port: The TCP port.
        tls: The URL begins with `https`.
    """

    host: str
    port: int
    tls: bool

    @property
    def authority(self) -> str:
        """The host and the port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


LEASE, LEASE_MIN, LEASE_MAX = 5, 2, 300  # seconds; etcd grants no lease below 2 s by default


@dataclass(frozen=True, slots=True)
class Etcd:
    """The table [etcd].

    Attributes:
        endpoints: The members of etcd; the daemon uses one of them at a time.
        host: The name of this host in the keys.
        prefix: The beginning of all keys.
        ca: The file with the certificates of authorities to trust; "" for the system's.
        certificate: The file with the certificate of this client, and others up to an authority; ""
            for none.
        key: The file with the private key of `certificate`; "" if `certificate` has it, too.
        user: The name of a user of etcd; "" for none.
        password_file: The file with the user's password.
        lease: Seconds after which other hosts take this host's shared addresses if it is silent.
    """

    endpoints: tuple[Endpoint, ...]
    host: str
    prefix: str = PREFIX
    ca: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    lease: int = LEASE

    @property
    def directory(self) -> str:
        """The beginning of the keys of this host."""
        return f"{self.root}hosts/{self.host}/"

    @property
    def root(self) -> str:
        """The beginning of the keys of all hosts."""
        return f"{self.prefix}/{VERSION}/"

    @property
    def uses_tls(self) -> bool:
        """True if an endpoint is reached by TLS."""
        return any(endpoint.tls for endpoint in self.endpoints)


def read_password(path: str) -> str:
    """Return the first line of a password file.

    Raises:
        UsageError: The file cannot be read, or is empty.
    """
    try:
        with open(path, encoding="utf-8") as file:
            password = file.readline(_LINE_MAX).rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not a text file"
        raise UsageError(
            f"cannot read {path}: {reason}", f"write the password into it: editor {path}"
        ) from None
    if not password:
        raise UsageError(
            f"cannot read {path}: its first line is empty",
            f"write the password into it: editor {path}",
        )
    return password


_LINE_MAX = 4096  # characters
