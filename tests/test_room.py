"""A limit that is reached names what is needed, and what the message names works as it is."""

from __future__ import annotations

import errno
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp.config.reader import parse
from ndxdp.errors import NoRoom, UsageError, from_os, problem_of, twice
from ndxdp.rules.capacity import ADDRESSES_MAX, Shortage, room_for
from tests.fixtures.network import (
    UPLINK,
    Network,
    Running,
    done,
    eventually,
    ndxdp,
    remove_instance,
    rules,
    status,
)

MANY = "".join(f"2001:db8::d:0:{number:x}\n" for number in range(1, 31))


@pytest.mark.parametrize(
    ("addresses", "room"),
    [
        (1, 2),
        (10, 16),
        (131072, 262144),
        (131073, 262144),
        (ADDRESSES_MAX - 1, ADDRESSES_MAX),
        (ADDRESSES_MAX, ADDRESSES_MAX),
        (ADDRESSES_MAX + 1, 0),
    ],
)
def test_room_is_a_power_of_two(addresses: int, room: int) -> None:
    assert room_for(addresses) == room


def test_the_hint_has_the_option_or_the_key() -> None:
    lack = Shortage("addresses", 131072, 1, 131072)
    assert "--max-addresses 262144 " in lack.error().hint
    assert "max_addresses = 262144," in lack.error(in_file=True).hint
    assert problem_of(lack.error()).endswith("; max_addresses = 262144 makes room")
    most = Shortage("addresses", 0, ADDRESSES_MAX + 1, 131072)
    for error in (most.error(), most.error(in_file=True)):
        assert "max" not in error.hint
        assert str(ADDRESSES_MAX) in error.hint
        assert problem_of(error) == error.message
    assert isinstance(lack.error(), NoRoom)


@pytest.fixture
def full(net: Network) -> Iterator[Network]:
    """Attach with a table that the host's own addresses and a few others fill."""
    few = "".join(MANY.splitlines(keepends=True)[:7])
    done("attach", UPLINK, "--mode", "tc", "--max-addresses", "10", "--file", "-", stdin=few)
    yield net
    remove_instance()


def test_prefix_add_names_the_command(full: Network) -> None:
    refused = ndxdp("prefix", "add", "--file", "-", stdin=MANY)
    assert refused.code == 1
    command = re.search(r"make room: ndxdp (attach .*?);", refused.err)
    assert command, refused
    done(*command[1].split())
    done("prefix", "add", "--file", "-", stdin=MANY)
    assert "2001:db8::d:0:1e" in rules()


def test_attach_names_the_option(full: Network) -> None:
    words = ("attach", UPLINK, "--mode", "tc", "--file", "-")
    refused = ndxdp(*words, stdin=MANY)
    assert refused.code == 1
    option = re.search(r"--max-addresses \d+", refused.err)
    assert option, refused
    assert ndxdp(*words, "--max-addresses", "11", stdin=MANY).err == refused.err.replace(
        "limit of 10", "limit of 11"
    )
    done(*words, *option[0].split(), stdin=MANY)
    assert status()["rules"]["max_addresses"] == int(option[0].split()[1])


def test_a_table_that_is_made_too_small(full: Network) -> None:
    refused = ndxdp("attach", UPLINK, "--max-addresses", "9")
    assert (refused.code, "limit of 9" in refused.err) == (1, True)
    assert "--max-addresses 16 " in refused.err
    assert status()["rules"]["max_addresses"] == 10


@pytest.mark.parametrize("mode", ["tc", "userspace"])
def test_prefix_add_names_what_the_daemon_needs(net: Network, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "ndxdp.toml"
    head = f'[[interface]]\nname = "{UPLINK}"\nmode = "{mode}"\n'
    file.write_text(head + "max_addresses = 10\n")
    run = net.run("-c", str(file))
    refused = ndxdp("prefix", "add", "--file", "-", stdin=MANY)
    assert refused.code == 1
    key = re.search(r"max_addresses = \d+", refused.err)
    assert key, refused
    file.write_text(f"{head}{key[0]}\n")
    done("reload", "-c", str(file))
    done("prefix", "add", "--file", "-", stdin=MANY)
    run.end_cleanly()
    ndxdp("detach", UPLINK)


def test_the_daemon_names_the_key(net: Network, tmp_path: Path) -> None:
    """The host's own addresses take the room; only the running daemon notices that."""
    file = tmp_path / "ndxdp.toml"
    addresses = "".join(
        f'[[interface.prefix]]\nprefix = "2001:db8::d:{n:x}"\n' for n in range(1, 9)
    )
    head = f'[[interface]]\nname = "{UPLINK}"\nmode = "tc"\n'
    file.write_text(f"{head}max_addresses = 8\n{addresses}")
    checked = ndxdp("check", str(file))
    assert "write max_addresses = 16, or" in checked.err
    run = Running(("-c", str(file)), wait=False)
    try:
        eventually(lambda: "max_addresses = 16 makes room" in done("status"))
        file.write_text(f"{head}max_addresses = 16\n{addresses}")
        run.process.send_signal(signal.SIGHUP)
        eventually(lambda: "2001:db8::d:8" in ndxdp("prefix", "list").out)
        assert "max_addresses = 16 makes room" in run.end_cleanly()
    finally:
        run.close()
        ndxdp("detach", UPLINK)


def test_check_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(MANY)
    table = (
        '[[interface]]\nname = "eth0"\nmax_addresses = {}\n[[interface.prefix]]\nfile = "list"\n'
    )
    path = str(tmp_path / "ndxdp.toml")
    with pytest.raises(UsageError) as caught:
        parse(table.format(29), path)
    key = re.search(r"max_addresses = (\d+)", caught.value.hint)
    assert key
    assert parse(table.format(key[1]), path).interfaces[0].max_addresses == 32


def test_files_and_sysctls_have_their_number() -> None:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    error = from_os(OSError(errno.EMFILE, "Too many open files"))
    assert f"ulimit -n {2 * soft}, or LimitNOFILE={2 * soft} " in error.hint
    assert error.hint in problem_of(error)
    most = int(Path("/proc/sys/fs/file-max").read_text())
    error = from_os(OSError(errno.ENFILE, "Too many open files in system"))
    assert f"sysctl fs.file-max={2 * most}" in error.hint
    instances = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    assert twice("fs.inotify.max_user_instances").endswith(f"={2 * instances}")
    assert twice("fs.no_such") == "sysctl fs.no_such"
