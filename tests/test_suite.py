"""The suite itself: its exit code, its namespaces and files, and its demands on the machine."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import __main__ as suite
from tests.__main__ import Run
from tests.fixtures import forked, machine, network
from tests.fixtures.machine import Limit
from tests.fixtures.network import REPOSITORY

_APT = REPOSITORY / "lab" / "apt-get"


def in_namespaces(code: str, prepare: Callable[[], object] | None = None) -> str:
    """Run Python code by lab.private.run(), in a process that was prepared; return its output."""
    start = f"import sys; from lab import private; private.run([sys.executable, '-c', {code!r}])"
    done = subprocess.run(
        [sys.executable, "-c", start],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=prepare,
        timeout=60,
    )
    return done.stdout.strip()


def test_a_file_that_failed_is_not_run_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[str] = []

    def run(name: str, _arguments: list[str]) -> Run:
        runs.append(name)
        if name == "test_suite.py":
            return Run(name, 1, "E   assert 1 == 2\n1 failed, 2 passed in 0.10s\n")
        return Run(name, 0, "3 passed, 1 skipped in 0.10s\n")

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(sys, "argv", ["tests", "-q"])
    assert suite.main() == 1
    assert sorted(runs) == sorted(path.name for path in (REPOSITORY / "tests").glob("test_*.py"))
    assert runs[-1] == "test_benchmarks.py", "beside other tests, it would delay them"
    printed = capsys.readouterr().out
    assert "E   assert 1 == 2" in printed
    assert printed.count("failed: test_suite.py\n") == 1
    assert f"1 failed, {3 * len(runs) - 1} passed, {len(runs) - 1} skipped in " in printed


def test_repeated_runs_are_counted(privacy: None, tmp_path: Path) -> None:
    """A test that passes in one run of three only: the exit code is that of a failure."""
    file = tmp_path / "test_now_and_then.py"
    file.write_text(
        "import os\n\n\ndef test_it():\n"
        f"    number = os.open({str(tmp_path / 'once')!r}, os.O_CREAT | os.O_EXCL)\n"
    )

    def repeat(*words: str) -> tuple[int, str]:
        ended = network.call(sys.executable, "-m", "tests", "--repeat", *words)
        return ended.code, (ended.out + ended.err).strip().splitlines()[-1]

    assert repeat("3", str(file), "-q") == (1, "2 of 3 runs failed")
    (tmp_path / "once").unlink()
    assert repeat("1", str(file), "-q") == (0, "0 of 1 runs failed")
    usage = "usage: python -m tests --repeat N ARGUMENTS"
    assert [repeat(*words) for words in ((), ("3",), ("0", str(file)))] == [(2, usage)] * 3


def test_namespaces_reset_signals_that_the_parent_ignores(privacy: None) -> None:
    numbers = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    names = ", ".join(f"signal.{number.name}" for number in numbers)
    code = f"import signal; print(*(signal.getsignal(n) is signal.SIG_IGN for n in ({names})))"
    assert in_namespaces(code, ignore) == "False False False False"


def test_namespaces_remove_their_temporary_files(privacy: None) -> None:
    """Expect a file system for temporary files that inner namespaces share."""
    ours = Path(tempfile.gettempdir())
    assert f" {ours} tmpfs " in Path("/proc/mounts").read_text()
    made = Path(in_namespaces("import tempfile; print(tempfile.mkdtemp())"))
    assert made.parent == ours
    made.rmdir()


def test_a_limit_with_too_little_room_is_reported() -> None:
    roomy = Limit("things", room=1024, taken=512, wanted=512, cure="sysctl -w things=4096")
    tight = roomy._replace(taken=513)
    assert machine.short_of([roomy]) == []
    assert machine.short_of([roomy, tight]) == [
        "the machine has room for 1024 things, of which 513 are taken, and the tests take up to "
        "512: some may fail for that (sysctl -w things=4096)"
    ]


def test_limits_are_read() -> None:
    """Read limits, even those that only the machine's first network namespace shows."""
    found = {limit.what: limit for limit in machine.limits()}
    inotify = next(limit for what, limit in found.items() if "inotify" in what)
    descriptor = ctypes.CDLL(None).inotify_init()
    try:
        (now,) = (limit for limit in machine.limits() if limit.what == inotify.what)
    finally:
        os.close(descriptor)
    assert now.taken > 0
    assert now.room == inotify.room > 0
    assert machine.neighbour_table_overflows() >= 0


def test_the_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard


@pytest.mark.parametrize(
    "words", [("--version",), ("nonsense",), ("status",), ("explain", "::"), ("check", "-c", "-")]
)
def test_a_forked_command_has_the_result_of_a_started_one(
    privacy: None, words: tuple[str, ...]
) -> None:
    assert forked.Server().is_like_us
    assert network.ndxdp(*words, stdin="nonsense") == network.call(
        *network.NDXDP, *words, stdin="nonsense"
    )


def test_a_forked_command_that_does_not_end_is_killed(privacy: None, tmp_path: Path) -> None:
    file = tmp_path / "ndxdp.toml"
    file.write_text('[[interface]]\nname = "absent0"\n')  # the daemon waits for it
    server = forked.Server()
    with pytest.raises(subprocess.TimeoutExpired):
        server.run(("run", "-c", str(file)), b"", 0.5)
    assert server.run(("--version",), b"", 60)[0] == 0
    shutil.rmtree(network.FILES, ignore_errors=True)  # the report of a daemon that was killed


