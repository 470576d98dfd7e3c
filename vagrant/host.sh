#!/bin/bash
# The host: a container in a network namespace, 2001:db8:0:1:c::10, and one of Docker's,
# 2001:db8:0:1:d::77. Both start again after a reboot. ndxdp.sh makes them reachable for the router.
set -euo pipefail
. /ndxdp/vagrant/links.sh

call_link 02:00:00:5e:10:02 uplink

cd /etc/systemd/network
cat >20-uplink.network <<'END'
[Match]
Name=uplink

[Network]
IPv6AcceptRA=no
IPv6LinkLocalAddressGenerationMode=eui64
Address=2001:db8:0:1::2/64
Gateway=fe80::1
END
cat >20-to-container.network <<'END'
[Match]
Name=to-container

[Network]
LinkLocalAddressing=no
IPv6AcceptRA=no
Address=fe80::1/64
ConfigureWithoutCarrier=yes

[Route]
Destination=2001:db8:0:1:c::/80
END
echo net.ipv6.conf.all.forwarding=1 >/etc/sysctl.d/50-host.conf
sysctl -qp /etc/sysctl.d/50-host.conf

# Only the monitor may read the metrics, because the exporter has no authentication.
install_packages nftables
cat >/etc/nftables.conf <<'END'
table inet metrics
delete table inet metrics
table inet metrics {
	chain input {
		type filter hook input priority filter; policy accept;
		iifname "uplink" tcp dport 9877 ip6 saddr 2001:db8:0:1::3 accept
		iifname "uplink" tcp dport 9877 drop
	}
}
END
systemctl enable -q nftables
systemctl restart nftables

cat >/usr/local/sbin/start-container <<'END'
#!/bin/sh
set -eu
ip netns add container
ip link add to-container type veth peer name eth0 netns container
ip link set dev to-container up
ip -n container link set dev lo up
ip -n container link set dev eth0 up
ip -n container -6 address add 2001:db8:0:1:c::10/80 dev eth0 nodad
ip -n container -6 route add default via fe80::1 dev eth0
END
chmod 755 /usr/local/sbin/start-container
cat >/etc/systemd/system/container.service <<'END'
[Unit]
Description=A container, 2001:db8:0:1:c::10
After=systemd-networkd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/start-container
ExecStop=/usr/sbin/ip netns delete container

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
start_networkd
systemctl enable -q --now container

# The image is made from the busybox package, without a registry.
# Docker's bridge and rules for IPv4 are not needed here.
mkdir -p /etc/docker
echo '{ "bridge": "none", "iptables": false, "ip-masq": false, "userland-proxy": false }' \
	>/etc/docker/daemon.json
install_packages docker.io apparmor busybox-static
systemctl enable -q --now docker
if ! docker inspect web >/dev/null 2>&1; then
	tar -C / -c --transform 's,^,/,' "$(readlink -f /bin/busybox | cut -c 2-)" | docker import - busybox
	docker network create --ipv6 --subnet 2001:db8:0:1:d::/80 exposed
	docker run -d --name web --restart always --network exposed --ip6 2001:db8:0:1:d::77 \
		busybox "$(readlink -f /bin/busybox)" httpd -f -p '[::]:80'
fi
