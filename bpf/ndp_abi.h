/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ABI between the BPF program and Python: limits, verdicts, flags, and the layouts of all
 * map keys, map values and ring-buffer records.
 *
 * This header is authoritative. ndxdp/kernel/abi.py mirrors it, and tests/test_abi.py compares
 * every struct, enum and map with the BTF of the compiled object. A change that an older program
 * or an older ndxdp would misread takes a new NDP_ABI_VERSION. The version is part of the path
 * of the pins, so that programs of two versions never share a map.
 *
 * Byte order and units:
 *  - Integers are in the host's byte order. No integer here is in network byte order.
 *  - IPv6 addresses (16 bytes) and MACs (6 bytes) are byte arrays in network byte order, as in a
 *    frame.
 *  - Times are nanoseconds of CLOCK_MONOTONIC unless the field says otherwise. Intervals,
 *    credits and timeouts are nanoseconds. Clocks are those of the initial time namespace.
 *  - Strings are UTF-8, padded with NUL bytes.
 *  - Reserved bytes are zero.
 */
#ifndef NDP_ABI_H
#define NDP_ABI_H

#define NDP_ABI_VERSION 8

/* ---- limits --------------------------------------------------------------------------- */

/* Bytes of the longest frame that is taken for a solicitation: 14 of Ethernet and 1500 of IPv6.
 * No stack sends a longer one. The bound keeps the option loop short and the frame in one linear
 * piece of memory.
 */
#define NDP_FRAME_MAX 1514

/* Addresses that an interface can have unless the user asks for another number. */
#define NDP_MAX_ADDRESSES 131072

/* Slots of a bucket. */
#define NDP_BUCKET_SLOTS 3

/* Buckets that may have an address: its first one, and those behind. A table that would need more is
 * replaced by a larger one.
 */
#define NDP_PROBES 16

/* Entries of `prefixes`, which allocates memory only for entries in use. */
#define NDP_MAX_PREFIXES 1048576

/* Words of 64 bits in `hints`: 8 kB, a quarter of the first-level cache of a CPU. The program reads any
 * of them, and needs the rest of the cache for the frames and for the other maps.
 */
#define NDP_HINTS 1024

/* Rule classes of one interface. Their slots are the numbers below. */
#define NDP_MAX_RULE_CLASSES 65536

/* Rule classes whose slots are elements of `groups` and of `group_counters`. The arrays always take
 * the memory of so many classes. `more_classes` and `more_counters` have the others: each is an array
 * whose only element is a hash, which exists once there is such a class.
 */
#define NDP_FIRST_RULE_CLASSES 1024

/* Soliciting MACs in `limiter` and in `requesters`; the least recently used one is replaced. */
#define NDP_MAX_SOLICITORS 8192

/* Entries of `dev_sets`: different sets of output interfaces. The program does not use that map. */
#define NDP_MAX_DEV_SETS 65536

/* Entries of the hash in `vias`: pairs of a set and an output interface in it. */
#define NDP_MAX_DEVS 65536

/* Entries of `locals`: local and anycast routes of the host. */
#define NDP_MAX_LOCALS 65536

/* Entries of `on_link`. The kernel keeps 1024 neighbors unless configured otherwise. */
#define NDP_MAX_ON_LINK 16384

/* Entries of `gateways`: MACs of the link's routers. */
#define NDP_MAX_GATEWAYS 64

/* Entries of `explained`: dry runs whose verdicts nobody has read yet. */
#define NDP_MAX_DRY_RUNS 64

/* Bytes of the ring buffer `events`: about a thousand records. */
#define NDP_EVENTS 262144

/* Bytes of a solicitation that a record of `events` holds. */
#define NDP_EVENT_FRAME 128

/* Bytes of the ring buffer `requests`: about 800 records, more than the daemon lets wait. */
#define NDP_REQUESTS 65536

/* ---- verdicts ------------------------------------------------------------------------- */

/*
 * The reason of a verdict: why a solicitation is answered, or why it is not. Each solicitation
 * has exactly one, the first that applies in this order. The names in lower case, without the
 * prefix, are values of a metric label. The key of `reasons`.
 */
