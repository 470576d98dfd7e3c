#!/bin/bash
# The router and hypervisor: a bridge with a filter against spoofing, and a router on it that treats
# 2001:db8:0:1::/64 as on-link, and so solicits every address of that prefix.
set -euo pipefail
. /ndxdp/vagrant/links.sh

install_packages nftables
call_link 02:00:00:5e:10:01 to-host
call_link 02:00:00:5e:10:03 to-monitor

cd /etc/systemd/network
cat >20-ports.network <<'END'
[Match]
Name=to-host to-monitor

[Network]
Bridge=br0
LinkLocalAddressing=no
END
cat >20-br0.netdev <<'END'
[NetDev]
Name=br0
Kind=bridge
MACAddress=02:00:00:5e:10:10
END
cat >20-br0.network <<'END'
[Match]
Name=br0

[Network]
LinkLocalAddressing=no
IPv6AcceptRA=no
Address=fe80::1/64
Address=2001:db8:0:1::1/64
END
# A ping from this address has a source outside of the link, like packets from the Internet. The
# router solicits from its link-local address then.
cat >20-internet.network <<'END'
[Match]
Name=lo

[Network]
Address=2001:db8:ffff::1/128
END
echo net.ipv6.conf.all.forwarding=1 >/etc/sysctl.d/50-router.conf
sysctl -qp /etc/sysctl.d/50-router.conf

install -m 644 /ndxdp/vagrant/antispoof.nft /etc/nftables.conf
systemctl enable -q nftables
systemctl restart nftables
start_networkd
