# Functions for apt and network interfaces; the other scripts source this file.

export DEBIAN_FRONTEND=noninteractive

# install_packages PACKAGE...: update apt's lists only if the present ones do not suffice.
install_packages() {
	local wait="-o DPkg::Lock::Timeout=600" # a new machine may be upgrading itself
	apt-get $wait install -qy --no-install-recommends "$@" ||
		{ apt-get -q update && apt-get $wait install -qy --no-install-recommends "$@"; }
}

# call_link MAC NAME: name the network card with this MAC, now and after each boot.
call_link() {
	mkdir -p /etc/systemd/network
	cat >"/etc/systemd/network/10-$2.link" <<-END
		[Match]
		MACAddress=$1
		Type=ether

		[Link]
		Name=$2
	END
	[ ! -e "/sys/class/net/$2" ] || return 0
	local card
	card=$(grep -il "$1" /sys/class/net/*/address | head -n 1)
	[ -n "$card" ] || { echo "no network card has the MAC $1" >&2; return 1; }
	card=$(basename "$(dirname "$card")")
	ip link set dev "$card" down
	ip link set dev "$card" name "$2"
}

# start_networkd: start systemd-networkd, which leaves other network cards to their managers.
start_networkd() {
	systemctl enable -q systemd-networkd
	systemctl restart systemd-networkd
}
