/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the program in the kernel and the Python side share: reasons, map layouts, limits.
 *
 * This file is the single truth. ndxdp/kernel/abi.py mirrors it, and a test compares every
 * struct, enum and map with the BTF of the compiled object. Any change here that an older
 * program or an older ndxdp would misread takes a new NDP_ABI_VERSION, which is part of the
 * pins' path: programs of two versions never meet on one map.
 *
 * The map names are the names of the pins. Byte order is the host's unless a field says
 * "network". Addresses and MACs are bytes in network order.
 */
#ifndef NDP_ABI_H
#define NDP_ABI_H

#define NDP_ABI_VERSION 5

/* A longer frame is no solicitation that any stack sends; the bound keeps the checksum loop
 * short and the frame in one linear piece. 1500 bytes of IPv6 behind 14 of Ethernet.
 */
#define NDP_FRAME_MAX 1514

#define NDP_MAX_ADDRESSES  131072  /* default size of `addresses`: its buckets take 2 MB */
#define NDP_MAX_PREFIXES   1048576 /* `prefixes` costs nothing until it is filled */
#define NDP_HINTS	   4096 /* words of 64 bits: 32 kB, which stay in a CPU's nearest cache */
#define NDP_MAX_GROUPS	   1024
#define NDP_MAX_SOLICITORS 8192	 /* soliciting MACs that each limiter remembers */
#define NDP_MAX_VIAS	   65536 /* interfaces that rules name, for each group that does */
#define NDP_MAX_LOCALS	   65536
#define NDP_MAX_ON_LINK	   16384 /* the kernel keeps 1024 neighbours unless told otherwise */
#define NDP_MAX_GATEWAYS   64
#define NDP_EVENTS	   262144 /* bytes: about a thousand events */
#define NDP_EVENT_FRAME	   128	  /* bytes of a solicitation that an event keeps */
#define NDP_REQUESTS	   65536  /* bytes: about 800 requests, more than are let wait */

/*
 * Why a solicitation was answered, or why it was not: exactly one each, in the order in which
 * the program checks. The names, in lower case and without the prefix, are the metric's label.
 */
enum ndp_reason {
	NDP_NOT_NS = 0,	       /* not a Neighbor Solicitation: never counted */
	NDP_OTHER_VLAN = 1,    /* tagged for a VLAN, whose own interface is to answer */
	NDP_OWN_FRAME = 2,     /* Ethernet source is ours: a loop, or our own NS on a hub */
	NDP_OTHER_HOST = 3,    /* Ethernet destination is neither ours nor the group's */
	NDP_BAD_HOP_LIMIT = 4, /* not 255: it crossed a router (RFC 4861 7.1.1) */
	NDP_BAD_CODE = 5,
	NDP_BAD_LENGTH = 6, /* ICMPv6 length below 24, outside the frame, or a giant */
	NDP_BAD_OPTION = 7, /* of length 0, overhanging, or an SLLAO that is not Ethernet's */
	NDP_BAD_CHECKSUM = 8,
	NDP_BAD_TARGET = 9,  /* multicast, unspecified or loopback */
	NDP_BAD_SOURCE = 10, /* multicast, loopback, v4-mapped, or a malformed DAD probe */
	NDP_PAUSED = 11,
	NDP_NO_RULE = 12,
	NDP_DENIED = 13,    /* the rule says never, or the host owns the target */
	NDP_EXPIRED = 14,   /* a dynamic rule whose daemon has stopped beating */
	NDP_NOT_LOCAL = 15, /* `local`: the kernel does not deliver packets for it here */
	/* Of a `routed` or a `neighbour` rule, what the FIB says of a packet for the target: */
	NDP_NOT_FORWARDING = 16, /* the interface's sysctl `forwarding` is 0 */
	NDP_NO_ROUTE = 17,	 /* none, or `throw` and nothing behind it */
	NDP_ROUTE_LOCAL = 18,	 /* it is for this host itself */
	NDP_ROUTE_BLACKHOLE = 19,
	NDP_ROUTE_UNREACHABLE = 20,
	NDP_ROUTE_PROHIBIT = 21,
	NDP_ROUTE_BACK = 22,	  /* it leaves by the interface that it came in by */
	NDP_ROUTE_ELSEWHERE = 23, /* by one that the rule's `via` does not name */
	NDP_ROUTE_ENCAP = 24,	  /* by a lightweight tunnel, of which no more is told */
	NDP_ROUTE_GATEWAY = 25,	  /* `neighbour`: by another router, so it is no neighbour */
	NDP_NO_NEIGHBOUR = 26,	  /* `neighbour`: not known there, or not alive */
	NDP_DAD_IGNORED = 27,
	NDP_DAD_ON_LINK = 28,	  /* a node of this link may have the address */
	NDP_RATE_LIMITED = 29,	  /* the only reason for which a frame is dropped */
	NDP_GATEWAY_LIMITED = 30, /* a gateway is over its share: the frame goes on */
	NDP_RESIZE_FAILED = 31,	  /* the driver left no room to make it 86 bytes long */
	NDP_SEND_FAILED = 32,	  /* the userspace path's socket did not take the answer */
	NDP_ANSWERED = 33,
	NDP_ANSWERED_DAD = 34,
	NDP_REASON_MAX = 35,
};

