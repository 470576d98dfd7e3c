"""A real Prometheus, and what asks it. `make test` unpacks Debian's below build/."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.network import REPOSITORY, Done, call, eventually

_UNPACKED = REPOSITORY / "build" / "prometheus" / "usr" / "bin"

Samples = dict[tuple[str, ...], float]
"""Label values, in the order of their names -> value."""


def tool(name: str) -> str:
    """Path of `prometheus` or `promtool`."""
    path = shutil.which(name, path=f"{_UNPACKED}:{os.environ.get('PATH', '')}")
    if path is None:
        pytest.fail(f"{name} is missing: make test fetches it", pytrace=False)
    return path


def promtool(*args: str, stdin: str = "") -> Done:
    return call(tool("promtool"), *args, stdin=stdin)


def get(url: str, *, accept: str = "") -> str:
    request = urllib.request.Request(url, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=20) as response:
        text: str = response.read().decode()
    return text


def parsed(text: str) -> dict[str, Samples]:
    """Each metric's samples."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in sorted(sample.labels))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


class Prometheus:
    def __init__(self, port: int) -> None:
        self._base = f"http://[::1]:{port}/api/v1/"

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer."""
        said = json.loads(get(f"{self._base}{path}?{urlencode(parameters)}"))
        assert said["status"] == "success", said
        return said["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector."""
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found


@contextlib.contextmanager
def prometheus(folder: Path, scraped: int, rule_files: list[Path]) -> Iterator[Prometheus]:
    """It scrapes a port of this host's loopback each second, as job `ndxdp`."""
    port = 9999
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: {json.dumps([str(path) for path in rule_files])}\n"
        "scrape_configs:\n"
        "  - job_name: ndxdp\n"
        f"    static_configs: [{{targets: ['[::1]:{scraped}']}}]\n"
    )
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=[::1]:{port}",
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        made = Prometheus(port)

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()[-3000:]
            with contextlib.suppress(OSError):
                return bool(made.ask("targets")["activeTargets"])
            return False

        eventually(is_ready, within=30)
        yield made
    finally:
        process.kill()
        process.wait()
