"""Problems of the files of [etcd] on this host, for `ndxdp check`, which does not contact etcd."""

from __future__ import annotations

import time
from collections.abc import Iterator

from ndxdp.errors import UsageError
from ndxdp.sources.certificate import expiry_of
from ndxdp.sources.etcd_settings import Etcd, read_password
from ndxdp.sources.tls import context_of


def problems(settings: Etcd) -> Iterator[tuple[str, str]]:
    """Yield a sentence and a hint for each reason why the daemon cannot connect to etcd."""
    try:
        context_of(settings)
        if settings.certificate and expiry_of(settings.certificate) < time.time():
            raise UsageError(
                f"the certificate in {settings.certificate} has expired",
                f"openssl x509 -in {settings.certificate} -noout -enddate",
            )
    except UsageError as error:
        yield f"etcd: {error.message}", error.hint
    if settings.user:
        try:
            read_password(settings.password_file)
        except UsageError as error:
            yield f"etcd: {error.message}", error.hint
        if not all(endpoint.tls for endpoint in settings.endpoints):
            yield (
                f"etcd: the password of {settings.user} is sent without encryption",
                "write https:// in endpoints",
            )


def words(settings: Etcd) -> str:
    """Describe the settings in a few words."""
    endpoints = ", ".join(map(str, settings.endpoints))
    who = f"; user {settings.user}" if settings.user else ""
    who = "; with a certificate" + who if settings.certificate else who
    return f"{endpoints}; keys of {settings.directory}; lease {settings.lease} s{who}"