enum ndp_answer {
	NDP_NEVER = 0,
	NDP_ALWAYS = 1,
	NDP_ROUTED = 2,	   /* if the kernel would forward a packet for the target */
	NDP_NEIGHBOUR = 3, /* and has the target as a live neighbour where it would */
	NDP_LOCAL = 4,	   /* if the kernel delivers a packet for the target to this host */
};

/* Which address the advertisement comes from. */
enum ndp_na_source {
	NDP_SOURCE_TARGET = 0,
	NDP_SOURCE_LINK_LOCAL = 1, /* the interface's; the target while it has none */
	NDP_SOURCE_ADDRESS = 2,	   /* ndp_group.address */
};

enum ndp_group_flag {
	NDP_GROUP_ROUTER = 1,	/* R: the answering host forwards */
	NDP_GROUP_OVERRIDE = 2, /* O */
	NDP_GROUP_DEFEND = 4,	/* answer Duplicate Address Detection */
	NDP_GROUP_LLADDR = 8,	/* TLLAO is ndp_group.lladdr, not the interface's MAC */
	NDP_GROUP_DYNAMIC = 16, /* subject to the dead man's switch */
	NDP_GROUP_VIA = 32,	/* a route counts if it leaves by an interface of `vias` */
};

enum ndp_rule_flag {
	NDP_RULE_HELD =
		1, /* the host or the gateway owns this address: denied, whatever the answer */
};

enum ndp_mode {
	NDP_MODE_NATIVE = 1,
	NDP_MODE_GENERIC = 2,
	NDP_MODE_TC = 3,
	NDP_MODE_USERSPACE =
		4, /* no program: a process answers, and these structs are in files */
};

/* What `detach` must put back. */
enum ndp_left_flag {
	NDP_LEFT_ALLMULTI = 1,	    /* attach switched allmulti on: it was off */
	NDP_LEFT_CLSACT = 2,	    /* attach made the clsact qdisc */
	NDP_LEFT_NETLINK = 4,	    /* attached by netlink, not by a BPF link */
	NDP_LEFT_MCAST_ROUTER = 16, /* attach set the bridge's mcast_router to 2: it was 1 */
	NDP_LEFT_RUN = 8, /* attached for as long as a process runs: what it leaves is debris */
};

/* Key of `prefixes`; the key of `addresses` is the 16 bytes alone. */
struct ndp_prefix {
	__u32 length;	  /* bits, 0 to 127 */
	__u8 address[16]; /* network order, host bits zero */
};

/* Value of `addresses` and of `prefixes`. */
struct ndp_rule {
	__u16 group;	 /* index into `groups` and `group_counters` */
	__u8 answer;	 /* enum ndp_answer */
	__u8 flags;	 /* enum ndp_rule_flag */
	__u8 prefix_len; /* bits: the key's, which a trie lookup does not return */
	__u8 reserved[3];
};

/* Where the bit of an address is in `hints`, an array of words. An address without a rule of its
 * own has its bit at zero, most likely, and spares the program a look at `addresses`. Who writes
 * an address sets its bit before; nobody ever clears one. The words of the address are taken as
 * they lie in memory.
 */
static inline __attribute__((always_inline)) __u32 ndp_hint(const __u32 *words)
{
	__u32 hash = words[0] * 0x85ebca6b ^ words[1] * 0xc2b2ae35 ^ words[2] * 0x27d4eb2f ^
		     words[3] * 0x9e3779b1;

	return hash >> 14; /* 18 bits: 4096 words of 64 */
}

/* Value of `groups`: what rules written together share, and the name they are counted under. */
struct ndp_group {
	__u8 na_source; /* enum ndp_na_source */
	__u8 flags;	/* enum ndp_group_flag */
	__u8 lladdr[6];
	__u8 address[16];
	char source[16]; /* who wrote the rules, NUL-padded; empty: the slot is free */
	char label[48];	 /* the configured prefix or list, NUL-padded */
	char via[128];	 /* patterns of interface names, spaces between, NUL-padded */
};

/* Key of `vias`, whose value is 1: an interface that matches one of the group's patterns. */
struct ndp_via {
	__u32 group;
	__u32 ifindex;
};

