"""Build the Debian package: deb.py [--version VERSION] [--directory DIR]. `make deb` runs it.

Debian's tools want a tree with debian/ at its top. It is laid out below build/deb: the sources as a
clone would hold them, the wheel of ndxdp, and the wheels of what it needs, checked against the
digests in requirements.txt. From there on nothing is fetched. The same sources give the same
package, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGING = REPOSITORY / "packaging"
WORK = REPOSITORY / "build" / "deb"


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


def fetch_needed(to: Path) -> None:
    """The wheels that requirements.txt names. Those that are here already are not fetched again."""
    kept, listed = WORK / "wheels", PACKAGING / "requirements.txt"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
    exactly = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(listed))
    done = WORK / "wheels" / listed.name
    if not (done.is_file() and done.read_bytes() == listed.read_bytes()):
        shutil.rmtree(kept, ignore_errors=True)
        run(*pip, *exactly, "--dest", kept)
        shutil.copy(listed, done)
    for wheel in kept.glob("*.whl"):
        shutil.copy(wheel, to)


def build_wheel(source: Path, to: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel")
    run(*pip, "--no-deps", "--wheel-dir", to, source)


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
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "wheels").mkdir(parents=True)
    copy_sources(tree)
    build_wheel(tree, tree / "wheels")
    fetch_needed(tree / "wheels")
    shutil.copytree(tree / "packaging" / "debian", tree / "debian")
    if version is not None:
        amend_changelog(tree, version)
    for old in WORK.glob("ndxdp_*"):
        old.unlink()
    # What it builds lands beside the tree.
    run("dpkg-buildpackage", "--build=binary", "--no-sign", cwd=tree)
    (built,) = WORK.glob("ndxdp_*.deb")
    return Path(shutil.move(built, directory / built.name))


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the Debian package.")
    parser.add_argument("--version", help="another one than debian/changelog has")
    parser.add_argument("--directory", type=Path, default=REPOSITORY / "build")
    given = parser.parse_args()
    print(build(given.directory.absolute(), given.version))


if __name__ == "__main__":
    main()
