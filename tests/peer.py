"""The real ndppd: what it makes of a configuration, and what it answers with it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from ndxdp.convert.ndppd_syntax import Entry
from tests import network

EXAMPLE = "/usr/share/doc/ndppd/ndppd.conf-dist"


class Verdict(NamedTuple):
    """accepted: it runs with the configuration. tree: the entries it read, "" where it could not;
    as `tree_of` writes them. said: all of its log."""

    accepted: bool
    tree: str
    said: str


def judge(text: bytes) -> Verdict:
    """Let ndppd read a configuration, and end it before it serves."""
    with _file(text) as path:
        process = subprocess.Popen(
            ["ndppd", "-vvv", "-c", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,  # what is read ahead is lost to communicate()
            preexec_fn=_limit,
        )
        assert process.stdout is not None
        said = b""
        try:
            # Once the entries are logged it takes this signal for "end when all is set up".
            for line in process.stdout:
                said += line
                if line == b"(debug) }\n":
                    break
            process.send_signal(signal.SIGTERM)
            said += process.communicate(timeout=20)[0]
        finally:
            process.kill()
            process.wait()
    log = said.decode(errors="surrogateescape")
    assert "version 0.2" in log, log
    accepted = process.returncode == 0 and "Bye" in log
    lines = [line.removeprefix("(debug) ") for line in log.split("\n")]
    tree = ""
    if "{" in lines and "}" in lines:
        tree = "\n".join(lines[lines.index("{") : lines.index("}") + 1])
    return Verdict(accepted, tree, log)


@contextlib.contextmanager
def serving(text: str) -> Iterator[None]:
    """ndppd at work in this namespace; it has to be alive at the end."""
    with _file(text.encode()) as path, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["ndppd", "-vvv", "-c", path],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

        def said() -> bytes:
            return os.pread(log.fileno(), 1 << 20, 0)

        try:
            # A solicitation for a rule with `auto` before it has read the routes kills it.
            network.eventually(lambda: b"reading routes" in said())
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            finally:
                process.kill()
                process.wait()
        assert process.returncode == 0, said()


def tree_of(root: Entry) -> str:
    """The entries as ndppd logs them: by keyword, those of one keyword in their order."""
    return "\n".join(["{", *_lines(root, "    "), "}"])


def _lines(block: Entry, indent: str) -> Iterator[str]:
    for entry in sorted(block.entries or (), key=lambda entry: entry.keyword):
        value = f"{entry.value} " if entry.value else ""
        head = f"{indent}{entry.keyword} {value}"
        if entry.entries is None:
            yield head
        else:
            yield head + "{"
            yield from _lines(entry, indent + "    ")
            yield indent + "}"


def _limit() -> None:
    # Where it does not get past a character, it takes memory until there is none.
    resource.setrlimit(resource.RLIMIT_AS, (1 << 26, 1 << 26))
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _file(text: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(suffix=".conf") as file:
        file.write(text)
        file.flush()
        yield file.name