def test_a_changed_environment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    server = forked.Server()
    monkeypatch.setenv("NDXDP_BPFFS", "/nonexistent")
    assert not server.is_like_us


class Apt:
    """lab/apt-get below a directory; its apt-get and systemctl write down their calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = root / "usr/sbin/policy-rc.d"
        self.wants = root / "etc/systemd/system/multi-user.target.wants"
        self.calls = root / "calls"
        self.script("systemctl", f'echo systemctl "$@" >>{self.calls}')

    def script(self, name: str, lines: str) -> None:
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)

    def run(self, *words: str, within: str = "600") -> subprocess.CompletedProcess[str]:
        changes = {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "NDXDP_APT_PAUSE": "0",
            "NDXDP_APT_ROOT": str(self.root),
            "NDXDP_APT_WITHIN": within,
        }
        return subprocess.run(
            [_APT, *words],
            env=os.environ | changes,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def installs_docker(self) -> str:
        """Return lines that start a service, and enable one and an init script."""
        return _INSTALL.format(
            policy=self.policy, calls=self.calls, wants=self.wants, root=self.root
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path)


_HELD = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 17 (apt)"


@pytest.mark.parametrize(
    ("message", "repeated"), [(_HELD, True), ("E: Unable to locate package nonsense", False)]
)
def test_apt_get_waits_for_locks(apt: Apt, message: str, repeated: bool) -> None:
    """Repeat apt-get while its lists or archives are locked; it waits for dpkg's lock itself."""
    fails = f'[ $(wc -l <{apt.calls}) -gt 2 ] || {{ echo "{message}" >&2; exit 100; }}'
    apt.script("apt-get", f'echo "$@" >>{apt.calls}\n{fails}')
    done = apt.run("install", "-y", "a b")
    assert done.returncode == (0 if repeated else 100)
    assert message in done.stderr
    waiting = "waiting for process 17 (apt), which uses apt\n"
    assert done.stderr.count(waiting) == (1 if repeated else 0)
    words = "-o DPkg::Lock::Timeout=10 install -y a b"
    assert apt.called() == [words] * (3 if repeated else 1)


def test_apt_get_does_not_wait_for_ever(apt: Apt) -> None:
    apt.script("apt-get", f'echo "{_HELD}" >&2; exit 100')
    done = apt.run("update", within="0")
    assert done.returncode == 100
    assert done.stderr == f"{_HELD}\n"


_INSTALL = """
{policy} docker start; echo policy $? >>{calls}
mkdir -p {wants}; ln -s /lib/systemd/system/docker.service {wants}
mkdir {root}/etc/rc3.d; ln -s ../init.d/npd6 {root}/etc/rc3.d/S01npd6
"""


def test_installed_services_neither_start_nor_are_enabled(apt: Apt) -> None:
    (apt.root / "run/systemd/system").mkdir(parents=True)
    apt.wants.mkdir(parents=True)
    (apt.wants / "ssh.service").symlink_to("/lib/systemd/system/ssh.service")
    apt.script("apt-get", apt.installs_docker())
    done = apt.run("install", "-y", "docker.io")
    units = "docker.service npd6.service"
    assert apt.called() == ["policy 101", f"systemctl --root={apt.root} disable {units}"]
    assert done.stderr == f"installed, but neither started nor enabled: {units}\n"
    assert not apt.policy.exists()


def test_systemctl_disables_what_apt_enabled(apt: Apt) -> None:
    """The real systemctl removes the links."""
    (apt.root / "bin/systemctl").unlink()
    (apt.root / "run/systemd/system").mkdir(parents=True)
    unit = apt.root / "lib/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
    apt.script(
        "apt-get", f"mkdir -p {apt.wants}; ln -s /lib/systemd/system/docker.service {apt.wants}"
    )
    apt.run("install", "-y", "docker.io")
    assert list(apt.wants.glob("*")) == []


def test_without_systemd_nothing_is_disabled(apt: Apt) -> None:
    apt.script("apt-get", apt.installs_docker())
    assert apt.run("install", "-y", "docker.io").stderr == ""
    assert apt.called() == ["policy 101"]


def test_a_policy_of_the_machine_stays(apt: Apt) -> None:
    apt.policy.parent.mkdir(parents=True)
    apt.policy.write_text("#!/bin/sh\nexit 104\n")
    apt.policy.chmod(0o755)
    apt.script("apt-get", apt.installs_docker())
    apt.run("install", "-y", "docker.io")
    assert apt.called() == ["policy 104"]
    assert apt.policy.read_text() == "#!/bin/sh\nexit 104\n"


def test_the_policy_of_a_killed_process_has_no_effect(apt: Apt) -> None:
    apt.script("apt-get", "kill -KILL $PPID")
    assert apt.run("install", "-y", "docker.io").returncode == -signal.SIGKILL
    assert subprocess.run([apt.policy, "docker", "start"]).returncode == 0
    apt.script("apt-get", f"{apt.policy}; echo policy $? >>{apt.calls}")
    assert apt.run("install", "-y", "docker.io").returncode == 0
    assert apt.called() == ["policy 101"]
    assert not apt.policy.exists()


def test_the_makefile_calls_apt_get_only_by_the_script_that_waits() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert "lab/apt-get" in makefile
    assert "apt-get" not in makefile.replace("lab/apt-get", "")
