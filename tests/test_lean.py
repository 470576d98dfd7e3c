"""Processes import only the modules that they use, and each module that they use."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp import memory
from tests.fixtures.network import UPLINK, Done, Network, Running, call

# The same command, which reports each import on stderr.
TELLING = (sys.executable, "-X", "importtime", "-m", "ndxdp")

ADDRESSES = 10_000
RESIDENT_MAX = 40 * 1024  # kB, with room for larger builds of Python


def imported(stderr: str) -> set[str]:
    """Return the imported modules, according to `-X importtime`."""
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", stderr, re.MULTILINE))


def below(loaded: set[str], *packages: str) -> list[str]:
    """Return the modules inside these packages."""
    return sorted(name for name in loaded if name.startswith(tuple(f"{one}." for one in packages)))


# ---- the daemon, and the commands ---------------------------------------------------------------


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """Write a configuration with many addresses, a missing engine, and all optional tables."""
    (tmp_path / "addresses").write_text(
        "".join(f"2001:db8::c:{number:x}\n" for number in range(1, ADDRESSES + 1))
    )
    file = tmp_path / "ndxdp.toml"
    file.write_text(
        f'[docker]\nsocket = "{tmp_path}/docker.sock"\n'
        f'[[interface]]\nname = "{UPLINK}"\non_stop = "detach"\n'
        f'[[interface.prefix]]\nfile = "addresses"\n'
        f'[[interface.docker]]\nnetwork = "ipv6exposed"\n'
        "[interface.announce]\n[interface.gateway]\n"
        '[interface.addresses]\ndeprecate = ["2001:db8::2"]\n'
    )
    return file


def test_the_daemon_is_lean(net: Network, configuration: Path) -> None:
    run = Running(("-c", str(configuration)), TELLING)
    try:
        assert net.answers("2001:db8::c:7")
        process = Path(f"/proc/{run.process.pid}")
        mapped = (process / "maps").read_text()
        (resident,) = re.findall(r"^VmRSS:\s+(\d+) kB$", (process / "status").read_text(), re.M)
    finally:
        ended = run.end()
    assert ended.code == 0
    assert "libpython" in mapped or "/python" in mapped
    assert not re.findall(r"libssl|libcrypto|libsqlite3|_ssl|_sqlite3|_lzma|_bz2", mapped)
    loaded = imported(ended.err)
    assert {
        "asyncio.streams",
        "ndxdp.daemon.service",
        "ndxdp.upstream.gateway_keepalive",
        "pyroute2.netlink",
    } <= loaded
    costly = {"_ssl", "sqlite3", "unittest", "multiprocessing", "http", "zipfile", "tempfile"}
    assert not loaded & {*costly, "prometheus_client", "rich"}
    assert below(loaded, "pyroute2") == [
        *("pyroute2.common", "pyroute2.netlink", "pyroute2.netlink.exceptions")
    ]
    assert int(resident) < RESIDENT_MAX


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("prefix", "list"),
        ("prefix", "add", "2001:db8::1:7"),
        ("explain", "2001:db8::c:0:0:7"),
        ("pause", UPLINK),
    ],
    ids=" ".join,
)
def test_commands_that_need_no_netlink_have_none(attached: Network, words: tuple[str, ...]) -> None:
    ended: Done = call(*TELLING, *words)
    assert ended.code == 0, ended
    loaded = imported(ended.err)
    assert "ndxdp.store.maps" in loaded
    assert not loaded & {"asyncio", "_ssl", "subprocess", "tempfile", "tomllib", "zipfile"}
    assert not [name for name in loaded if name.partition(".")[0] in ("pyroute2", "rich")]


def test_shared_addresses_need_no_openssl() -> None:
    """Save 3 MB where etcd is reached without TLS, by not loading hashlib."""
    script = (
        "import sys; from ndxdp.memory import import_without;"
        "import_without('ssl', 'asyncio'); import ndxdp.daemon.fleet;"
        "print({'_ssl', '_hashlib'} & sys.modules.keys())"
    )
    assert call(sys.executable, "-c", script).out == "set()\n"


# ---- lazy packages ------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a package with two submodules, whose __init__ imports the module `marker`."""
    made = tmp_path / "bulky"
    made.mkdir()
    (made / "__init__.py").write_text("import marker\nfrom bulky.other import THING\n")
    (made / "part.py").write_text("from bulky import other\nfrom bulky.other import THING\n")
    (made / "other.py").write_text("THING = 7\n")
    (made / "needy.py").write_text("import bulky\nthing = bulky.THING\n")
    (tmp_path / "marker.py").write_text("")
    (tmp_path / "careful.py").write_text(
        "try:\n    import marker\nexcept ImportError:\n    marker = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "bulky"
    for name in list(sys.modules):
        if name.partition(".")[0] in ("bulky", "marker", "careful"):
            del sys.modules[name]


def test_a_submodule_comes_without_its_package(package: str) -> None:
    memory.defer(package)
    other = importlib.import_module("bulky.other")
    assert other.THING == 7
    assert "marker" not in sys.modules


@pytest.mark.parametrize(
    "statement",
    [
        "import bulky.other; from bulky import THING",
        "import bulky; thing = bulky.THING",
        "import bulky.needy",
        "import bulky.part",
    ],
)
def test_a_module_that_needs_the_package_gets_it(package: str, statement: str) -> None:
    memory.defer(package)
    exec(statement)
    assert "marker" in sys.modules
    assert importlib.import_module("bulky").THING == 7
    with pytest.raises(AttributeError):
        _ = importlib.import_module("bulky").nothing


def test_loaded_and_missing_packages_are_left_alone(package: str) -> None:
    whole = importlib.import_module(package)
    memory.defer(package)
    assert sys.modules[package] is whole
    memory.defer("ndxdp_has_no_such_package")
    assert "ndxdp_has_no_such_package" not in sys.modules


def test_a_module_without_another(package: str) -> None:
    memory.import_without("marker", "careful")
    assert importlib.import_module("careful").marker is None
    assert "marker" not in sys.modules
    assert importlib.import_module("marker")  # a later import gets it


def test_a_module_with_another_that_is_there(package: str) -> None:
    there = importlib.import_module("marker")
    memory.import_without("marker", "careful")
    assert importlib.import_module("careful").marker is there


def test_netlink_works_with_all_of_pyroute2(net: Network) -> None:
    """Work the same if the whole pyroute2 package is loaded."""
    script = (
        "import pyroute2, sys; from ndxdp.netlink import links;"
        " assert 'pyroute2.ndb' in sys.modules; print(links.find_link(sys.argv[1]).name)"
    )
    assert call(sys.executable, "-c", script, UPLINK).out == f"{UPLINK}\n"
