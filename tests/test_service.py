"""The unit file: its content, its installation, and systemd's verdict on its text.

A virtual machine tests its behaviour under a running systemd: make test-service.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ndxdp import systemd_unit
from ndxdp.config import reader
from ndxdp.errors import NdxdpError, UsageError
from tests.fixtures.network import Done
from tests.test_bad_input import CANNOT, USAGE, refused

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = (REPOSITORY / "ndxdp" / "data" / "ndxdp.service").read_text()
EXAMPLE = REPOSITORY / "ndxdp" / "data" / "ndxdp.toml"

_SCRIPT = f"""#!{sys.executable}
from ndxdp import systemd_unit
systemd_unit._installation = set
from ndxdp.cli.main import main
main()
"""

# Characters that a path may contain, but systemd interprets.
ODD = "a b%h$HOME${x};'c\"\\d"
ODD_COMMAND = "a b%h$HOME${x};c"
"""A name without quotes and backslashes, because systemd runs no path that contains them."""


@pytest.fixture
def place(privacy: None) -> Iterator[Path]:
    """Create a directory of root outside of /tmp, which the service would not see."""
    where = Path("/run/ndxdp-test-service")
    (where / "units").mkdir(parents=True)
    yield where
    shutil.rmtree(where)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept any location of the clone; separate tests check the unusable ones."""
    monkeypatch.setattr(systemd_unit, "_installation", set)


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def verified(unit: Path) -> str:
    """Return systemd's complaints about a unit; "" if it is valid."""
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60
    )
    return done.stderr or ("" if done.returncode == 0 else f"code {done.returncode}")


# ---- the text ------------------------------------------------------------------------------------


def test_only_paths_differ_from_the_shipped_unit() -> None:
    command, file = Path("/opt/ndxdp/bin/ndxdp"), Path("/srv/ndxdp.toml")
    unit = systemd_unit.unit(command, file)
    back = unit.replace(str(command), "/usr/bin/ndxdp").replace(str(file), str(systemd_unit.CONFIG))
    assert back.rpartition("# Written by")[0] == SHIPPED


def test_systemd_accepts_the_unit(place: Path) -> None:
    unit = place / "ndxdp.service"
    unit.write_text(systemd_unit.unit(executable(place / "bin" / "ndxdp"), place / "ndxdp.toml"))
    assert verified(unit) == ""
    unit.write_text(unit.read_text().replace("ProtectClock=", "ProtectClocks="))
    assert "ProtectClocks" in verified(unit), "systemd ignored the misspelt setting"


def test_systemd_finds_an_executable_of_any_name(place: Path) -> None:
    command, unit = executable(place / ODD_COMMAND / "ndxdp"), place / "ndxdp.service"
    unit.write_text(systemd_unit.unit(command, place / "ndxdp.toml"))
    assert verified(unit) == ""
    command.unlink()
    assert f"{place}/{ODD_COMMAND}/ndxdp is not executable" in verified(unit), (
        "systemd checked another path"
    )


def test_a_configuration_of_any_name(place: Path) -> None:
    command, unit = executable(place / "ndxdp"), place / "ndxdp.service"
    unit.write_text(systemd_unit.unit(command, place / ODD))
    assert verified(unit) == ""
    escaped = "a b%%h$$HOME$${x};'c\\\"\\\\d"
    assert f'run -c "{place}/{escaped}"\n' in unit.read_text()


@pytest.mark.parametrize("name", ["a'b", 'a"b', "a\\b", "a\nb", "a\udcff"])
def test_names_that_no_unit_can_run(place: Path, name: str) -> None:
    with pytest.raises(UsageError):
        systemd_unit.unit(place / name, place / "ndxdp.toml")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b", "a\udcff"])
def test_names_that_no_unit_can_hold(place: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no unit file can name"):
        systemd_unit.unit(place / "ndxdp", place / name)


def test_homes_are_visible_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    command, file = Path("/usr/bin/ndxdp"), Path("/etc/ndxdp.toml")
    assert "\nProtectHome=yes\n" in systemd_unit.unit(command, file)
    assert "\nProtectHome=read-only\n" in systemd_unit.unit(command, Path("/home/me/ndxdp.toml"))
    assert "\nProtectHome=read-only\n" in systemd_unit.unit(Path("/root/a/ndxdp"), file)
    monkeypatch.setattr(systemd_unit, "_installation", lambda: {Path("/run/user/0/python")})
    assert "\nProtectHome=read-only\n" in systemd_unit.unit(command, file)


def test_temporary_directories_cannot_be_used(place: Path) -> None:
    with pytest.raises(NdxdpError, match="is temporary"):
        systemd_unit.unit(executable(place / "ndxdp"), Path("/tmp/ndxdp.toml"))


def test_access_of_root_without_cap_dac_override(tmp_path: Path) -> None:
    """Predict the access of a root without CAP_DAC_OVERRIDE as the kernel decides it."""
    cases = []
    for number, (owner, group, mode) in enumerate(
        (owner, group, mode)
        for owner in (0, 1)
        for group in (0, 1)
        for mode in (0o700, 0o070, 0o007, 0o750, 0o000)
    ):
        for path in (tmp_path / f"d{number}", tmp_path / f"f{number}"):
            if path.name[0] == "d":
                path.mkdir()
            else:
                path.touch()
            os.chown(path, owner, group)
            path.chmod(mode)
            cases.append(path)
    code = "import os, sys\nfor p in sys.argv[1:]: print(os.access(p, 1 if '/d' in p else 4))"
    bound = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--groups=0")
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [*bound, sys.executable, "-c", code, *(path.name for path in cases)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line == "True" for line in done.stdout.split()]
    assert {True, False} == set(found)
    assert [systemd_unit._root_may_use(path) for path in cases] == found


def test_the_sandbox_is_tight(place: Path) -> None:
    unit = place / "ndxdp.service"
    unit.write_text(SHIPPED)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"exposure level for ndxdp.service: ([\d.]+)", done.stdout)
    assert found
    assert float(found[1]) <= 2.4


