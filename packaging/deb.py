"""Build the Debian package: deb.py [--version VERSION] [--directory DIR] [--commit COMMIT].

`make deb` runs it.

Debian's tools require a tree with debian/ at its top. This program lays it out in a temporary
directory: the sources as in a clone, the wheel of ndxdp, and the wheels of its dependencies,
checked against the digests in requirements.txt. After that nothing is downloaded. The same sources
give the same package, byte for byte, in any directory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from email.utils import formatdate
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGING = REPOSITORY / "packaging"
WHEELS = REPOSITORY / "build" / "wheels"


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """Run a command and return its stdout; exit with its output if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}deb: {' '.join(map(str, command))} failed")
    return done.stdout


# Git refuses a repository of another user, and this program runs as root.
GIT = ("git", "-c", f"safe.directory={REPOSITORY}")


def copy_sources(to: Path) -> None:
    """Copy the files that a clone would have, with uncommitted changes and without build output."""
    for name in run(*GIT, "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, to / name)


def extract_commit(commit: str, to: Path) -> None:
    """Write the files of an older commit, for tests of upgrades."""
    archive = to.with_suffix(".tar")
    run(*GIT, "archive", "--output", archive, commit)
    run("tar", "-x", "-C", to, "-f", archive)


def fetch_needed() -> list[Path]:
    """Return the wheels that requirements.txt names; download them unless they are complete."""
    listed, done = PACKAGING / "requirements.txt", WHEELS / "requirements.txt"
    if not (done.is_file() and done.read_bytes() == listed.read_bytes()):
        shutil.rmtree(WHEELS, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
        exactly = ("--no-deps", "--only-binary", ":all:", "--require-hashes")
        run(*pip, *exactly, "-r", listed, "--dest", WHEELS)
        shutil.copy(listed, done)
    return sorted(WHEELS.glob("*.whl"))


def build_wheel(source: Path, to: Path) -> None:
    """Build the wheel of a source tree into a folder."""
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", to, source)


def amend_changelog(tree: Path, version: str) -> None:
    """Add a changelog entry with another version than the sources have, for tests of upgrades."""
    path = tree / "debian" / "changelog"
    date = formatdate(int(os.environ.get("SOURCE_DATE_EPOCH", 0)) or None)
    entry = f"ndxdp ({version}) unstable; urgency=medium\n\n  * Built as {version}.\n\n"
    path.write_text(f"{entry} -- @MAINTAINER@  {date}\n\n{path.read_text()}")


def set_maintainer(tree: Path) -> None:
    """Write the maintainer and the homepage that pyproject.toml names into debian/."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    try:
        name, address = (project["maintainers"][0][key] for key in ("name", "email"))
        homepage = project["urls"]["Homepage"]
    except (KeyError, IndexError):
        sys.exit(
            "deb: pyproject.toml names no maintainer or homepage\n"
            '  hint: maintainers = [{ name = "NAME", email = "ADDRESS" }] below [project]'
        )
    values = {"@MAINTAINER@": f"{name} <{address}>", "@HOMEPAGE@": homepage}
    for path in (tree / "debian" / "control", tree / "debian" / "changelog"):
        text = path.read_text()
        for mark, value in values.items():
            text = text.replace(mark, value)
        path.write_text(text)


def build(directory: Path, version: str | None = None, commit: str | None = None) -> Path:
    """Build the .deb in `directory`, of a commit or of the present files; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ndxdp-deb-") as work:
        tree = Path(work) / "tree"
        (tree / "wheels").mkdir(parents=True)
        if commit is None:
            copy_sources(tree)
        else:
            extract_commit(commit, tree)
        build_wheel(tree, tree / "wheels")
        for wheel in fetch_needed():
            shutil.copy(wheel, tree / "wheels")
        shutil.copytree(tree / "packaging" / "debian", tree / "debian")
        if version is not None:
            amend_changelog(tree, version)
        set_maintainer(tree)
        # dpkg-buildpackage writes the package beside the tree.
        run("dpkg-buildpackage", "--build=binary", "--no-sign", cwd=tree)
        (built,) = Path(work).glob("ndxdp_*.deb")
        return Path(shutil.copy(built, directory))


def main() -> None:
    """Build the package that the arguments describe."""
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--version", help="build this version instead of debian/changelog's")
    parser.add_argument("--commit", help="build the sources of this commit, not the present ones")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "build")
    parser.add_argument("--fetch", action="store_true", help="download the wheels, build nothing")
    given = parser.parse_args()
    if given.fetch:
        fetch_needed()
    else:
        print(build(given.directory.absolute(), given.version, given.commit))


if __name__ == "__main__":
    main()
