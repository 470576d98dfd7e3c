"""A real Docker engine, in the private namespaces of lab.private.

containerd and dockerd are started by hand, on folders and a socket of their own below the private
/run. Images come from nowhere: one is made of a static busybox. What the engine would write
elsewhere (/etc/docker/key.json, /opt/containerd, a cgroup called docker) it is told otherwise, or
it is taken away at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lab import private
from tests.network import call, eventually, sh

IMAGE = "tiny:1"
BUSYBOX = Path("/bin/busybox")

_CONTAINERD = """
version = 2
root = "{0}/containerd/root"
state = "{0}/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/containerd.sock"
"""


class Engine:
    """containerd and dockerd. `socket` is where the API is; `start` and `kill` are dockerd's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "docker.sock"
        # Cgroups are the one thing that no namespace here keeps apart: a name of our own.
        self._cgroup = f"ndxdp-test-{os.stat('/proc/self/ns/mnt').st_ino}"
        self._dockerd: subprocess.Popen[bytes] | None = None
        (folder / "containerd.toml").write_text(_CONTAINERD.format(folder))
        (folder / "docker.json").write_text(
            json.dumps({"deprecated-key-path": str(folder / "key.json")})
        )
        self._containerd = self._run("containerd", "--config", folder / "containerd.toml")
        eventually((folder / "containerd.sock").exists, within=20)

    def _run(self, *command: str | Path) -> subprocess.Popen[bytes]:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"PATH": path}, cwd="/"
            )

    def start(self) -> None:
        """Start dockerd, and wait until it answers."""
        self.launch()
        eventually(self.answers, within=20)

    def launch(self) -> None:
        folder = self.folder
        self._dockerd = self._run(
            *("dockerd", "--host", f"unix://{self.socket}"),
            *("--containerd", folder / "containerd.sock", "--config-file", folder / "docker.json"),
            *("--data-root", folder / "data", "--exec-root", folder / "exec"),
            *("--pidfile", folder / "docker.pid", "--storage-driver", "vfs"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", f"--cgroup-parent=/{self._cgroup}"),
            # Nothing of this namespace is changed but for the bridges that tests ask for.
            *("--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        )

    def answers(self) -> bool:
        assert self._dockerd is not None
        assert self._dockerd.poll() is None, (self.folder / "dockerd.log").read_text()[-3000:]
        with contextlib.suppress(OSError, AssertionError):
            self.ask("GET", "/_ping")
            return True
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End dockerd, the process that `start` started."""
        assert self._dockerd is not None
        self._dockerd.send_signal(number)
        self._dockerd.wait(timeout=30)
        self._dockerd = None

    # ---- its API

    def ask(self, method: str, path: str, body: object = None, **parameters: str) -> Any:
        """One request; it has to succeed. Returns what the JSON says, None if there is none."""
        query = "&".join(f"{key}={quote(value)}" for key, value in parameters.items())
        connection = _Connection(self.socket)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/x-tar" if isinstance(body, bytes) else "application/json"
        connection.request(method, f"{path}?{query}", raw, {"Content-Type": kind})
        response = connection.getresponse()
        said = response.read()
        connection.close()
        assert response.status < 300, f"{method} {path}: {response.status} {said.decode()}"
        is_json = "json" in response.headers.get("Content-Type", "")
        return json.loads(said) if said and is_json else None

    def make_image(self) -> None:
        """`docker import` of a root file system that is busybox alone."""
        assert BUSYBOX.exists()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(BUSYBOX.resolve(), "bin/busybox")
        name, _, tag = IMAGE.partition(":")
        self.ask("POST", "/images/create", packed.getvalue(), fromSrc="-", repo=name, tag=tag)

    def make_network(
        self, name: str, *subnets: str, labels: Mapping[str, str] | None = None
    ) -> None:
        self.ask(
            "POST",
            "/networks/create",
            {
                "Name": name,
                "Driver": "bridge",
                "EnableIPv6": any(":" in subnet for subnet in subnets),
                "IPAM": {"Config": [{"Subnet": subnet} for subnet in subnets]},
                "Labels": dict(labels or {}),
                # Its bridge's name, by which others can find it.
                "Options": {"com.docker.network.bridge.name": name},
            },
        )

    def run(
        self,
        name: str,
        network: str,
        *,
        address: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Start a container that sleeps."""
        joined = {"IPAMConfig": {"IPv6Address": address}} if address else {}
        self.ask(
            "POST",
            "/containers/create",
            {
                "Image": IMAGE,
                "Cmd": ["/bin/busybox", "sleep", "3600"],
                "StopSignal": "SIGKILL",  # an init ignores the others, and is waited for
                "Labels": dict(labels or {}),
                "HostConfig": {"NetworkMode": network},
                "NetworkingConfig": {"EndpointsConfig": {network: joined}},
            },
            name=name,
        )
        self.ask("POST", f"/containers/{name}/start")

    def connect(self, name: str, network: str, *, address: str | None = None) -> None:
        joined = {"IPAMConfig": {"IPv6Address": address}} if address else {}
        body = {"Container": name, "EndpointConfig": joined}
        self.ask("POST", f"/networks/{network}/connect", body)

    def disconnect(self, name: str, network: str) -> None:
        self.ask("POST", f"/networks/{network}/disconnect", {"Container": name, "Force": True})

    def clear(self) -> None:
        """Remove all containers and networks of tests."""
        for container in self.ask("GET", "/containers/json", all="1"):
            self.ask("DELETE", f"/containers/{container['Id']}", force="1")
        for network in self.ask("GET", "/networks"):
            if network["Driver"] == "bridge":
                self.ask("DELETE", f"/networks/{network['Id']}")

    # ---- the end

    def close(self) -> None:
        if self._dockerd is not None:
            with contextlib.suppress(OSError, AssertionError):
                self.clear()
            self.kill(signal.SIGTERM)
        self._containerd.terminate()
        self._containerd.wait(timeout=30)
        # dockerd mounts its data folder on itself, and after a SIGKILL knows no more that it did.
        call("umount", str(self.folder / "data"))
        try:
            eventually(lambda: not self._left(), within=10)
        except AssertionError:
            raise AssertionError(self._left()) from None

    def _left(self) -> list[str]:
        """What the engine has left behind; what can be is taken away."""
        hierarchies = Path("/sys/fs/cgroup")
        for parent in (hierarchies / self._cgroup, *hierarchies.glob(f"*/{self._cgroup}")):
            with contextlib.suppress(OSError):
                parent.rmdir()
        cgroups = [hierarchies, *hierarchies.glob("*")]
        found = [str(at / self._cgroup) for at in cgroups if (at / self._cgroup).exists()]
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        found += [mount for mount in mounts if f" {self.folder}/" in mount]
        return found + [f"process {pid}" for pid in self._processes()]

    def _processes(self) -> list[int]:
        """Processes of the engine that are alive. Shims have become children of our init."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


@contextlib.contextmanager
def engine() -> Iterator[Engine]:
    """An engine with an image; at the end nothing of it may be left."""
    assert private.inside(), "these tests need namespaces of their own: run `make test`"
    folder = Path("/run/ndxdp-test-engine")
    folder.mkdir()
    sh("ip", "link", "set", "lo", "up")  # as the tests' networks have it
    before = (call("ip", "-o", "link").out, _elsewhere())
    made = Engine(folder)
    try:
        made.start()
        made.make_image()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
    assert (call("ip", "-o", "link").out, _elsewhere()) == before


def _elsewhere() -> list[bool]:
    """Whether there is what engines write where they are not told."""
    paths = ("/etc/docker/key.json", "/opt/containerd", "/var/lib/docker", "/var/lib/containerd")
    return [os.path.exists(path) for path in paths]
