"""Build the Debian package: deb.py [--version VERSION] [--directory DIR]. `make deb` runs it.

Debian's tools want a tree with debian/ at its top. It is laid out in a temporary directory: the
sources as a clone would hold them, the wheel of ndxdp, and the wheels of what it needs, checked
against the digests in requirements.txt. From there on nothing is fetched. The same sources give
the same package, byte for byte, wherever they are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from email.utils import formatdate
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGING = REPOSITORY / "packaging"
WHEELS = REPOSITORY / "build" / "wheels"


def run(*command: str | Path, cwd: Path = REPOSITORY) -> str:
    """Run to the end and return stdout. What a command that failed said is our last word."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}deb: {' '.join(map(str, command))} failed")
    return done.stdout


def copy_sources(to: Path) -> None:
    """What a clone would hold, uncommitted work included; builds leave no traces in there."""
    # The repository may belong to somebody else than root, who runs this.
    git = ("git", "-c", f"safe.directory={REPOSITORY}")
    for name in run(*git, "ls-files", "-z", "-co", "--exclude-standard").split("\0"):
        if name and (REPOSITORY / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, to / name)


def fetch_needed() -> list[Path]:
    """The wheels that requirements.txt names. Those that are here already are not fetched again."""
    listed, done = PACKAGING / "requirements.txt", WHEELS / "requirements.txt"
    if not (done.is_file() and done.read_bytes() == listed.read_bytes()):
        shutil.rmtree(WHEELS, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
        exactly = ("--no-deps", "--only-binary", ":all:", "--require-hashes")
        run(*pip, *exactly, "-r", listed, "--dest", WHEELS)
        shutil.copy(listed, done)
    return sorted(WHEELS.glob("*.whl"))


def build_wheel(source: Path, to: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", to, source)


def amend_changelog(tree: Path, version: str) -> None:
    """Let the package have another version than the sources, as to try an upgrade."""
    path = tree / "debian" / "changelog"
    last = path.read_text()
    signed = next(line for line in last.splitlines() if line.startswith(" -- "))
    maintainer = signed.removeprefix(" -- ").partition(">")[0] + ">"
    date = formatdate(int(os.environ.get("SOURCE_DATE_EPOCH", 0)) or None)
    entry = f"ndxdp ({version}) unstable; urgency=medium\n\n  * Built as {version}.\n\n"
    path.write_text(f"{entry} -- {maintainer}  {date}\n\n{last}")


def build(directory: Path, version: str | None = None) -> Path:
    """Returns the path of the .deb, in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ndxdp-deb-") as work:
        tree = Path(work) / "tree"
        (tree / "wheels").mkdir(parents=True)
        copy_sources(tree)
        build_wheel(tree, tree / "wheels")
        for wheel in fetch_needed():
            shutil.copy(wheel, tree / "wheels")
        shutil.copytree(tree / "packaging" / "debian", tree / "debian")
        if version is not None:
            amend_changelog(tree, version)
        # What it builds lands beside the tree.
        run("dpkg-buildpackage", "--build=binary", "--no-sign", cwd=tree)
        (built,) = Path(work).glob("ndxdp_*.deb")
        return Path(shutil.copy(built, directory))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--version", help="another one than debian/changelog has")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "build")
    parser.add_argument("--fetch", action="store_true", help="fetch what it takes, build nothing")
    given = parser.parse_args()
    if given.fetch:
        fetch_needed()
    else:
        print(build(given.directory.absolute(), given.version))


if __name__ == "__main__":
    main()
