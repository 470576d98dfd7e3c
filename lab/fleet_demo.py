"""Demonstration of shared addresses: `make demo-fleet`. Needs root.

Three hosts that could answer for an address, and a cluster of etcd: one host answers. It fails
before your eyes, in several ways, and the router's pings go on. Everything runs in private
namespaces, which vanish however the program ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import demonstration
from lab.commands import LabError, exit_code
from lab.demonstration import Demonstration, report, report_output
from lab.fleet import GATEWAY, ROUTER, SEGMENT, Fleet, shared_address, shared_name
from lab.fleet_host import FleetHost
from lab.judge import Judge
from lab.nodes import wait_until
from lab.verdict import gaps

PICTURE = """\
              +--- eth0  h1  mgmt0 ---+
  router -----+--- eth0  h2  mgmt0 ---+----- etcd: m1, m2, m3
              +--- eth0  h3  mgmt0 ---+
"""

LEASE = 3
ADDRESSES = 6
_INTERVAL = 0.02  # seconds between two pings
_PERIOD = 1 / 100  # seconds between two solicitations of an address


class Demo(Demonstration):
    """The steps in their order."""

    def __init__(self, fleet: Fleet, judge: Judge) -> None:
        super().__init__()
        self._fleet, self._judge = fleet, judge

    @property
    def _address(self) -> str:
        return shared_address(1)

    def start(self) -> None:
        """Start the daemons, write the addresses to etcd, and show who answers."""
        fleet, host = self._fleet, self._fleet.hosts[0]
        self.begin(
            "1", "ndxdp on three hosts, and six addresses in etcd: each address has one host"
        )
        report("  h1# ndxdp run -c ndxdp.toml\n      and so on h2 and h3")
        fleet.start()
        fleet.settle()
        words = ("fleet", "put", f"shared/{SEGMENT}/{shared_name(1)}", self._address)
        report(f"  h1# ndxdp {' '.join(words)}\n      and five more")
        host.ndxdp(*words, "-c", str(host.file))
        for number in range(2, ADDRESSES + 1):
            fleet.share(number)
        fleet.settle()
        self._show_status()
        wait_until(self._answering, "no host answers", 10)
        self._ping_once()

    def kill(self) -> None:
        """Kill the daemon that answers for the first address."""
        host = self._holder()
        self.begin("2", f"The daemon of {host.name} is killed. No other host may answer too early:")
        report(f"   its rules end in the kernel, before its lease of {LEASE} s ends in etcd")
        assert host.process is not None
        self._lose(host, host.kill, f"{host.name}# kill -9 {host.process.pid}", LEASE + 1)
        self._repair(host)

    def power_off(self) -> None:
        """Take both links of the host that answers away."""
        host = self._holder()
        self.begin("3", f"The power of {host.name} fails")

        def fail() -> None:
            host.cut_from_etcd()
            host.cut_from_segment()
            host.kill()

        self._lose(host, fail, f"{host.name}: no power", LEASE + 1)
        self._repair(host)

    def freeze(self) -> None:
        """Stop the daemon that answers, and let it go on later."""
        host = self._holder()
        self.begin("4", f"The daemon of {host.name} hangs, and wakes up when another host answers")
        self._lose(host, host.suspend, f"{host.name}# kill -STOP", LEASE + 1)
        since = time.monotonic()
        host.resume()
        report(f"  {host.name}# kill -CONT")
        time.sleep(0.7)
        spans = self._judge.report(since).spans[self._address]
        silent = all(host.mac not in span.macs for span in spans)
        report(f"    {host.name} answers for it: {'no' if silent else 'YES'}")
        self.expect(silent, "a daemon that wakes up answers for nothing")

    def drain(self) -> None:
        """Drain the host that answers."""
        host = self._holder()
        self.begin("5", f"{host.name} needs a reboot: it hands over first")
        self._lose(host, host.drain, f"{host.name}# ndxdp fleet drain", 0.2)
        host.undrain()

    def verdict(self) -> None:
        """Show what the router has seen of all this."""
        found = self._judge.report()
        report(f"\nThe router has solicited {found.sent} times meanwhile:")
        report(f"    {len(found.doubles)} solicitations were answered by two hosts")
        self.expect(not found.doubles, "no solicitation is answered by two hosts")

    # ---- helpers

    def _lose(self, host: FleetHost, fail: Callable[[], None], words: str, bound: float) -> None:
        """Let a host fail under pings, and show when another one answers, and what was lost."""
        with self._fleet.router.pinging(self._address, interval=_INTERVAL) as outcome:
            time.sleep(0.5)
            began = time.monotonic()
            report(f"  {words}")
            fail()
            wait_until(
                lambda: self._answering() not in ("", host.name), "no other host answers", 20
            )
            time.sleep(0.6)
            pings = outcome()
        found = self._judge.report(began)
        silent = max((g.seconds for g in gaps(found) if g.target == self._address), default=0.0)
        first = next(
            span.first
            for span in found.spans[self._address]
            if span.macs and span.macs != (host.mac,)
        )
        report(f"    {first - began:5.2f} s later, {self._answering()} answers")
        report(
            f"    nobody answered for {silent:.2f} s;"
            f" {len(pings.lost)} of {pings.sent} pings were lost"
        )
        self.expect(silent <= bound, f"another host answers within {bound:g} s")
        self.expect(pings.sent > len(pings.lost), "the pings go on")

    def _repair(self, host: FleetHost) -> None:
        host.restore()
        self._fleet.settle()
        report(f"  {host.name} is repaired, and takes nothing from the others")

    def _answering(self) -> str:
        """Return the name of the host that answers for the first address; "" if none does."""
        mac = self._judge.answering(self._address, 3 * _PERIOD)
        return self._fleet.host(mac).name if mac else ""

    def _holder(self) -> FleetHost:
        return self._fleet.host(self._fleet.holders()[shared_name(1)])

    def _ping_once(self) -> None:
        answered = self._fleet.router.ping(self._address)
        text = "answered" if answered else "NO ANSWER"
        report(f"  router# ping -c 1 {self._address}: {text}, by {self._answering()}")
        self.expect(answered == 1, "the router reaches the address")

    def _show_status(self) -> None:
        host = self._fleet.hosts[0]
        report("  h1# ndxdp fleet status")
        shown = host.ndxdp("fleet", "status", "-c", str(host.file), check=False)
        report_output(shown.stdout + shown.stderr)
        self.expect(shared_name(1) in shown.stdout, "ndxdp fleet status lists the addresses")


def run_demo(ndxdp: Path) -> int:
    """Run all steps, and return the exit code."""
    report("A network of namespaces on this machine, gone when this program ends:\n")
    report(PICTURE.rstrip())
    report(f"\nFor the router, {GATEWAY}/64 is on-link: it solicits every address.")
    with Fleet([str(ndxdp)]) as fleet:
        fleet.configure(lease=LEASE)
        addresses = [shared_address(number) for number in range(1, ADDRESSES + 1)]
        with Judge(ROUTER, addresses, 1 / _PERIOD) as judge:
            demo = Demo(fleet, judge)
            try:
                demo.start()
                demo.kill()
                demo.power_off()
                demo.freeze()
                demo.drain()
            except LabError as error:
                demo.differences.append(str(error))
            demo.verdict()
    return demo.end("whatever fails, exactly one host answers, and the pings go on.")


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    return demonstration.run(__doc__, run_demo, {"etcd": "etcd-server"})


if __name__ == "__main__":
    sys.exit(main())