enum ndp_reason {
	NDP_NOT_NS = 0,	       /* not a Neighbor Solicitation; never counted */
	NDP_OTHER_VLAN = 1,    /* tagged for a VLAN, whose own interface has to answer */
	NDP_OWN_FRAME = 2,     /* the Ethernet source is ours: a loop, or our own NS on a hub */
	NDP_OTHER_HOST = 3,    /* the Ethernet destination is not ours, a rule's or a group's */
	NDP_BAD_HOP_LIMIT = 4, /* not 255: the packet crossed a router (RFC 4861 7.1.1) */
	NDP_BAD_CODE = 5,      /* the ICMPv6 code is not 0 */
	NDP_BAD_LENGTH = 6,    /* ICMPv6 length below 24 or outside the frame, or a giant */
	NDP_BAD_OPTION = 7,    /* an option of length 0, overhanging, or a non-Ethernet SLLAO */
	NDP_BAD_CHECKSUM = 8,
	NDP_BAD_TARGET = 9,  /* multicast, unspecified or loopback */
	NDP_BAD_SOURCE = 10, /* multicast, loopback, v4-mapped, or a malformed DAD probe */
	NDP_PAUSED = 11,     /* the user has paused answering */
	NDP_NO_RULE = 12,    /* no rule covers the target */
	NDP_DENIED = 13,     /* the rule says `never`, or the host owns the target */
	NDP_EXPIRED = 14,    /* the rule is dynamic, and the daemon's heartbeat is too old */
	NDP_LAPSED = 15,     /* the rule is leased, and the host's lease has lapsed */
	NDP_NOT_LOCAL = 16, /* `local`: the kernel does not deliver the target's packets here */
	/* For `routed` and `neighbour`: the FIB's result for a packet to the target. */
	NDP_NOT_FORWARDING = 17,    /* the interface's sysctl `forwarding` is 0 */
	NDP_NO_ROUTE = 18,	    /* no route, or a `throw` route and no other */
	NDP_ROUTE_LOCAL = 19,	    /* the packet is for this host itself */
	NDP_ROUTE_BLACKHOLE = 20,   /* a `blackhole` route */
	NDP_ROUTE_UNREACHABLE = 21, /* an `unreachable` route */
	NDP_ROUTE_PROHIBIT = 22,    /* a `prohibit` route */
	NDP_ROUTE_BACK = 23,	    /* the route leaves by the input interface */
	NDP_ROUTE_ELSEWHERE = 24,   /* the rule does not name the route's output interface */
	NDP_ROUTE_ENCAP = 25,	  /* a lightweight tunnel, whose output the FIB does not show */
	NDP_ROUTE_GATEWAY = 26,	  /* `neighbour`: the route has a gateway */
	NDP_NO_NEIGHBOUR = 27,	  /* `neighbour`: the kernel has no live neighbor there */
	NDP_DAD_IGNORED = 28,	  /* a DAD probe, and the rule does not defend */
	NDP_DAD_ON_LINK = 29,	  /* a DAD probe, and a node of this link may own the target */
	NDP_RATE_LIMITED = 30,	  /* over a limit; the only reason to drop the frame */
	NDP_GATEWAY_LIMITED = 31, /* a gateway is over its limit; the frame is passed */
	NDP_RESIZE_FAILED = 32,	  /* the driver has no room for the answer's 86 bytes */
	NDP_SEND_FAILED = 33,	  /* userspace mode: the socket refused the answer */
	NDP_ANSWERED = 34,	  /* this reason and all higher ones are answers */
	NDP_ANSWERED_DAD = 35,	  /* a DAD probe was answered */
	NDP_REASON_MAX = 36,
};

/* When a rule answers. */
enum ndp_answer {
	NDP_NEVER = 0,
	NDP_ALWAYS = 1,
	NDP_ROUTED = 2,	   /* if the kernel would forward a packet to the target */
	NDP_NEIGHBOUR = 3, /* as NDP_ROUTED, and the target is a live neighbor there */
	NDP_LOCAL = 4,	   /* if the kernel delivers packets for the target to this host */
};

/* ---- rules ---------------------------------------------------------------------------- */

/* The IPv6 source address of the advertisement. */
enum ndp_na_source {
	NDP_SOURCE_TARGET = 0,
	NDP_SOURCE_LINK_LOCAL = 1, /* the interface's; the target while it has none */
	NDP_SOURCE_ADDRESS = 2,	   /* ndp_rule_class.address */
};

