"""The systemd unit of ndxdp, with the paths of this installation.

data/ndxdp.service is a complete unit for /usr/bin/ndxdp. Only its paths are replaced, and
ProtectHome= if a path is in a home directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ndxdp.errors import NdxdpError, UsageError, not_written
from ndxdp.files import atomic

NAME = "ndxdp.service"
CONFIG = Path("/etc/ndxdp/ndxdp.toml")
_DATA = resources.files("ndxdp") / "data"
_COMMAND = "/usr/bin/ndxdp"

_UNITS = tuple(map(Path, ("/etc/systemd/system", "/usr/lib/systemd/system")))

_HOMES = tuple(map(Path, ("/home", "/root", "/run/user")))  # ProtectHome= hides these
_PRIVATE = tuple(map(Path, ("/tmp", "/var/tmp")))  # PrivateTmp= hides these
_ELSEWHERE = "install ndxdp and its file elsewhere, such as /opt/ndxdp and /etc/ndxdp"


def unit(command: Path, config: Path) -> str:
    """Return the text of a unit.

    The last line is a digest of the other lines, by which an edited unit is recognized.

    Args:
        command: The absolute path of the executable.
        config: The absolute path of the configuration file.

    Raises:
        UsageError: A unit file cannot name one of the paths.
        NdxdpError: The service could not use one of the paths.
    """
    for path in (command, config):
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", str(path)):
            raise UsageError(f"no unit file can name {str(path)!r}", "rename it")
    if re.search(r"[\"'\\]", str(command)):
        raise UsageError(f"systemd cannot run a command with the name {command}", "rename it")
    needed = {command, command.resolve(), config, config.resolve(), *_installation()}
    text = (_DATA / NAME).read_text()
    words = _quoted(_percent(str(command))), _quoted(_percent(str(config)).replace("$", "$$"))
    text = re.sub(
        rf"^(Exec\w+)={_COMMAND} (.*) {CONFIG}$",
        lambda line: f"{line[1]}={words[0]} {line[2]} {words[1]}",
        text,
        flags=re.MULTILINE,
    )
    if _within_homes(needed):
        text = text.replace("\nProtectHome=yes\n", "\nProtectHome=read-only\n")
    return text + _digest(text)


def command() -> Path:
    """Return the path of this ndxdp's executable; raise NdxdpError if there is none."""
    called = Path(os.path.abspath(sys.argv[0]))
    for path in (called, Path(sys.executable).with_name("ndxdp")):
        if path.name != "__main__.py" and path.is_file() and os.access(path, os.X_OK):
            return path
    raise NdxdpError(
        f"there is no ndxdp beside {sys.executable} for a service to run",
        "run the ndxdp that pip installed",
    )


def install(text: str, directory: Path, *, force: bool = False) -> bool:
    """Write a unit.

    Args:
        text: The text of the unit.
        directory: Where to write the unit.
        force: Overwrite a unit that was edited.

    Returns:
        False if the file has that text already.

    Raises:
        NdxdpError: The unit was edited, or cannot be written.
    """
    if not directory.is_dir():
        raise NdxdpError(
            f"{directory} is not a directory", "if systemd has its units elsewhere: --directory"
        )
    path = directory / NAME
    try:
        present = path.read_bytes()
    except FileNotFoundError:
        present = None
    except OSError as error:
        raise not_written(path, error) from error
    if present == text.encode():
        return False
    if present is not None and not force and not _is_unedited(present):
        raise NdxdpError(
            f"{path} is not as install-service left it",
            "--force overwrites it; `systemctl edit ndxdp` keeps changes in a file of their own",
        )
    atomic.replace(path, text)
    return True


def install_example(config: Path) -> bool:
    """Write an example configuration without an interface; return False if the file exists."""
    if os.path.lexists(config):
        return False
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(config, error) from error
    atomic.replace(config, example())
    return True


def example() -> str:
    """Return the example configuration, in which everything is commented out."""
    return (_DATA / "ndxdp.toml").read_text()


def is_installed(config: Path) -> bool:
    """Return True if systemd has a unit that runs ndxdp with a configuration file."""
    for directory in _UNITS:
        with contextlib.suppress(OSError):
            return f" -c {config}\n" in (directory / NAME).read_text()
    return False


# ---- the text ------------------------------------------------------------------------------------


def _percent(word: str) -> str:
    return word.replace("%", "%%")  # systemd.unit(5), specifiers


def _quoted(word: str) -> str:
    """Quote a word by the rules of systemd.syntax(7)."""
    if re.fullmatch(r"[\w@%+=:,./$-]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _digest(text: str) -> str:
    number = hashlib.sha256(text.encode()).hexdigest()
    return f"# Written by `ndxdp install-service`; of the lines above: sha256 {number}\n"


def _is_unedited(present: bytes) -> bool:
    """Return True if install-service, of any version, wrote the unit, and no edit followed."""
    text = present.decode(errors="replace")
    body = text[: text.rstrip("\n").rfind("\n") + 1]
    return text == body + _digest(body)


# ---- what the service can use --------------------------------------------------------------------


def _installation() -> set[Path]:
    """Return the paths of the interpreter and of this package."""
    package = Path(__file__).resolve().parent
    return {package, Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve()}


def _within_homes(needed: Iterable[Path]) -> bool:
    """Return True if a path is in a home directory; raise NdxdpError for an unusable path."""
    for path in sorted(needed):
        if _is_within(path, _PRIVATE):
            raise NdxdpError(f"{path} is temporary, and the service has a private /tmp", _ELSEWHERE)
        for part in (path, *path.parents):
            if part.exists() and not _root_may_use(part):
                raise NdxdpError(
                    f"the service could not read {part}, which root may not read", _ELSEWHERE
                )
    return any(_is_within(path, _HOMES) for path in needed)


def _is_within(path: Path, directories: Iterable[Path]) -> bool:
    return any(path.is_relative_to(directory) for directory in directories)


def _root_may_use(path: Path) -> bool:
    """Return True if root may use a path without CAP_DAC_OVERRIDE, as the service runs."""
    status = path.stat()
    shift = 6 if status.st_uid == 0 else 3 if status.st_gid == 0 else 0
    needed = 0o1 if path.is_dir() else 0o4
    return bool(status.st_mode >> shift & needed)
