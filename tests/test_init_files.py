"""`ndxdp init`: the files that it writes, its questions, and a daemon that runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shutil
import subprocess
import termios
from pathlib import Path

import pytest

from ndxdp import systemd_unit
from tests.fixtures.network import (
    NDXDP,
    PATIENCE,
    REPOSITORY,
    UPLINK,
    Network,
    eventually,
    ndxdp,
    sh,
    snapshot,
)
from tests.fixtures.proposing import OTHER, Place, bridge

# ---- writing -------------------------------------------------------------------------------------


@pytest.fixture
def ready(end_host: Network) -> Network:
    """Return a host with something to answer for."""
    bridge("virbr0", OTHER)
    return end_host


def test_it_changes_nothing_else(ready: Network, place: Place) -> None:
    def state() -> list[object]:
        return [
            snapshot(),
            sh("sysctl", "-a", "-r", r"^net\.ipv6\.conf\."),
            sh("ip", "-6", "route"),
        ]

    before = state()
    assert place.init("--yes").code == 0
    assert state() == before
    for path in (place.config, place.sysctl):
        found = path.stat()
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o644, 0, 0)
    assert place.files() == ["ndxdp", "ndxdp/ndxdp.toml", "s", "s/60-ndxdp.conf"]


def test_an_existing_file_stays(ready: Network, place: Place) -> None:
    place.config.parent.mkdir()
    place.config.write_text("# mine\n")
    result = place.init("--yes")
    assert result.code == 1
    assert result.err == f"ndxdp: {place.config} exists already\n  hint: --force overwrites it\n"
    assert (place.config.read_text(), place.sysctl.exists()) == ("# mine\n", False)
    assert place.init("--yes", "--force").code == 0
    assert "[[interface]]" in place.config.read_text()
    again = place.init("--yes")
    assert again.code == 0
    assert f"unchanged: {place.config}\n" in again.out
    assert "wrote" not in again.out


def test_the_packages_example_is_no_configuration(ready: Network, place: Place) -> None:
    place.config.parent.mkdir()
    shutil.copy(REPOSITORY / "ndxdp" / "data" / "ndxdp.toml", place.config)
    assert place.init("--yes").code == 0
    assert place.config.read_text() != systemd_unit.example()


def test_no_sysctl(ready: Network, place: Place) -> None:
    assert place.init("--yes", "--no-sysctl").code == 0
    assert place.files() == ["ndxdp", "ndxdp/ndxdp.toml"]


@pytest.mark.parametrize("name", ["one", "./one", "-"])
def test_both_files_need_a_name_of_their_own(ready: Network, tmp_path: Path, name: str) -> None:
    """Refuse one path for both files, however it is written, and `-` for the sysctls."""
    one = str(tmp_path / "one")
    sysctl = name if name == "-" else f"{tmp_path}/{name}"
    result = ndxdp("init", "-o", one, "--sysctl", sysctl, "--yes")
    assert (result.code, result.out) == (2, "")
    assert "--no-sysctl" in result.err
    assert os.listdir(tmp_path) == []
    assert ndxdp("init", "-o", one, "--sysctl", sysctl, "--yes", "--no-sysctl").code == 0


def test_the_command_in_the_file_is_quoted(ready: Network, tmp_path: Path) -> None:
    sysctl = tmp_path / "a b.conf"
    assert ndxdp("init", "-o", str(tmp_path / "c"), "--sysctl", str(sysctl), "--yes").code == 0
    assert f"`sysctl -p '{sysctl}'` applies it now" in sysctl.read_text()


def test_a_symbolic_link_stays(ready: Network, place: Place) -> None:
    place.config.parent.mkdir()
    target = place.folder / "elsewhere.toml"
    target.write_text(systemd_unit.example())
    place.config.symlink_to(target)
    assert place.init("--yes").code == 0
    assert place.config.is_symlink()
    assert "[[interface]]" in target.read_text()


@pytest.mark.parametrize("existed", [True, False])
def test_all_or_nothing(ready: Network, place: Place, existed: bool) -> None:
    """Restore the first file if the second one cannot be replaced: it is a mount point."""
    for path in (place.config, place.sysctl):
        path.parent.mkdir()
        if existed or path == place.sysctl:
            path.write_text("# old\n")
    inode = place.config.stat().st_ino if existed else 0
    sh("mount", "--bind", str(place.sysctl), str(place.sysctl))
    before = place.files()
    try:
        result = place.init("--yes", "--force")
    finally:
        sh("umount", str(place.sysctl))
    assert result.code == 1
    assert f"ndxdp: cannot write {place.sysctl}: Device or resource busy" in result.err
    assert place.files() == before
    assert (place.config.stat().st_ino if existed else 0) == inode
    assert place.sysctl.read_text() == "# old\n"


def test_a_directory_in_the_way(ready: Network, place: Place) -> None:
    place.sysctl.mkdir(parents=True)
    result = place.init("--yes", "--force")
    assert result.code == 1
    assert f"{place.sysctl} is no file that init can replace" in result.err
    assert not place.config.exists()


def test_a_read_only_place(ready: Network, place: Place) -> None:
    place.sysctl.parent.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place.sysctl.parent))
    try:
        result = place.init("--yes")
        assert result.code == 1
        assert "its file system is read-only" in result.err
        assert not place.config.exists()
    finally:
        sh("umount", str(place.sysctl.parent))


# ---- questions -----------------------------------------------------------------------------------


def test_a_pipe_is_not_asked(ready: Network, place: Place) -> None:
    result = ndxdp(*place.words, stdin="y\n")
    assert (result.code, result.out) == (2, "")
    assert "its stdin is no terminal" in result.err
    assert "--yes writes without asking" in result.err
    assert place.files() == []


def at_terminal(place: Place, answer: bytes) -> tuple[int, str]:
    """Answer the question at a terminal of its own; return the exit code and the output."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*NDXDP, *place.words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        cwd=REPOSITORY,
    )
    os.close(theirs)
    output = b""
    try:
        while b"[y/N]" not in output:
            output += os.read(ours, 65536)
        # A signal that comes before read(2) would wait for the end of the line.
        eventually(lambda: _reads_stdin(process.pid))
        os.write(ours, answer)
        with contextlib.suppress(OSError):  # EIO: the terminal has no process any more
            while piece := os.read(ours, 65536):
                output += piece
        return process.wait(timeout=20 * PATIENCE), output.decode().replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _reads_stdin(pid: int) -> bool:
    """Return True if a process waits in a system call whose first argument is 0 (proc(5))."""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return len(words) > 1 and words[1] == "0x0"


