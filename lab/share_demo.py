"""Demonstration of a share: `make demo-share`. Needs root.

One /64 by router advertisement, and hosts behind a Linux host that want addresses of it: without
ndxdp they get none, with `ndxdp share` they get them and are reached. Everything runs in private
namespaces, which vanish however the program ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from ipaddress import IPv6Address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import demonstration
from lab.commands import LabError, enter, exit_code, stop
from lab.demonstration import Demonstration, read_until_ready, report, report_output
from lab.nodes import LINK, Node, wait_until
from lab.shared_prefix import HOST, INTERNET_ADDRESS, LAN0, LAN1, PREFIX, SharedLab

PICTURE = """\
  internet --- router --- [ link ] --- eth0  host  lan0 --- laptop
               radvd:         |                    lan1 --- phone
               one /64    neighbour
"""


class Demo(Demonstration):
    """The steps in their order."""

    def __init__(self, lab: SharedLab, ndxdp: Path) -> None:
        super().__init__()
        self._lab = lab
        self._ndxdp = ndxdp
        self._laptop = lab.client("laptop", LAN0, up=False)
        self._phone = lab.client("phone", LAN1, up=False)

    def without(self) -> None:
        """Show which hosts have addresses without ndxdp."""
        self.begin("1", "Without ndxdp: the neighbour has an address, the hosts behind have none")
        self._show_addresses(self._lab.neighbour)
        self._laptop.ip(f"link set {LINK} up")
        time.sleep(4.2)  # radvd advertises every 3 to 4 seconds
        self._show_addresses(self._laptop)
        self.expect(not self._laptop.addresses(PREFIX), "the laptop has no address")

    def share(self) -> subprocess.Popen[str]:
        """Start ndxdp, and show what it prints until it is ready."""
        words = ("share", LINK, LAN0, LAN1)
        self.begin("2", "With ndxdp")
        report(f"  host# ndxdp {' '.join(words)}")
        process = subprocess.Popen(
            enter(HOST, (str(self._ndxdp), *words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        report_output(read_until_ready(process))
        return process

    def reached(self) -> None:
        """Have each side reach the other."""
        self.begin("3", "They get addresses, and everybody reaches everybody")
        lab = self._lab
        self._phone.ip(f"link set {LINK} up")
        lab.wait_for_addresses(self._laptop, self._phone)
        for node in (self._laptop, self._phone):
            self._show_addresses(node)
        laptop, phone = (node.slaac(PREFIX) for node in (self._laptop, self._phone))
        self._ping(lab.router, laptop)
        self._ping(self._laptop, INTERNET_ADDRESS)
        self._ping(lab.neighbour, phone)
        self._ping(self._laptop, phone)
        report("  host# ndxdp hosts")
        listed = self._lab.host.run(str(self._ndxdp), "hosts", check=False)
        report_output(listed.stdout + listed.stderr)
        self.expect(str(laptop) in listed.stdout, "ndxdp hosts lists the laptop")

    def duplicate(self) -> None:
        """Have the neighbour try to take an address that a client has."""
        self.begin("4", "The neighbour tries to take the phone's address")
        address, neighbour = self._phone.slaac(PREFIX), self._lab.neighbour
        report(f"  neighbour# ip address add {address}/64 dev {LINK}")
        neighbour.ip(f"address add {address}/64 dev {LINK}")
        wait_until(lambda: neighbour.dad(address) in ("valid", "failed"), "DAD has no result", 5)
        state = neighbour.dad(address)
        report(f"    Duplicate Address Detection: {state}")
        self.expect(state == "failed", "the duplicate is found")

    def _ping(self, node: Node, target: IPv6Address) -> None:
        answered = node.ping(target)
        report(f"  {node.name}# ping -c 1 {target}: {'answered' if answered else 'NO ANSWER'}")
        self.expect(answered == 1, f"{node.name} reaches {target}")

    def _show_addresses(self, node: Node) -> None:
        shown = json.loads(node.run("ip", "-j", "-6", "address", "show", "dev", LINK).stdout)
        texts = [entry["local"] for link in shown for entry in link.get("addr_info", [])]
        report(f"  {node.name}: {', '.join(texts)}")


def run_demo(ndxdp: Path) -> int:
    """Run all steps, and return the exit code."""
    report("A network of namespaces on this machine, gone when this program ends:\n")
    report(PICTURE.rstrip())
    with SharedLab() as lab:
        demo = Demo(lab, ndxdp)
        try:
            demo.without()
            process = demo.share()
            try:
                demo.reached()
                demo.duplicate()
            finally:
                stop(process)
        except LabError as error:
            demo.differences.append(str(error))
    return demo.end("hosts on both sides use one /64, and each reaches the others.")


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    return demonstration.run(__doc__, run_demo, {"radvd": "radvd"})


if __name__ == "__main__":
    sys.exit(main())
