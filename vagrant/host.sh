#!/bin/bash
# The host: the container 2001:db8:0:1:c::10 lives behind it, in a network namespace.
set -euo pipefail
link=$(basename "$(dirname "$(grep -il 02:00:00:5e:10:02 /sys/class/net/*/address | head -n 1)")")

sysctl -qw net.ipv6.conf.all.forwarding=1
ip link set dev "$link" up
ip -6 address replace 2001:db8:0:1::2/64 dev "$link" nodad

if [ ! -e /run/netns/container ]; then
	ip netns add container
	ip link add to-container type veth peer name eth0 netns container
fi
ip link set dev to-container up
ip -6 address replace fe80::1/64 dev to-container nodad
ip -6 route replace 2001:db8:0:1:c::/80 dev to-container
ip -n container link set dev eth0 up
ip -n container -6 address replace 2001:db8:0:1:c::10/80 dev eth0 nodad
ip -n container -6 route replace default via fe80::1 dev eth0

echo "the router is on $link: /ndxdp/.venv/bin/ndxdp attach $link -n 2001:db8:0:1:c::/80 --mode tc"
