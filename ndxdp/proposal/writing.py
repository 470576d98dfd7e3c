"""Writing of the proposed files: all of them, or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ndxdp.errors import NdxdpError, not_written
from ndxdp.files import atomic
from ndxdp.session.signals import uninterrupted


def present(path: Path) -> str | None:
    """Return the text of a file that the proposal would replace; None if there is none.

    Raises:
        NdxdpError: The path leads to something else, or the file cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise NdxdpError(f"{path} is no file that init can replace", "-o - prints to stdout")
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise not_written(path, error) from error


def check_writable(path: Path) -> None:
    """Raise NdxdpError unless a file can be created in the directory of a path."""
    directory = path.resolve().parent
    while not directory.exists():
        directory = directory.parent
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise not_written(path, error) from error


def write_all(texts: Mapping[Path, str]) -> None:
    """Write all texts, or none: an error or a signal leaves every file as it was.

    Missing directories are created. The target of a symbolic link is replaced.

    Raises:
        NdxdpError: A file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        fresh: dict[Path, str] = {}
        former: dict[Path, str | None] = {}
        for named, text in texts.items():
            path = named.resolve()
            with atomic.write_errors(named):
                stack.enter_context(_directory(path.parent))
                fresh[path] = stack.enter_context(atomic.staged(path, text))
                former[path] = stack.enter_context(_former(path))
        with uninterrupted():
            _rename_all(fresh, former)


def _rename_all(fresh: Mapping[Path, str], former: Mapping[Path, str | None]) -> None:
    """Rename each new file over the old one; after an error, rename the old ones back.

    Args:
        fresh: The new file for each path.
        former: A second name of the old file for each path; None where there was none.
    """
    done: list[Path] = []
    for path, name in fresh.items():
        try:
            os.rename(name, path)
        except OSError as error:
            for each in reversed(done):
                old = former[each]
                if old is None:
                    os.unlink(each)
                else:
                    os.rename(old, each)
            raise not_written(path, error) from error
        done.append(path)


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[None]:
    """Create a directory and its parents if they are missing; remove those that stay empty."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir()
    try:
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):  # it has a file
                each.rmdir()


@contextlib.contextmanager
def _former(path: Path) -> Iterator[str | None]:
    """Yield a second name or a copy of a file, to restore the file from; None without a file."""
    if not path.exists():
        yield None
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        name = os.path.join(folder, path.name)
        try:
            os.link(path, name)
        except OSError:  # a mount point, or another user's file (fs.protected_hardlinks)
            shutil.copy2(path, name)
        yield name