/* Bits of ndp_rule_class.flags. */
enum ndp_rule_class_flag {
	NDP_CLASS_ROUTER = 1,	/* set R in the advertisement: the answering host forwards */
	NDP_CLASS_OVERRIDE = 2, /* set O in the advertisement */
	NDP_CLASS_DEFEND = 4,	/* answer Duplicate Address Detection */
	NDP_CLASS_LLADDR = 8,	/* advertise ndp_rule_class.lladdr, not the interface's MAC */
	NDP_CLASS_DYNAMIC = 16, /* stop answering when the daemon's heartbeat is too old */
	NDP_CLASS_DEV = 32,	/* only routes count that leave by an interface of dev_set */
	NDP_CLASS_LEASED = 64,	/* stop answering when the host's lease has lapsed */
};

/* Bits of ndp_rule.flags. */
enum ndp_rule_flag {
	NDP_RULE_OWNED = 1,   /* the host or a gateway owns the address: never answer for it */
	NDP_RULE_PRESENT = 2, /* every rule has it, so that none is zero */
};

/* Key of `prefixes`. */
struct ndp_prefix {
	__u32 length;	  /* bits, 0 to 127 */
	__u8 address[16]; /* network order; host bits are zero */
};

/* Value of `prefixes`. The rule of a single address has the first four bytes. */
struct ndp_rule {
	__u16 rule_class; /* slot of the rule class */
	__u8 answer;	  /* enum ndp_answer */
	__u8 flags;	  /* enum ndp_rule_flag */
	__u8 prefix_len;  /* bits, 0 to 128; a trie lookup does not return the key */
	__u8 reserved[3];
};

/*
 * The only element of `addresses` is a table: an array that has a struct ndp_address_table, and then
 * a struct ndp_bucket in each further element. It is a hash table in which an address and its rule are
 * in one cache line of a CPU. A writer changes it in shared memory.
 *
 * An address is in the first bucket with a free slot, counted from the bucket that ndp_bucket_of()
 * returns. No entry ever moves. One process writes at a time: first `passed` of the full buckets,
 * then the address, and last the rule, a single word that makes the entry valid. To remove an entry
 * takes the steps in the other order. So the program finds each address before, during and after
 * a change of any other one. Between processors that reorder (arm64), a rule may be seen for
 * nanoseconds before its address, beside the address that the slot had earlier.
 *
 * A table keeps its size. For more addresses, a writer fills a larger table with the entries of the
 * present one, and then replaces that. The program finds each address in both.
 */
struct ndp_address_table {
	__u64 seed[5]; /* random, less than 2^63 */
	__u32 buckets; /* those that ndp_bucket_of() returns; 0: the table was not initialised */
	/* The program does not read the fields from here on: they are Python's own. */
	__u32 max_addresses; /* the user's limit, be the table as large or not */
	__u32 used;	     /* slots; a writer that was killed leaves a larger number */
	__u32 reserved[3];
};

/* One cache line. */
struct ndp_bucket {
	__u8 addresses[NDP_BUCKET_SLOTS]
		      [16];	       /* IPv6, network order; valid where the rule is not 0 */
	__u32 rules[NDP_BUCKET_SLOTS]; /* the first four bytes of a struct ndp_rule; 0: free */
	__u32 passed; /* at least the number of addresses that are in a later bucket than this */
};

/*
 * Return the element of a table in which an address is looked for first. A random seed makes
 * this a universal hash (multilinear, by pairs), so nobody can choose addresses that share a
 * bucket. `words` is the address as it lies in memory.
 */
static inline __attribute__((always_inline)) __u32
ndp_bucket_of(const __u32 *words, const struct ndp_address_table *table)
{
	const __u64 *seed = table->seed;
	__u64 hash = seed[0] + (words[0] + seed[1]) * (words[1] + seed[2]) +
		     (words[2] + seed[3]) * (words[3] + seed[4]);

	return 1 + ((hash >> 32) * table->buckets >> 32);
}

/*
 * Return the number of an address's bit in `hints`. A bit that is zero means that `addresses`
 * has no entry for the address, which saves the lookup. The writer sets the bit before the
 * address gets its entry; no bit is ever cleared. `words` is the address as it lies in memory.
 */