def test_the_uncommented_example_is_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no interface is configured"):
        reader.load(str(EXAMPLE))
    text = re.sub(r"^# (?=\[|\w+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    assert len(tomllib.loads(text)["interface"]) == 1
    (tmp_path / "ndxdp.toml").write_text(text)
    assert reader.load(str(tmp_path / "ndxdp.toml")).interfaces[0].name == "eth0"


# ---- the command ---------------------------------------------------------------------------------


def ndxdp(place: Path, *words: str | Path) -> Done:
    """Run an installed ndxdp from a directory of its own."""
    command = executable(place / "bin" / "ndxdp", _SCRIPT)
    done = subprocess.run([command, *words], capture_output=True, text=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def install(place: Path, *words: str) -> Done:
    file, units = place / "etc" / "ndxdp.toml", place / "units"
    return ndxdp(place, "install-service", "-c", file, "--directory", units, *words)


def test_it_installs_and_prints_the_next_step(place: Path) -> None:
    unit, file = place / "units" / "ndxdp.service", place / "etc" / "ndxdp.toml"
    first = install(place)
    assert (first.code, first.err) == (0, ""), first
    assert first.out.splitlines() == [
        f"wrote {unit}",
        f"wrote {file}, an example: edit it",
        "next: systemctl daemon-reload; systemctl enable --now ndxdp",
    ]
    assert file.read_text() == EXAMPLE.read_text()
    assert f"ExecStart={place}/bin/ndxdp run -c {file}\n" in unit.read_text()
    assert {path.stat().st_mode & 0o777 for path in (unit, file)} == {0o644}
    assert verified(unit) == ""
    file.write_text("edited")
    second = install(place)
    assert second.out.splitlines()[0] == f"unchanged: {unit}"
    assert file.read_text() == "edited"
    assert sorted(os.listdir(place / "units")) == ["ndxdp.service"], "and nothing else"
    assert os.listdir(place / "etc") == ["ndxdp.toml"]


def test_print_writes_nothing(place: Path) -> None:
    done = install(place, "--print")
    assert done.out.startswith("[Unit]\n")
    assert sorted(os.listdir(place)) == ["bin", "units"]
    assert os.listdir(place / "units") == []
    install(place)
    assert (place / "units" / "ndxdp.service").read_text() == done.out


def test_an_older_unit_is_renewed_and_an_edited_one_is_not(place: Path) -> None:
    install(place)
    unit = place / "units" / "ndxdp.service"
    good = unit.read_text()
    body = good.rpartition("# Written by")[0].replace("RestartSec=1", "RestartSec=7")
    unit.write_text(body + systemd_unit._digest(body))
    assert install(place).out.startswith("wrote ")
    assert unit.read_text() == good
    edits = (good.replace("RestartSec=1", "RestartSec=7"), good + "# mine\n", "", "\udcff")
    for text in edits:
        unit.write_bytes(os.fsencode(text))
        result = install(place)
        refused(result, CANNOT)
        assert "is not as install-service left it" in result.err
        assert unit.read_bytes() == os.fsencode(text)
    assert install(place, "--force").code == 0
    assert unit.read_text() == good


def test_a_masked_unit_is_not_touched(place: Path) -> None:
    unit = place / "units" / "ndxdp.service"
    unit.symlink_to("/dev/null")
    refused(install(place), CANNOT)
    assert unit.is_symlink()
    assert install(place, "--force").code == 0
    assert not unit.is_symlink()


def test_bad_places(place: Path) -> None:
    good = ("install-service", "-c", place / "ndxdp.toml")
    nowhere = ndxdp(place, *good, "--directory", place / "nowhere")
    refused(nowhere, CANNOT)
    assert "is not a directory" in nowhere.err
    # procfs accepts no files, not even from root.
    unwritable = ndxdp(place, *good, "--directory", "/proc/self")
    refused(unwritable, CANNOT)
    assert "cannot write" in unwritable.err
    (place / "units" / "ndxdp.service").mkdir()
    refused(ndxdp(place, *good, "--directory", place / "units"), CANNOT)
    temporary = ("install-service", "-c", "/tmp/x.toml", "--directory", place / "units")
    refused(ndxdp(place, *temporary), CANNOT)
    refused(ndxdp(place, "install-service", "-c", place / "a\nb", "--print"), USAGE)
    assert not (place / "ndxdp.toml").exists(), "nothing was changed"


def test_it_needs_an_executable(tmp_path: Path) -> None:
    """Refuse a clone that is not installed: it has no executable for the unit."""
    code = "import sys; sys.executable = '/nowhere/python'; from ndxdp.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "install-service", "--print"], capture_output=True, text=True
    )
    result = Done(done.returncode, done.stdout, done.stderr)
    refused(result, CANNOT)
    assert "for a service to run" in result.err