def test_yes(ready: Network, place: Place) -> None:
    code, output = at_terminal(place, b"y\n")
    assert code == 0, output
    assert f"---- {place.config}\n# Configuration of ndxdp" in output
    assert f"Write {place.config} and {place.sysctl}? [y/N]: y\n" in output
    assert place.config.read_text() in output
    assert f"wrote {place.config}\nwrote {place.sysctl}\n{place.config}: good\n" in output


@pytest.mark.parametrize(
    ("answer", "code"), [(b"n\n", 1), (b"\n", 1), (b"\x03", 130), (b"\x04", 130)]
)
def test_no(ready: Network, place: Place, answer: bytes, code: int) -> None:
    ended, output = at_terminal(place, answer)
    assert ended == code, output
    assert output.endswith("nothing was written\n")
    assert "Traceback" not in output
    assert place.files() == []


def test_the_difference_to_a_file(ready: Network, place: Place) -> None:
    assert place.init("--yes").code == 0
    proposed = place.config.read_text()
    place.config.write_text(f"{proposed}# mine\n")
    code, output = at_terminal(place, b"n\n")
    assert code == 1
    assert "\n-# mine\n" in output
    assert f"Replace {place.config}? [y/N]" in output
    assert place.config.read_text().endswith("# mine\n")
    code, output = at_terminal(place, b"y\n")
    assert code == 0
    assert place.config.read_text() == proposed


# ---- a running daemon ----------------------------------------------------------------------------


def test_a_daemon_with_the_file_is_reloaded(ready: Network, place: Place) -> None:
    assert place.init("--yes").code == 0
    running = ready.run("-c", str(place.config))
    again = place.init("--yes").out
    assert f"  ndxdp reload -c {place.config}\n" in again
    assert f"note: ndxdp has rules for {UPLINK} already" in again
    assert f"note: a daemon of ndxdp runs (pid {running.process.pid}, {place.config})" in again
    assert running.end().code == 0