static inline __attribute__((always_inline)) __u32 ndp_hint(const __u32 *words)
{
	/* Odd constants of well-known integer hashes (murmur3, xxhash). */
	__u32 hash = words[0] * 0x85ebca6b ^ words[1] * 0xc2b2ae35 ^ words[2] * 0x27d4eb2f ^
		     words[3] * 0x9e3779b1;

	return hash >> 16; /* 16 bits: NDP_HINTS words of 64 bits */
}

/* Value of `groups` and of the hash in `more_classes`: a rule class, which is the rules that share a
 * profile and a counter.
 */
struct ndp_rule_class {
	__u8 na_source;	  /* enum ndp_na_source */
	__u8 flags;	  /* enum ndp_rule_class_flag */
	__u8 lladdr[6];	  /* MAC, network order; only with NDP_CLASS_LLADDR */
	__u8 address[16]; /* IPv6, network order; only with NDP_SOURCE_ADDRESS */
	__u32 dev_set;	  /* key of `dev_sets`; only with NDP_CLASS_DEV */
	/* The program does not read the fields from here on: they are Python's own. */
	char origin[16]; /* who wrote the rules; empty for a free slot */
	char label[48];	 /* the configured prefix or list */
};

/* Value of `dev_sets`: output interfaces, by which several rule classes may choose routes. */
struct ndp_dev_set {
	char patterns[128]; /* of interface names, separated by spaces */
};

/* Key of the hash in `vias`, whose value is 1: an output interface that a pattern of the set
 * matches.
 */
struct ndp_dev {
	__u32 dev_set; /* key of `dev_sets` */
	__u32 ifindex;
};

/* Value of `group_counters` and of the hash in `more_counters`, one per CPU: solicitations whose
 * target a rule of the class has.
 */
struct ndp_class_count {
	__u64 solicited;   /* solicitations */
	__u64 answered;	   /* solicitations */
	__u64 last_answer; /* jiffies, which the program reads without a call */
};

/* ---- the lease ------------------------------------------------------------------------ */

/*
 * The only value of `lease`: the time up to which this host may answer for addresses that exactly
 * one of several hosts answers for. Only the daemon writes it. The program compares it with the
 * clock for each solicitation, so that a daemon that is stopped or cut off cannot keep another host
 * from taking over. The clock is CLOCK_BOOTTIME: a lease goes on lapsing while the host is
 * suspended, which CLOCK_MONOTONIC does not count.
 */
struct ndp_lease {
	__u64 until; /* ns of CLOCK_BOOTTIME; 0: leased rules do not answer */
};

/* ---- limits on answers and requests --------------------------------------------------- */

/*
 * Two token buckets, each as one time: its tokens are spent up to then. Value of `gateways`,
 * whose key is a MAC followed by two zero bytes; and the only value of `shares`, for all other
 * soliciting nodes together.
 */
struct ndp_share {
	__u64 answers;	/* ns */
	__u64 requests; /* ns */
};

/* ---- resolution by the daemon --------------------------------------------------------- */

/* Record of `requests`: a solicitation whose target the kernel does not know as a neighbor. */
struct ndp_request {
	__u64 time;	    /* ns; when the solicitation arrived */
	__u8 source[16];    /* IPv6 source of the solicitation, network order */
	__u8 target[16];    /* IPv6 address to resolve, network order */
	__u8 eth_source[6]; /* MAC, network order; Ethernet source of the solicitation */
	__u8 peer[6];	    /* MAC, network order; destination of the answer */
	__u16 rule_class;   /* slot of the rule class */
	__u8 reserved[2];
};

/* The only value of `resolver`: results of requests. Only the daemon writes here. */
struct ndp_resolver {
	__u64 asked;	/* neighbors that the kernel was asked to resolve */
	__u64 answered; /* advertisements, each within its deadline */
	__u64 failed;	/* neighbors that the kernel did not resolve */
	__u64 refused;	/* requests for which the daemon's queue had no room */
};

/* ---- settings of the interface -------------------------------------------------------- */

/* How the program is attached. */
enum ndp_mode {
	NDP_MODE_NATIVE = 1,	/* XDP in the driver */
	NDP_MODE_GENERIC = 2,	/* XDP in the network stack */
	NDP_MODE_TC = 3,	/* tc ingress */
	NDP_MODE_USERSPACE = 4, /* no program: a process answers, and the maps are files */
};