/* Times up to which answers and requests are paid for, ns of CLOCK_MONOTONIC. The value of
 * `gateways`, whose key is a MAC of 6 bytes and 2 that are zero; and the one value of `shares`,
 * for everybody who is not in there.
 */
struct ndp_share {
	__u64 answers;
	__u64 requests;
};

/* What the daemon finds in `requests`: a solicitation for a neighbour that is not known. */
struct ndp_request {
	__u64 time;	    /* CLOCK_MONOTONIC ns */
	__u8 source[16];    /* the soliciting address */
	__u8 target[16];    /* whose MAC the kernel is to find out */
	__u8 eth_source[6]; /* MAC: who solicits */
	__u8 peer[6];	    /* MAC: whom the answer is to go to */
	__u16 group;
	__u8 reserved[2];
};

/* The one value of `resolver`: what the daemon made of the requests. It alone writes there. */
struct ndp_resolver {
	__u64 asked;	/* neighbours that the kernel was asked to find */
	__u64 answered; /* advertisements, each within its deadline */
	__u64 failed;	/* neighbours that the kernel did not find */
	__u64 refused;	/* requests without a place among those that wait */
};

/* Value of `group_counters`, one per CPU: solicitations that reached a rule of the group. */
struct ndp_group_count {
	__u64 solicited;
	__u64 answered;
	__u64 last_answer; /* jiffies: the one clock that costs no call */
};

/* The one value of `settings`. */
struct ndp_settings {
	__u64 heartbeat;	 /* CLOCK_MONOTONIC ns: the daemon was alive */
	__u64 heartbeat_timeout; /* ns; 0: no dead man's switch */
	/* Each limit has two fields: the ns between two, 0 for no limit, and the ns that one
	 * may run ahead, (burst - 1) intervals.
	 */
	__u64 rate_interval; /* answers to one MAC: one that solicits, or is answered */
	__u64 rate_credit;
	__u64 total_interval; /* answers to all MACs but the gateways' */
	__u64 total_credit;
	__u64 gateway_interval; /* answers to each gateway, instead of these */
	__u64 gateway_credit;
	__u64 resolve_interval; /* requests of one soliciting MAC; 0: nobody reads them */
	__u64 resolve_credit;
	__u64 resolve_total_interval; /* of all but the gateways */
	__u64 resolve_total_credit;
	__u64 resolve_gateway_interval; /* of each gateway, instead of these */
	__u64 resolve_gateway_credit;
	__u64 trace_until;   /* CLOCK_MONOTONIC ns: somebody reads `events`; 0: nobody */
	__u8 link_local[16]; /* the interface's, or :: */
	__u8 mac[6];	     /* the interface's */
	__u8 paused;	     /* 1: answer nothing */
	__u8 solicits;	   /* 1: the daemon solicits gateways from addresses behind this host */
	__u32 l3_ifindex;  /* where the FIB sees it come in: of a port, its bridge's */
	__u32 trace_every; /* of so many solicitations one is traced */
	/* From here on the program reads nothing: the Python side's own memory. */
	__u32 ifindex;
	__u8 reserved1[4];
	__u64 netns; /* inode of the network namespace that ifindex belongs to */
	__u8 mode;   /* enum ndp_mode */
	__u8 left;   /* enum ndp_left_flag */
	__u8 bcc;    /* 1: compiled on this host by bcc, 0: the prebuilt object */
	__u8 reserved[5];
	char steps[256]; /* "mode: why not" for each better mode, a line each, NUL-padded */
};

/* The one value of `explained`: the verdict on the last dry run (see is_dry_run). */
struct ndp_explained {
	__u16 group;
	__u8 reason;  /* enum ndp_reason */
	__u8 matched; /* 1: the fields below and group are the rule's */
	__u8 answer;  /* enum ndp_answer */
	__u8 flags;   /* enum ndp_rule_flag */
	__u8 prefix_len;
	__u8 reserved;
};

/* What a tracer finds in `events`: one solicitation, and what became of it. */
struct ndp_event {
	__u64 time;   /* CLOCK_MONOTONIC ns */
	__u32 length; /* bytes of the frame */
	__u32 kept;   /* bytes of it in `frame` */
	struct ndp_explained verdict;
	__u8 frame[NDP_EVENT_FRAME];
	__u8 reply[86]; /* the advertisement's frame, if the reason is an answer */
	__u8 reserved[2];
};

/* The one value of `tracers`, one per CPU: an event in the making, which is no stack's size. */
struct ndp_tracer {
	__u64 seen; /* solicitations while somebody traced */
	__u64 lost; /* events that `events` had no room for */
	struct ndp_event event;
};

#endif
