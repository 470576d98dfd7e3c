"""Sdist and wheel: their content, and use of the wheel on a machine without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
NEAR, FAR = "package0", "package1"  # the two ends of a veth
PREFIX, ADDRESS = "2001:db8:0:1::/64", "2001:db8:0:1::5"


def run(*command: str | Path, path: Path | None = None) -> str:
    """Run a command to its end and return stdout; fail with its output. path: replaces PATH."""
    env = os.environ | ({"PATH": str(path)} if path else {})
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    if done.returncode:
        pytest.fail(f"{command} gave {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout


def copy_sources(to: Path) -> None:
    """Copy the files that a clone would have, with uncommitted changes and without build output."""
    # Git refuses a repository of another user, and this runs as root.
    git = ("git", "-C", REPOSITORY, "-c", f"safe.directory={REPOSITORY}")
    for name in run(*git, "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, to / name)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from it, as `make dist` does."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    copy_sources(source)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"ndxdp-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def ndxdp(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the command in its own environment, which borrows only the dependencies."""
    home = tmp_path_factory.mktemp("installed")
    python = home / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", home)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    from_where = run(python, "-I", "-c", "import ndxdp; print(ndxdp.__file__)")
    assert from_where.startswith(str(home)), "the installed one, not the repository's"
    return home / "bin" / "ndxdp"


@pytest.fixture
def no_compiler(tmp_path: Path) -> Path:
    """Return an empty PATH."""
    empty = tmp_path / "path"
    empty.mkdir()
    assert shutil.which("clang", path=str(empty)) is None
    return empty


@pytest.fixture
def interface(privacy: None) -> Iterator[str]:
    run("ip", "link", "add", NEAR, "up", "type", "veth", "peer", "name", FAR)
    run("ip", "link", "set", FAR, "up")
    yield NEAR
    run("ip", "link", "del", NEAR)


def test_the_sdist_contains_everything_to_build(dist: Path) -> None:
    with tarfile.open(dist / f"ndxdp-{__version__}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for pattern in (
        "bpf/*.[ch]",
        "ndxdp/**/*.py",
        "ndxdp/data/*",
        "docs/*.md",
        "dashboards/*.*",
        "dashboards/**/*.yaml",
    ):
        wanted = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob(pattern)}
        assert wanted
        assert wanted <= names
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.startswith("ndxdp/bpf/")], "copies, and the object"


def test_the_wheel_contains_the_object_and_its_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("ndxdp/bpf/ndp_responder.o").startswith(b"\x7fELF")
        for source in REPOSITORY.glob("bpf/*.[ch]"):
            assert archive.read(f"ndxdp/bpf/{source.name}") == source.read_bytes()
    assert {"ndxdp/data/ndxdp.service", "ndxdp/data/ndxdp.toml"} <= names
    modules = {str(path.relative_to(REPOSITORY)) for path in REPOSITORY.glob("ndxdp/**/*.py")}
    assert modules <= names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ndxdp", f"ndxdp-{__version__}.dist-info"}, "no tests, no lab"


def test_it_answers_without_a_compiler(ndxdp: Path, no_compiler: Path, interface: str) -> None:
    assert __version__ in run(ndxdp, "--version", path=no_compiler)
    run(ndxdp, "attach", interface, "-n", PREFIX, "--mode", "tc", path=no_compiler)
    try:
        assert "answered:" in run(ndxdp, "explain", ADDRESS, path=no_compiler)
    finally:
        run(ndxdp, "detach", interface, path=no_compiler)
    assert "no interface" in run(ndxdp, "status", path=no_compiler)
