"""Demonstration of the problem, of ndppd's answer and of ndxdp's: `make demo`. Needs root.

Everything runs in private namespaces, which vanish however the program ends.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from ipaddress import IPv6Address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import private
from lab.capture import Capture, Message
from lab.commands import LabError, exit_code, stop
from lab.demonstration import (
    NDXDP,
    Demonstration,
    check_machine,
    read_until_ready,
    report,
    report_output,
)
from lab.topology import (
    CONTAINER_ADDRESS,
    CONTAINER_PREFIX,
    HOST,
    HOST_ADDRESS,
    HOST_LINK_LOCAL,
    HOST_MAC,
    INTERNET_ADDRESS,
    ROUTER,
    ROUTER_ADDRESS,
    ROUTER_LINK_LOCAL,
    UPLINK,
    Lab,
)

PICTURE = """\
  router ------ to-router [ br0 ] to-host ------ host ------ container
  fe80::1                 hypervisor             fe80::2     2001:db8:0:1:c::10
  2001:db8:0:1::1/64      lets pass from host    2001:db8:0:1::2/64
  takes the whole /64     only sources in        answers for
  to be on its link       2001:db8:0:1:c::/80    2001:db8:0:1:c::/80
"""

NDPPD_CONFIGURATION = f"""\
proxy {UPLINK} {{
    rule {CONTAINER_PREFIX} {{
        static
    }}
}}
"""

# The source of a ping decides which address the router solicits from.
SOLICITS_FROM = {
    ROUTER_ADDRESS: ROUTER_ADDRESS,  # the router's own packets: from their source
    INTERNET_ADDRESS: ROUTER_LINK_LOCAL,  # forwarded packets: from the link-local address
}

SHELL_STARTUP = """\
[ -f ~/.bashrc ] && . ~/.bashrc
at() { local name=$1; shift; nsenter --net=/run/netns/"$name" "$@"; }
PS1='lab# '
"""


class Demo(Demonstration):
    """The steps in their order."""

    def __init__(self, lab: Lab, ndxdp: Path, mode: str) -> None:
        super().__init__()
        self._lab = lab
        self._ndxdp = ndxdp
        self._mode = mode

    def nobody_answers(self) -> None:
        """Ping the container without a responder."""
        self.begin("1", "Nobody answers for the container")
        capture = self._ask(ROUTER_ADDRESS, expect_answers=False)
        self.expect(not capture.advertisements, "nobody advertises")

    def ndppd_answers(self) -> None:
        """Ping the container with ndppd."""
        self.begin("2", "ndppd answers, but from an address of the host's")
        ndppd = self._start_ndppd()
        try:
            for source in SOLICITS_FROM:
                before = self._lab.dropped().advertisements
                capture = self._ask(source, expect_answers=False)
                dropped = self._lab.dropped().advertisements - before
                report(f"    the filter dropped {dropped} advertisements")
                sent = capture.advertisements
                self.expect(bool(sent), "ndppd answers")
                self.expect(
                    all(na.source in (HOST_ADDRESS, HOST_LINK_LOCAL) for na in sent),
                    "ndppd's source is the host's",
                )
                self.expect(dropped == len(sent), "the filter drops each of ndppd's answers")
            self.expect(ndppd.poll() is None, "ndppd keeps running")
        finally:
            stop(ndppd)

    def ndxdp_answers(self) -> None:
        """Ping the container with ndxdp."""
        self.begin("3", f"ndxdp answers, from the target ({self._mode})")
        ndxdp = self._start_ndxdp()
        try:
            before = self._lab.dropped().advertisements
            for source in SOLICITS_FROM:
                capture = self._ask(source, expect_answers=True)
                self._expect_right_answers(capture, SOLICITS_FROM[source])
                neighbour = self._lab.neighbour(ROUTER, CONTAINER_ADDRESS)
                self.expect(neighbour.lladdr == HOST_MAC, "the router learns the host's MAC")
            self._expect_right_answers(self._probe(), ROUTER_LINK_LOCAL)
            dropped = self._lab.dropped().advertisements - before
            self.expect(dropped == 0, "the filter drops none of ndxdp's answers")
            self.expect(ndxdp.poll() is None, "ndxdp keeps running")
            self._show_status()
        finally:
            stop(ndxdp)

    # ---- solicitations -----------------------------------------------------------------------

    def _ask(self, source: IPv6Address, *, expect_answers: bool) -> Capture:
        """Ping the container with the router's neighbour cache empty, and print the outcome."""
        count = 3 if expect_answers else 1
        self._lab.forget_neighbours()
        with self._lab.capture() as capture:
            received = self._lab.ping(ROUTER, CONTAINER_ADDRESS, source=source, count=count)
        neighbour = self._lab.neighbour(ROUTER, CONTAINER_ADDRESS)
        report(f"  router# ping -I {source} {CONTAINER_ADDRESS}")
        show(capture.messages)
        report(f"    {received} of {count} pings answered; {describe_neighbour(*neighbour)}")
        if expect_answers:
            self.expect(received == count, "every ping is answered")
        else:
            self.expect(received == 0, "no ping is answered")
            self.expect(neighbour.state == "FAILED", "the router's neighbour entry is FAILED")
        solicits_from = {ns.source for ns in capture.solicitations}
        self.expect(
            solicits_from == {SOLICITS_FROM[source]},
            f"the router solicits from {SOLICITS_FROM[source]}",
        )
        return capture

    def _probe(self) -> Capture:
        """Let the router probe its neighbour by unicast."""
        with self._lab.capture() as capture:
            self._lab.probe_neighbour(CONTAINER_ADDRESS)
            give_up = time.monotonic() + 2
            while time.monotonic() < give_up:
                neighbour = self._lab.neighbour(ROUTER, CONTAINER_ADDRESS)
                if neighbour.state != "PROBE":
                    break
                time.sleep(0.05)
        report("  router# ip neighbour change ... nud probe")
        show(capture.messages)
        report(f"    {describe_neighbour(*neighbour)}")
        self.expect(neighbour.state == "REACHABLE", "the NUD probe leaves the entry REACHABLE")
        self.expect(
            any(ns.destination == CONTAINER_ADDRESS for ns in capture.solicitations),
            "the NUD probe is unicast",
        )
        return capture

    def _expect_right_answers(self, capture: Capture, solicits_from: IPv6Address) -> None:
        answers = [na for na in capture.advertisements if na.target == CONTAINER_ADDRESS]
        self.expect(bool(answers), f"ndxdp answers {solicits_from}")
        self.expect(
            all(na.source == CONTAINER_ADDRESS for na in answers), "source and target are the same"
        )
        self.expect(
            all(na.destination == solicits_from for na in answers),
            f"the answer goes to {solicits_from}",
        )
        self.expect(all(na.passed for na in answers), "the answer passes the filter")

    # ---- the two responders -----------------------------------------------------------------

    def _start_ndppd(self) -> subprocess.Popen[str]:
        report(f"  host# ndppd -c ndppd.conf      # rule {CONTAINER_PREFIX} {{ static }}")
        with tempfile.TemporaryFile("w+") as configuration:  # has no name that would remain
            configuration.write(NDPPD_CONFIGURATION)
            configuration.seek(0)
            process = self._lab.popen(
                *(HOST, "ndppd", "-c", "/dev/stdin"),
                stdin=configuration,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        # ndppd listens once it has a packet socket; nothing else here has one.
        give_up = time.monotonic() + 5
        listing = Path(f"/proc/{process.pid}/net/packet")
        while process.poll() is None and time.monotonic() < give_up:
            if len(listing.read_text().splitlines()) > 1:
                return process
            time.sleep(0.02)
        raise LabError("ndppd does not start.", "Try it by hand: python lab/demo.py --shell")

    def _start_ndxdp(self) -> subprocess.Popen[str]:
        options = ["run", UPLINK, "-n", str(CONTAINER_PREFIX), "--mode", self._mode]
        report(f"  host# ndxdp {' '.join(options)}")
        process = self._lab.popen(
            *(HOST, str(self._ndxdp), *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        read_until_ready(process)
        return process

    def _show_status(self) -> None:
        report("  host# ndxdp status")
        status = self._lab.run(HOST, str(self._ndxdp), "status", check=False)
        report_output(status.stdout + status.stderr)
        self.expect(status.returncode == 0 and status.stdout != "", "ndxdp status tells something")


def show(messages: list[Message]) -> None:
    """Print each distinct message once."""
    lines = Counter(map(describe, messages))
    for line, times in lines.items():
        report(f"    {line}" + (f"  ({times} times)" if times > 1 else ""))


def describe(message: Message) -> str:
    """Return a line on a message."""
    if message.kind == "NS":
        way = " by unicast" if message.destination == message.target else ""
        return f"NS from {message.source} for {message.target}{way}"
    fate = "passed" if message.passed else "DROPPED by the filter"
    return f"NA from {message.source} for {message.target}: {fate}"


def describe_neighbour(state: str, lladdr: str) -> str:
    """Return a line on the router's neighbour entry."""
    return f"the router's neighbour entry: {' '.join((lladdr, state or 'none')).strip()}"


def run_demo(ndxdp: Path, mode: str) -> int:
    """Run all steps, and return the exit code."""
    report("Four network namespaces on this machine, gone when this program ends:\n")
    report(PICTURE.rstrip())
    with Lab() as lab:
        demo = Demo(lab, ndxdp, mode)
        try:
            demo.nobody_answers()
            demo.ndppd_answers()
            demo.ndxdp_answers()
        except LabError as error:
            demo.differences.append(str(error))
    return demo.end(
        "ndppd's answers were dropped, ndxdp's were accepted, and the container is reached."
    )


def shell() -> int:
    """Start an interactive shell inside the lab, and return its exit code."""
    with Lab():
        report(PICTURE)
        report("`at NAME COMMAND` runs a command in: router, hypervisor, host, container.")
        startup = os.memfd_create("startup")
        os.write(startup, SHELL_STARTUP.encode())
        return subprocess.run(
            ["bash", "--rcfile", f"/proc/self/fd/{startup}", "-i"], pass_fds=[startup]
        ).returncode


@exit_code
def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ndxdp", type=Path, default=NDXDP, metavar="PATH")
    parser.add_argument("--mode", choices=("native", "generic", "tc"), default="native")
    parser.add_argument(
        "--shell", action="store_true", help="build the network and start a shell in it"
    )
    options = parser.parse_args()
    ndxdp = options.ndxdp.absolute()
    if options.shell:
        check_machine(None)
    else:
        check_machine(ndxdp, {"ndppd": "ndppd"})
    if not private.inside():
        return private.run([sys.executable, *sys.argv])
    return shell() if options.shell else run_demo(ndxdp, options.mode)


if __name__ == "__main__":
    sys.exit(main())
