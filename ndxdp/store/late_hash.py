"""A hash in the kernel that is made when its first entry is written.

Its buckets take some 1 MB for each interface, and most interfaces need none of these hashes. A
program knows such a hash as the only element of an array, which is empty before. So the program
finds the hash without being loaded again. `dev_sets`, which no program uses, has no array.

The hash is pinned, and then put into the array. The pin has the truth: a writer that finds it while
the array is empty was preceded by one that was killed in between, and completes the change. So an
entry is written only when a program can find it. The hash stays until the interface is detached.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ndxdp.errors import Damaged, NdxdpError, is_exhausted
from ndxdp.kernel import abi, bpf_maps, libbpf
from ndxdp.kernel.bpf_maps import KernelMap
from ndxdp.kernel.parked import Parked
from ndxdp.store import only_element, pins
from ndxdp.store.parked_map import ParkedMap


class LateHash:
    """The hash and its array. Several processes and threads may write at the same time.

    The methods are those of an open map, which has no entries as long as there is no hash.

    Attributes:
        array: The array; None if the hash has none.
        value_size: Bytes of a value; of a per-CPU map, of the values of all CPUs.
        pin_name: The name of the pin of the hash.
    """

    def __init__(
        self,
        name: str,
        array: KernelMap | None,
        directory: Path | None = None,
        *,
        readonly: bool = False,
    ) -> None:
        """Take over the open array.

        Args:
            name: The hash, one of abi.HASHES.
            array: The array.
            directory: Where both are pinned; None if they are not.
            readonly: The array was opened for reading.
        """
        self._spec = abi.HASHES[name]
        self.array: KernelMap | ParkedMap | None = array
        self.value_size = bpf_maps.value_size(self._spec)
        self.pin_name = pin_name(name)
        self._hash: KernelMap | ParkedMap | None = None
        self._number = 0  # the kernel's, of the hash
        self._directory, self._readonly = directory, readonly
        self._parked: Parked | None = None
        self._lock = threading.RLock()

    @classmethod
    def create(cls, name: str) -> Self:
        """Create the empty array if the hash has one."""
        spec = abi.MAPS.get(name)
        if spec is None:
            return cls(name, None)
        with contextlib.closing(KernelMap.create(abi.HASHES[name]._replace(max_entries=1))) as one:
            return cls(name, KernelMap(spec, bpf_maps.create(spec, one.fd)))

    @classmethod
    def open(cls, directory: Path, name: str, *, readonly: bool = False) -> Self:
        """Open the pinned array if the hash has one; the hash itself is opened when it is needed.

        Raises:
            NdxdpError: The array is not of this ABI version.
        """
        spec = abi.MAPS.get(name)
        array = KernelMap.open(directory / name, spec, readonly=readonly) if spec else None
        return cls(name, array, directory, readonly=readonly)

    def duplicate(self) -> Self:
        """Return the same array and hash with descriptors of their own."""
        assert not isinstance(self.array, ParkedMap), "called for open maps"
        array = self.array.duplicate() if self.array else None
        made = type(self)(self._spec.name, array, self._directory, readonly=self._readonly)
        if isinstance(self._hash, KernelMap):
            made._keep(self._hash.duplicate())
        return made

    def adopt(self, made: KernelMap) -> None:
        """Take over an open hash, and put it into the array; there was none before."""
        self._keep(made)
        self._publish()

    # ---- the methods of a map

    @property
    def max_entries(self) -> int:
        """How many entries the hash can have."""
        present = self._present()
        return present.max_entries if present else self._spec.max_entries

    def lookup(self, key: bytes) -> bytes | None:
        """Return a value; see KernelMap.lookup()."""
        present = self._present()
        return present.lookup(key) if present else None

    def update(self, keys: bytes, values: bytes) -> None:
        """Write entries; see KernelMap.update().

        Raises:
            OSError: The kernel has no memory for the hash or for all entries.
        """
        if keys:
            self._made().update(keys, values)

    def delete(self, keys: bytes) -> None:
        """Remove entries; a missing entry is no error."""
        present = self._present()
        if present:
            present.delete(keys)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries; see KernelMap.items()."""
        present = self._present()
        if present:
            yield from present.items()

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries, many at a time."""
        present = self._present()
        if present:
            yield from present.pieces()

    def close(self) -> None:
        """Close the array and the hash."""
        for each in (self.array, self._hash):
            if each:
                each.close()

    # ---- pins and descriptors

    def pin(self, directory: Path) -> None:
        """Pin the hash, if there is one, in the directory in which the array is pinned."""
        if isinstance(self._hash, KernelMap):
            pins.pin(self._hash.fd, directory / self.pin_name)
        self._directory = directory

    def repin(self, directory: Path) -> None:
        """Pin the hash and the array in a directory, in place of others, the array last."""
        if isinstance(self._hash, KernelMap):
            pins.repin(self._hash.fd, directory / self.pin_name)
        if isinstance(self.array, KernelMap):
            pins.repin(self.array.fd, directory / self._spec.name)
        self._directory = directory

    def is_known(self, present: set[str]) -> bool:
        """Return True if this object has the hash open, so that its pin can be restored.

        Args:
            present: The names in the directory. A hash that is pinned there is opened, and from
                then on its pin can be restored.
        """
        if self._hash is None and self.pin_name in present:
            with contextlib.suppress(OSError, Damaged):
                self._present()
        return self._hash is not None

    def open_maps(self) -> dict[str, KernelMap]:
        """Return the array and the hash by the names of their pins, as far as they are open."""
        maps = {self._spec.name: self.array, self.pin_name: self._hash}
        return {name: each for name, each in maps.items() if isinstance(each, KernelMap)}

    def park(self, parked: Parked) -> None:
        """Use parked descriptors, which are those of open_maps() by their names."""
        with self._lock:
            if isinstance(self.array, KernelMap):
                self.array = ParkedMap(parked, self.array)
            if isinstance(self._hash, KernelMap):
                self._hash = ParkedMap(parked, self._hash, self.pin_name)
            self._parked = parked

    # ---- the hash

    def _present(self) -> KernelMap | ParkedMap | None:
        """Return the hash; None if there is none.

        Raises:
            Damaged: Somebody has removed its pin, and this process may not open it otherwise.
        """
        with self._lock:
            if self._hash is None and self._directory is not None:
                found = self._pinned() or self._by_number()
                if found:
                    self._keep(found)
            return self._hash

    def _made(self) -> KernelMap | ParkedMap:
        """Return the hash for writing; make it, and put it into the array, as far as needed."""
        with self._lock:
            if not self._present():
                self._keep(self._new())
            if self.array and self._published() != self._number:
                self._publish()
            assert self._hash, "it was made"
            return self._hash

    def _new(self) -> KernelMap:
        """Create the hash and pin it, or open what another process has pinned in the meantime."""
        made = KernelMap.create(self._spec)
        if self._directory is None:
            return made
        try:
            pins.pin(made.fd, self._directory / self.pin_name)
        except OSError as error:
            if error.errno == errno.ENOENT:  # the directory was removed
                return made  # whoever restores the pins pins the hash, too
            made.close()
            other = self._pinned() if error.errno == errno.EEXIST else None
            if other:
                return other
            raise
        except BaseException:
            made.close()
            raise
        return made

    def _pinned(self) -> KernelMap | None:
        """Open the pinned hash; None if there is no pin."""
        assert self._directory is not None, "called with pins"
        path = self._directory / self.pin_name
        try:
            return KernelMap.open(path, self._spec, readonly=self._readonly)
        except libbpf.BpfError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _by_number(self) -> KernelMap | None:
        """Open the hash of the array, whose pin was removed; None if the array is empty.

        It takes CAP_SYS_ADMIN. A process that may write restores the pin.
        """
        number = self._published()
        if not number:
            return None
        assert self._directory is not None, "called with pins"
        path = self._directory / self.pin_name
        try:
            found = KernelMap(self._spec, bpf_maps.open_id(number))
        except OSError as error:
            if is_exhausted(error):
                raise
            interface = path.parent.name.replace(":", ".")
            raise Damaged(
                f"the pin {path} has been removed", f"ndxdp detach {interface}"
            ) from error
        if not self._readonly:
            with contextlib.suppress(OSError, NdxdpError):  # the directory was removed, too
                pins.pin(found.fd, path)
        return found

    def _published(self) -> int:
        """Return the kernel's number of the hash in the array; 0 for none."""
        return only_element.number_in(self.array) if self.array else 0

    def _publish(self) -> None:
        """Put the hash into the array. The kernel waits until each program finds it."""
        if not self.array:
            return
        if self._directory is not None:
            # A process that was killed after it had pinned the hash may not have set the mode.
            with contextlib.suppress(FileNotFoundError):
                (self._directory / self.pin_name).chmod(pins.MODE)
        made = self._hash
        assert made, "there is a hash"
        with made.opened() if isinstance(made, ParkedMap) else contextlib.nullcontext(made) as it:
            only_element.put_into(self.array, it.fd)

    def _keep(self, found: KernelMap) -> None:
        """Use an open hash. Its descriptor is parked if those of the other maps are."""
        self._hash, self._number = found, bpf_maps.id_of(found.fd)
        if self._parked is not None:
            with contextlib.suppress(OSError):  # the kernel refuses, and the map stays open
                self._parked.add(self.pin_name, found.fd)
                self._hash = ParkedMap(self._parked, found, self.pin_name)


def pin_name(name: str) -> str:
    """Return the name of the pin of a hash, one of abi.HASHES; the array has the hash's name."""
    return f"{name}:hash" if name in abi.MAPS else name