/* Bits of ndp_settings.restore: what `detach` has to restore. */
enum ndp_restore_flag {
	NDP_RESTORE_ALLMULTI = 1,      /* attach set allmulti: clear it */
	NDP_RESTORE_CLSACT = 2,	       /* attach created the clsact qdisc: delete it */
	NDP_RESTORE_NETLINK = 4,       /* attached by netlink, not by a BPF link */
	NDP_RESTORE_RUN = 8,	       /* attached only while a process runs */
	NDP_RESTORE_MCAST_ROUTER = 16, /* attach set the bridge's mcast_router to 2: set 1 */
};

/* The only value of `settings`. */
struct ndp_settings {
	__u64 heartbeat;	 /* ns; when the daemon last reported that it is alive */
	__u64 heartbeat_timeout; /* ns; 0: dynamic rules never expire */
	/* Each limit is a pair. `interval`: ns between two answers or requests, 0 for no limit.
	 * `credit`: ns by which a sender may be early, (burst - 1) intervals. The program reads
	 * the six fields of answers, and those of requests, as a struct limits.
	 */
	__u64 rate_interval; /* answers: per soliciting and per answered MAC */
	__u64 rate_credit;
	__u64 total_interval; /* answers: all MACs together, without gateways */
	__u64 total_credit;
	__u64 gateway_interval; /* answers: per gateway, in place of the other two */
	__u64 gateway_credit;
	__u64 resolve_interval; /* requests: as rate_interval; 0: send no requests */
	__u64 resolve_credit;
	__u64 resolve_total_interval; /* requests: as total_interval */
	__u64 resolve_total_credit;
	__u64 resolve_gateway_interval; /* requests: as gateway_interval */
	__u64 resolve_gateway_credit;
	__u64 trace_until;   /* ns; until then solicitations are traced; 0: tracing is off */
	__u8 link_local[16]; /* IPv6, network order; the interface's, or :: */
	__u8 mac[6];	     /* MAC, network order; the interface's */
	__u8 paused;	     /* 1: answer nothing */
	__u8 solicits;	   /* 1: the daemon solicits gateways from addresses behind this host */
	__u32 l3_ifindex;  /* the FIB's input interface; for a bridge port, the bridge */
	__u32 trace_every; /* trace one of this many solicitations */
	/* The program does not read the fields from here on: they are Python's own. */
	__u32 ifindex;
	__u8 reserved1[4];
	__u64 netns;  /* inode of the network namespace in which ifindex counts */
	__u8 mode;    /* enum ndp_mode */
	__u8 restore; /* enum ndp_restore_flag */
	__u8 bcc;     /* 1: compiled on this host by bcc; 0: the prebuilt object */
	__u8 reserved[5];
	char refusals[256]; /* "mode: reason\n" for each better mode that is unavailable */
};

/* ---- tracing and explaining ----------------------------------------------------------- */

/*
 * Value of `explained`: the verdict of a dry run. The key is the frame's 32 bits behind the
 * EtherType: in a solicitation the IPv6 version, the traffic class and the flow label, which the
 * program does not read otherwise. The reader chooses them at random, so that the verdict is that of
 * its own run, and then removes the entry.
 */
struct ndp_explained {
	__u16 rule_class; /* slot of the rule class */
	__u8 reason;	  /* enum ndp_reason */
	__u8 matched; /* 1: a rule matched, and rule_class and the next fields are the rule's */
	__u8 answer;  /* enum ndp_answer */
	__u8 flags;   /* enum ndp_rule_flag */
	__u8 prefix_len; /* bits, 0 to 128 */
	__u8 reserved;
};

/* Record of `events`: a traced solicitation and its verdict. */
struct ndp_event {
	__u64 time;	/* ns; when the program judged the solicitation */
	__u32 length;	/* bytes of the frame */
	__u32 captured; /* bytes of the frame that `frame` holds */
	struct ndp_explained verdict;
	__u8 frame[NDP_EVENT_FRAME]; /* the solicitation's frame, from its Ethernet header on */
	__u8 reply[86]; /* the advertisement's frame, if the verdict is an answer */
	__u8 reserved[2];
};

/* The only value of `tracers`, one per CPU: here the program builds the record, which would take
 * too much of its stack.
 */
struct ndp_tracer {
	__u64 seen; /* solicitations while tracing was on */
	__u64 lost; /* records for which `events` had no room */
	struct ndp_event event;
};

#endif
