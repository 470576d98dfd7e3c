// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Answers IPv6 Neighbor Solicitations for addresses that live behind this host.
 *
 * Read it top to bottom: the maps (the frame's layout is in ndp_frame.h), then
 *
 *     is_solicitation -> validate -> decide -> advertise -> count
 *
 * once, for both entry points: ndp_xdp (native and generic XDP) and ndp_tc (clsact or tcx
 * ingress). Section numbers are RFC 4861's unless they say otherwise. A frame that is not
 * answered goes on to the kernel as it came; the one drop is the rate limit's.
 *
 * ndxdp/ndp/responder.py says the same in Python; the tests hold the two together, byte for byte.
 */
#include "dialect.h"
#include "ndp_abi.h"
#include "ndp_frame.h"

/* ---- the maps ------------------------------------------------------------------------- */

/* Exact addresses in a hash: a trie would walk a node per differing bit for each of them. */
DEFINE_MAP(addresses, BPF_MAP_TYPE_HASH, struct address, struct ndp_rule, NDP_MAX_ADDRESSES,
	   BPF_F_NO_PREALLOC);
DEFINE_MAP(hints, BPF_MAP_TYPE_ARRAY, __u32, __u64, NDP_HINTS, 0);
DEFINE_MAP(prefixes, BPF_MAP_TYPE_LPM_TRIE, struct ndp_prefix, struct ndp_rule,
	   NDP_MAX_PREFIXES, BPF_F_NO_PREALLOC);
DEFINE_MAP(groups, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_group, NDP_MAX_GROUPS, 0);
DEFINE_MAP(group_counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ndp_group_count,
	   NDP_MAX_GROUPS, 0);
DEFINE_MAP(reasons, BPF_MAP_TYPE_PERCPU_ARRAY, enum ndp_reason, __u64, NDP_REASON_MAX, 0);
DEFINE_MAP(settings, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_settings, 1, 0);
/* MAC -> the time up to which its answers, or its requests, are paid for. */
DEFINE_MAP(limiter, BPF_MAP_TYPE_LRU_HASH, __u64, __u64, NDP_MAX_SOLICITORS, 0);
DEFINE_MAP(requesters, BPF_MAP_TYPE_LRU_HASH, __u64, __u64, NDP_MAX_SOLICITORS, 0);
/* Gateways by MAC, each with a share of its own; and the share of everybody else. */
DEFINE_MAP(gateways, BPF_MAP_TYPE_HASH, __u64, struct ndp_share, NDP_MAX_GATEWAYS,
	   BPF_F_NO_PREALLOC);
DEFINE_MAP(shares, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_share, 1, 0);
DEFINE_RING(requests, NDP_REQUESTS);
DEFINE_MAP(resolver, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_resolver, 1, 0);
DEFINE_MAP(vias, BPF_MAP_TYPE_HASH, struct ndp_via, __u8, NDP_MAX_VIAS, BPF_F_NO_PREALLOC);
/* The host's local and anycast routes, which the FIB does not tell from no route. */
DEFINE_MAP(locals, BPF_MAP_TYPE_LPM_TRIE, struct ndp_prefix, __u8, NDP_MAX_LOCALS,
	   BPF_F_NO_PREALLOC);
/* Live neighbours of the host on this very link, which the FIB shows only where a route leads. */
DEFINE_MAP(on_link, BPF_MAP_TYPE_HASH, struct address, __u8, NDP_MAX_ON_LINK,
	   BPF_F_NO_PREALLOC);
DEFINE_RING(events, NDP_EVENTS);
DEFINE_MAP(tracers, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ndp_tracer, 1, 0);
DEFINE_MAP(explained, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_explained, 1, 0);

/* ---- one solicitation ----------------------------------------------------------------- */

/* What the decision and the answer need, copied out before the frame is resized. */
struct solicitation {
	struct address source;
	__u32 dad;   /* the source is unspecified */
	__u32 whole; /* 128: with the target, which lies right behind, the key of a trie */
	struct address target;
	__u64 eth_source; /* MAC: whose rate is limited */
	__u64 peer;	  /* MAC: whom the answer goes to, the SLLAO or the Ethernet source */
	__u64 source_sum; /* sum_address() of both: the answer's checksum is made of them, too */
	__u64 target_sum;
	__u64 dry_run;
};

/* 1 for zero, 0 for anything below 2^63. The compiler must not see through it: it would branch. */
static __always_inline __u64 is_zero(__u64 x)
{
	asm volatile("" : "+r"(x));
	return (x - 1) >> 63;
}

/* Why there is no answer. Without the asm the compiler would write a reason down before each check,
 * for the case that it fails.
 */
static __always_inline enum ndp_reason because(enum ndp_reason reason)
{
	asm volatile("");
	return reason;
}

static __always_inline __u64 own_mac(const struct ndp_settings *config)
{
	_Static_assert(__builtin_offsetof(struct ndp_settings, mac) % 8 == 0, "a head_mac");
	return head_mac((const void *)config->mac);
}

/* Every frame of the interface comes through here, so the likeliest difference is asked first. An
 * extension header in the way makes it "not a solicitation", as does a frame that ends before the
 * ICMPv6 header does.
 */
static __always_inline int is_solicitation(const void *data, const void *end)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct icmpv6 *icmp = (const void *)(ip6 + 1);

	if ((const void *)(icmp + 1) > end)
		return 0;
	return eth->src.after == net16(ETHERTYPE_IPV6) && ip6->next_header == PROTOCOL_ICMPV6 &&
	       icmp->type == TYPE_NS &&
	       (ip6->version_class_flow & net32(0xf0000000)) == net32(0x60000000);
}

/* Recognize a solicitation behind a VLAN tag that is part of the frame. */
static __always_inline int is_tagged_solicitation(const void *data, const void *end)
{
	const struct vlan_tag *tag = data + sizeof(struct eth_macs);
	const __be16 *ethertype = (const void *)(tag + 1);
	const struct ipv6 *ip6 = (const void *)(ethertype + 1);
	const struct icmpv6 *icmp = (const void *)(ip6 + 1);

	if ((const void *)(icmp + 1) > end)
		return 0;
	return (tag->type == net16(ETHERTYPE_8021Q) || tag->type == net16(ETHERTYPE_8021AD)) &&
	       *ethertype == net16(ETHERTYPE_IPV6) && ip6->next_header == PROTOCOL_ICMPV6 &&
	       icmp->type == TYPE_NS &&
	       (ip6->version_class_flow & net32(0xf0000000)) == net32(0x60000000);
}

/* The most specific rule: an exact address beats any prefix. Most targets that a prefix covers have
 * no rule of their own, which `hints` knows in a tenth of the time that a hash takes to say so.
 */
static __always_inline const struct ndp_rule *match(const struct solicitation *ns)
{
	__u32 hint = ndp_hint(ns->target.w), word = hint / 64;
	const __u64 *bits = map_lookup(MAP(hints), &word);
	const struct ndp_rule *rule = 0;

	if (bits && *bits >> hint % 64 & 1)
		rule = map_lookup(MAP(addresses), &ns->target);
	return rule ? rule : map_lookup(MAP(prefixes), &ns->whole);
}

static __always_inline const struct ndp_group *group_of(const struct ndp_rule *rule)
{
	__u32 slot;

	if (!rule)
		return 0;
	slot = rule->group;
	return map_lookup(MAP(groups), &slot);
}

/* Recognize a gateway's answer to a solicitation that ndxdp sent from an address behind this host, to
 * care for the gateway or to announce the address. The node that has the address never solicits on
 * this link. The kernel would forward the answer, which is void then, as its hop limit is no longer
 * 255; it would send an error to a link-local gateway instead; or, without a route of its own, it
 * would send the answer back and forth. So the caller marks the frame as one that this host does not
 * forward. Packet sockets receive it all the same.
 */
static __always_inline int is_gateway_answer(const void *data, const void *end, __u32 ifindex)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct neighbor *msg = (const void *)(ip6 + 1);
	const struct ndp_settings *config;
	const struct ndp_rule *rule;
	struct solicitation to;
	struct tail_mac own;
	__u32 zero = 0;

	if ((const void *)(msg + 1) > end)
		return 0;
	if (eth->src.after != net16(ETHERTYPE_IPV6) || ip6->next_header != PROTOCOL_ICMPV6 ||
	    msg->icmp.type != TYPE_NA || ip6->hop_limit != 255 ||
	    !(msg->flags & net32(FLAG_SOLICITED)))
		return 0;
	config = map_lookup(MAP(settings), &zero);
	/* A bridge would take a port's frame for one to flood. */
	if (!config || !config->solicits || config->l3_ifindex != ifindex)
		return 0;
	own = mac_tail(0, own_mac(config));
	if (eth->dst.mac_first != own.mac_first || eth->dst.mac_rest != own.mac_rest)
		return 0;
	to.whole = 128;
	to.target = ip6->dst;
	rule = match(&to);
	if (!rule || rule->answer == NDP_NEVER || rule->flags & NDP_RULE_HELD)
		return 0;
	return !map_lookup(MAP(locals), &to.whole);
}

/* Find out whether the frame is for the MAC that the target's rule advertises. A neighbor that has
 * cached that MAC probes it (7.3.3), so for this target it is ours like the interface's own.
 */
static __always_inline int is_for_advertised_mac(const struct ethernet *eth,
						 const struct neighbor *msg, const void *end,
						 struct solicitation *ns)
{
	const struct ndp_group *group;
	const struct tail_mac *lladdr;

	if (eth->dst.mac_first & net16(0x0100) || (const void *)(msg + 1) > end)
		return 0;
	ns->target = msg->target;
	group = group_of(match(ns));
	if (!group || !(group->flags & NDP_GROUP_LLADDR))
		return 0;
	lladdr = (const void *)group;
	return eth->dst.mac_first == lladdr->mac_first && eth->dst.mac_rest == lladdr->mac_rest;
}

/* 7.1.1 whole, and what Ethernet asks before it. `frame_len` counts what of the frame lies
 * outside of its linear part, too. `ns` is filled on NDP_NOT_NS, which here means that nothing
 * speaks against an answer; the caller has seen is_solicitation().
 */
static __always_inline enum ndp_reason validate(const void *data, const void *end,
						__u64 frame_len,
						const struct ndp_settings *config,
						struct solicitation *ns)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct neighbor *msg = (const void *)(ip6 + 1);
	const struct lladdr_option *first = (const void *)(msg + 1);
	const void *cursor = first;
	struct tail_mac own = mac_tail(0, own_mac(config));
	__u64 sum, peer, left = 0, sllao = 0, bad = 0;
	__u64 length, units, not_group, i;

	if ((const void *)((const struct icmpv6 *)msg + 1) > end)
		return NDP_BAD_LENGTH; /* never: it tells the verifier what the caller knows */
	peer = head_mac(&eth->src);
	if (peer == own_mac(config))
		return because(NDP_OWN_FRAME);
	/* A group's MAC is 33:33 and the end of its address (RFC 2464 7). */
	if (!(eth->dst.mac_first == net16(0x3333) && eth->dst.mac_rest == ip6->dst.w[3] &&
	      is_multicast(&ip6->dst)) &&
	    !(eth->dst.mac_first == own.mac_first && eth->dst.mac_rest == own.mac_rest) &&
	    !is_for_advertised_mac(eth, msg, end, ns))
		return because(NDP_OTHER_HOST);
	if (ip6->hop_limit != 255)
		return because(NDP_BAD_HOP_LIMIT);
	if (msg->icmp.code != 0)
		return because(NDP_BAD_CODE);

	/* The length is the IPv6 header's word: what follows it in the frame is padding. */
	length = net16(ip6->payload_len);
	if (length < sizeof(*msg) || frame_len > NDP_FRAME_MAX ||
	    NS_LEN - sizeof(*msg) + length > frame_len || (const void *)(msg + 1) > end)
		return because(NDP_BAD_LENGTH);

	/* Pseudo-header (RFC 8200 8.1) and message, then the options along with their walk. */
	ns->source_sum = sum_address(&ip6->src);
	ns->target_sum = sum_address(&msg->target);
	sum = ns->source_sum + sum_address(&ip6->dst);
	sum += (__u64)net32(length) + net32(PROTOCOL_ICMPV6);
	sum += *(const __u32 *)&msg->icmp;
	sum += msg->flags + ns->target_sum;

	/* Copied before the options are walked: past the loop no pointer into the frame is
	 * alive, so that the verifier sees the rest of the program once and not once for each
	 * length.
	 */
	ns->source = ip6->src;
	ns->target = msg->target;
	ns->eth_source = peer;
	not_group = not_solicited_node_group(&ip6->dst, &ns->target);

	units = (length - sizeof(*msg)) / 8;
	i = 0;
	/* What nearly every stack sends is one option, an SLLAO, and needs no walk. */
	if (units == 1 && (const void *)(first + 1) <= end &&
	    first->mac.before == net16(OPTION_SLLAO << 8 | 1)) {
		peer = tail_mac(&first->mac);
		sum += (__u64)first->mac.halves[0] + first->mac.halves[1];
		sllao = i = 1;
	}
	/* One step for 8 bytes, without a branch on what they hold: each would double the paths
	 * that the verifier has to walk, and make minutes of its milliseconds. `left` is what
	 * the option under the cursor still has.
	 */
	for (; i < UNITS_MAX; i++) {
		const struct lladdr_option *option = cursor;
		__u64 begins, is_sllao;

		if (i >= units || (const void *)(option + 1) > end)
			break;
		begins = is_zero(left);
		left |= -begins & option->len;
		bad |= is_zero(left);
		/* Of several SLLAOs the first counts, and no other is looked at, as in Linux. */
		is_sllao = begins & is_zero(option->type ^ OPTION_SLLAO) & ~sllao;
		/* 4.6.1: one unit on Ethernet; another size names no Ethernet address. */
		bad |= is_sllao & ~is_zero(left ^ 1);
		peer ^= (peer ^ tail_mac(&option->mac)) & -is_sllao;
		sllao |= is_sllao;
		sum += (__u64)option->mac.halves[0] + option->mac.halves[1];
		left--;
		cursor += 8;
		/* Or the compiler adds i * 8 to a pointer, which takes CAP_PERFMON. */
		asm volatile("" : "+r"(cursor));
	}
	if (i < units) /* the rest of it lies in another piece of memory */
		return because(NDP_BAD_LENGTH);
	if (bad | left | length % 8)
		return because(NDP_BAD_OPTION);
	if (fold(sum) != 0xffff)
		return because(NDP_BAD_CHECKSUM);

	if (is_multicast(&ns->target) || is_unspecified(&ns->target) ||
	    is_loopback(&ns->target))
		return because(NDP_BAD_TARGET);
	ns->dad = is_unspecified(&ns->source);
	/* Linux drops what comes from the last two (ip6_rcv_core()). */
	if (is_multicast(&ns->source) || is_loopback(&ns->source) ||
	    is_v4_mapped(&ns->source) || (ns->dad && (sllao || not_group)))
		return because(NDP_BAD_SOURCE);
	ns->peer = peer;
	return NDP_NOT_NS;
}

/* ---- the decision --------------------------------------------------------------------- */

struct limit {
	__u64 interval; /* ns between two; 0: no limit */
	__u64 credit;	/* ns that one may run ahead */
};

/* A token bucket as one number, the time up to which its tokens are paid for (GCRA). Returns that
 * time with one token more, 0 if the bucket is empty.
 */
static __always_inline __u64 with_one_more(__u64 paid, __u64 now, const struct limit limit)
{
	__u64 debt = paid > now ? paid - now : 0;

	/* More than the present limit can run up was owed under another one: forgiven. */
	if (debt > limit.credit + limit.interval)
		debt = 0;
	return debt > limit.credit ? 0 : now + debt + limit.interval;
}

/* Charge one answer, or one request, to `share` by the limit `all`; and by the limit `each` to the
 * buckets of both the MAC that solicits and the one that is answered: anybody can forge the first
 * to have others send frames to the second. Returns 0, with nothing charged, if any is empty. Two
 * CPUs may read a bucket at once and let one too many through; none is lost by that.
 */
static __always_inline int pay(const struct solicitation *ns, __u64 *share,
			       const struct limit all, void *buckets, const struct limit each)
{
	__u64 now = ktime_get_ns(), shared = 0, source, peer;
	__u64 *by_source, *by_peer;

	if (all.interval) {
		shared = with_one_more(*share, now, all);
		if (!shared)
			return 0;
	}
	if (each.interval) {
		by_source = map_lookup(buckets, &ns->eth_source);
		by_peer = map_lookup(buckets, &ns->peer);
		source = with_one_more(by_source ? *by_source : now, now, each);
		peer = with_one_more(by_peer ? *by_peer : now, now, each);
		if (!source || !peer)
			return 0;
		if (ns->dry_run)
			return 1;
		if (by_source)
			*by_source = source;
		else
			map_update(buckets, &ns->eth_source, &source, BPF_ANY);
		if (ns->peer != ns->eth_source) {
			if (by_peer)
				*by_peer = peer;
			else
				map_update(buckets, &ns->peer, &peer, BPF_ANY);
		}
	}
	if (shared && !ns->dry_run)
		*share = shared;
	return 1;
}

/* Find the share that an answer, or a request, is charged to, and whether that is a gateway's. Who
 * takes a gateway's MAC to have somebody else answered gets no part of the gateway's.
 */
static __always_inline struct ndp_share *share_of(const struct solicitation *ns,
						  int *is_gateway)
{
	struct ndp_share *share = 0;
	__u32 zero = 0;

	if (ns->peer == ns->eth_source)
		share = map_lookup(MAP(gateways), &ns->peer);
	*is_gateway = share != 0;
	return share ? share : map_lookup(MAP(shares), &zero);
}

static __always_inline enum ndp_reason over_rate(const struct solicitation *ns,
						 const struct ndp_settings *config)
{
	struct limit all = {config->total_interval, config->total_credit};
	struct limit each = {config->rate_interval, config->rate_credit};
	int is_gateway;
	struct ndp_share *share = share_of(ns, &is_gateway);

	if (is_gateway) {
		all.interval = config->gateway_interval;
		all.credit = config->gateway_credit;
		each.interval = 0;
	}
	if (!share || pay(ns, &share->answers, all, MAP(limiter), each))
		return NDP_NOT_NS;
	return is_gateway ? NDP_GATEWAY_LIMITED : NDP_RATE_LIMITED;
}

static __always_inline int may_request(const struct solicitation *ns,
				       const struct ndp_settings *config)
{
	struct limit all = {config->resolve_total_interval, config->resolve_total_credit};
	struct limit each = {config->resolve_interval, config->resolve_credit};
	int is_gateway;
	struct ndp_share *share = share_of(ns, &is_gateway);

	if (is_gateway) {
		all.interval = config->resolve_gateway_interval;
		all.credit = config->resolve_gateway_credit;
		each.interval = 0;
	}
	return share && pay(ns, &share->requests, all, MAP(requesters), each);
}

/* Ask the daemon to have the neighbour found. RFC 6583: who scans a prefix must not fill the
 * neighbour table, so that each soliciting MAC, and all together, may ask so often and not more.
 */
static __always_inline void request(const struct solicitation *ns,
				    const struct ndp_settings *config,
				    const struct ndp_rule *rule)
{
	struct ndp_request *wanted;

	if (ns->dry_run || !config->resolve_interval || !may_request(ns, config))
		return;
	wanted = ringbuf_reserve(MAP(requests), sizeof(*wanted), 0);
	if (!wanted)
		return;
	wanted->time = ktime_get_ns();
	*(struct address *)wanted->source = ns->source;
	*(struct address *)wanted->target = ns->target;
	__builtin_memcpy(wanted->eth_source, &ns->eth_source, sizeof(wanted->eth_source));
	__builtin_memcpy(wanted->peer, &ns->peer, sizeof(wanted->peer));
	wanted->group = rule->group;
	*(__u16 *)wanted->reserved = 0;
	ringbuf_submit(wanted, 0);
}

/* Ask what the kernel would do with a packet for the target that came in here, from the unspecified
 * address: it forwards none from a link-local one, which most solicitations have. NDP_NOT_NS
 * means that it would forward it; for `neighbour`, and where `routed` defends against DAD, to a
 * neighbour that it has: on a router that has one prefix on both sides, a route proves nothing.
 */
static __always_inline enum ndp_reason forwarding(void *ctx, const struct solicitation *ns,
						  const struct ndp_settings *config,
						  const struct ndp_rule *rule,
						  const struct ndp_group *group, __u32 defends)
{
	/* Aligned as an address is. */
	struct bpf_fib_lookup fib __attribute__((aligned(8))) = {.family = FAMILY_INET6};
	struct address *next_hop = (struct address *)fib.ipv6_dst;
	struct ndp_via via = {.group = rule->group};
	long found;

	fib.ifindex = config->l3_ifindex;
	*next_hop = ns->target;
	found = fib_lookup(ctx, &fib, sizeof(fib), 0);
	switch (found) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
		return NDP_ROUTE_BLACKHOLE;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
		return NDP_ROUTE_UNREACHABLE;
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return NDP_ROUTE_PROHIBIT;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return NDP_NOT_FORWARDING;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return NDP_ROUTE_ENCAP;
	default:
		return map_lookup(MAP(locals), &ns->whole) ? NDP_ROUTE_LOCAL : NDP_NO_ROUTE;
	}
	if (fib.ifindex == config->l3_ifindex)
		return NDP_ROUTE_BACK;
	via.ifindex = fib.ifindex;
	if (group->flags & NDP_GROUP_VIA && !map_lookup(MAP(vias), &via))
		return NDP_ROUTE_ELSEWHERE;
	if (rule->answer == NDP_ALWAYS || (rule->answer == NDP_ROUTED && !defends))
		return NDP_NOT_NS;
	if (!same_address(next_hop, &ns->target))
		return NDP_ROUTE_GATEWAY;
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH) {
		request(ns, config, rule);
		return NDP_NO_NEIGHBOUR;
	}
	return NDP_NOT_NS;
}

/* Find out, from the result of forwarding(), whether a node of this link may have the target. An
 * `always` rule must not defend it against DAD then: it would keep the node from its own address.
 */
static __always_inline enum ndp_reason may_be_on_link(enum ndp_reason forwards,
						      const struct solicitation *ns,
						      const struct ndp_rule *rule)
{
	if (forwards == NDP_ROUTE_BACK)
		return because(NDP_DAD_ON_LINK);
	/* Without forwarding the FIB does not say where a route leads. */
	if (forwards == NDP_NOT_FORWARDING && !map_lookup(MAP(locals), &ns->whole))
		return forwards;
	/* Every link has all of fe80::/10, so that only a rule for the address itself means it. */
	if (is_link_local(&ns->target) && rule->prefix_len < 128)
		return because(NDP_DAD_ON_LINK);
	return NDP_NOT_NS;
}

/* Ask the kernel's tables, for a rule that depends on them, and before DAD is defended. */
static __always_inline enum ndp_reason ask_tables(void *ctx, const struct solicitation *ns,
						  const struct ndp_settings *config,
						  const struct ndp_rule *rule,
						  const struct ndp_group *group)
{
	__u32 defends = ns->dad && group->flags & NDP_GROUP_DEFEND;
	enum ndp_reason reason;

	if (rule->answer == NDP_LOCAL) {
		if (!map_lookup(MAP(locals), &ns->whole))
			return because(NDP_NOT_LOCAL);
	} else if (rule->answer != NDP_ALWAYS || defends) {
		reason = forwarding(ctx, ns, config, rule, group, defends);
		if (rule->answer == NDP_ALWAYS)
			reason = may_be_on_link(reason, ns, rule);
		if (reason != NDP_NOT_NS)
			return reason;
	}
	if (ns->dad && !defends)
		return because(NDP_DAD_IGNORED);
	if (defends && map_lookup(MAP(on_link), &ns->target))
		return because(NDP_DAD_ON_LINK);
	return NDP_NOT_NS;
}

static __always_inline enum ndp_reason decide(void *ctx, const struct solicitation *ns,
					      const struct ndp_settings *config,
					      const struct ndp_rule *rule,
					      const struct ndp_group *group)
{
	enum ndp_reason reason;

	if (!rule || !group)
		return because(NDP_NO_RULE);
	if (rule->answer == NDP_NEVER || rule->flags & NDP_RULE_HELD)
		return because(NDP_DENIED);
	if (group->flags & NDP_GROUP_DYNAMIC && config->heartbeat_timeout &&
	    (__s64)(ktime_get_ns() - config->heartbeat) > (__s64)config->heartbeat_timeout)
		return because(NDP_EXPIRED);
	if (rule->answer != NDP_ALWAYS || ns->dad) {
		reason = ask_tables(ctx, ns, config, rule, group);
		if (reason != NDP_NOT_NS)
			return reason;
	}
	if (config->rate_interval | config->total_interval) {
		reason = over_rate(ns, config);
		if (reason != NDP_NOT_NS)
			return reason;
	}
	return ns->dad ? NDP_ANSWERED_DAD : NDP_ANSWERED;
}

/* ---- the answer ----------------------------------------------------------------------- */

/* 7.2.4 with 7.2.8: a proxy's advertisement. For DAD it goes to all nodes and is not solicited.
 * `out` may be the frame of the solicitation: nothing is read from it that was not written before.
 */
static __always_inline void advertise(struct advertisement *out, const struct solicitation *ns,
				      const struct ndp_settings *config,
				      const struct ndp_group *group)
{
	const struct address *link_local = (const void *)config->link_local;
	const struct address *fixed = (const void *)group->address;
	struct tail_mac tllao, peer = mac_tail(0, ns->peer);
	__u64 lladdr = own_mac(config);
	__u32 flags = ns->dad ? 0 : FLAG_SOLICITED;
	__u64 sum = ns->target_sum + ns->source_sum; /* of where it comes from and goes to */

	if (group->flags & NDP_GROUP_ROUTER)
		flags |= FLAG_ROUTER;
	if (group->flags & NDP_GROUP_OVERRIDE)
		flags |= FLAG_OVERRIDE;

	out->eth.dst.mac_first = peer.mac_first;
	out->eth.dst.mac_rest = peer.mac_rest;
	out->eth.src = mac_head(lladdr, net16(ETHERTYPE_IPV6));
	out->ip6.version_class_flow = net32(0x60000000);
	out->ip6.payload_len = net16(sizeof(out->na) + sizeof(out->tllao));
	out->ip6.next_header = PROTOCOL_ICMPV6;
	out->ip6.hop_limit = 255;
	out->ip6.src = ns->target;
	out->ip6.dst = ns->source;
	if (ns->dad) { /* whose source is zero, and so is its sum */
		out->eth.dst.mac_first = net16(0x3333);
		out->eth.dst.mac_rest = net32(1);
		out->ip6.dst = (struct address){.w = {net32(0xff020000), 0, 0, net32(1)}};
		sum += sum_address(&out->ip6.dst);
	}
	if (group->na_source != NDP_SOURCE_TARGET) {
		if (group->na_source == NDP_SOURCE_ADDRESS)
			out->ip6.src = *fixed;
		else if (!is_unspecified(link_local))
			out->ip6.src = *link_local;
		sum += sum_address(&out->ip6.src) - ns->target_sum;
	}
	out->na.icmp.type = TYPE_NA;
	out->na.icmp.code = 0;
	out->na.flags = net32(flags);
	out->na.target = ns->target;
	if (group->flags & NDP_GROUP_LLADDR) {
		_Static_assert(__builtin_offsetof(struct ndp_group, lladdr) == 2, "a tail_mac");
		lladdr = tail_mac((const void *)group);
	}
	tllao = mac_tail(net16(OPTION_TLLAO << 8 | 1), lladdr);
	out->tllao.mac = tllao;

	sum += (__u64)net32(sizeof(out->na) + sizeof(out->tllao)) + net32(PROTOCOL_ICMPV6);
	sum += net16(TYPE_NA << 8);
	sum += net32(flags) + ns->target_sum;
	sum += (__u64)tllao.halves[0] + tllao.halves[1];
	out->na.icmp.checksum = ~fold(sum);
}

/* ---- one exit for every verdict ------------------------------------------------------- */

/* A test run comes in through the namespace's loopback device, where nobody attaches us: such a
 * frame was made up by `ndxdp explain`. It is judged like any other, but neither counted nor
 * charged to a rate, and the verdict is left in `explained`.
 */
static __always_inline __u64 is_dry_run(__u32 ifindex)
{
	return is_zero(ifindex ^ LOOPBACK_IFINDEX);
}

/* Somebody is tracing, and it is this one's turn: where its event is made. A tracer that was
 * killed does not put out its own light, so it says how long it is to burn.
 */
static __always_inline struct ndp_tracer *traced(const struct ndp_settings *config,
						 const struct solicitation *ns)
{
	struct ndp_tracer *tracer;
	__u32 zero = 0;
	__u64 now, seen;

	if (!config->trace_until || ns->dry_run)
		return 0;
	now = ktime_get_ns();
	tracer = map_lookup(MAP(tracers), &zero);
	if (!tracer || now > config->trace_until)
		return 0;
	seen = tracer->seen++;
	if (config->trace_every > 1 && seen % config->trace_every)
		return 0;
	tracer->event.time = now;
	return tracer;
}

/* How much of the frame the event keeps. frame_len: asked for anew; as a bound the one that the
 * option loop has seen would have the verifier tell all its ways through that loop apart.
 */
static __always_inline __u32 kept(struct ndp_tracer *tracer, __u32 frame_len)
{
	__u64 length = frame_len;

	asm volatile("" : "+r"(length)); /* or the bounds are put on a copy */
	if (length > NDP_EVENT_FRAME)
		length = NDP_EVENT_FRAME;
	if (length < HEADERS_LEN)
		length = HEADERS_LEN; /* never: is_solicitation() has seen them */
	tracer->event.length = frame_len;
	tracer->event.kept = length;
	return length;
}

/* The verdict for those who are to see it. */
static __always_inline struct ndp_explained explanation(enum ndp_reason reason,
							const struct ndp_rule *rule)
{
	struct ndp_explained verdict = {.reason = reason};

	if (rule) {
		verdict.matched = 1;
		verdict.group = rule->group;
		verdict.answer = rule->answer;
		verdict.flags = rule->flags;
		verdict.prefix_len = rule->prefix_len;
	}
	return verdict;
}

static __always_inline void count(enum ndp_reason reason, const struct ndp_rule *rule,
				  __u64 dry_run, struct ndp_tracer *tracer)
{
	struct ndp_group_count *group_count;
	__u32 key = reason;
	__u64 *total;

	if (dry_run) {
		struct ndp_explained verdict = explanation(reason, rule);

		key = 0;
		map_update(MAP(explained), &key, &verdict, BPF_ANY);
		return;
	}
	if (tracer) {
		tracer->event.verdict = explanation(reason, rule);
		if (ringbuf_output(MAP(events), &tracer->event, sizeof(tracer->event), 0))
			tracer->lost++;
	}
	total = map_lookup(MAP(reasons), &key);
	if (total)
		++*total;
	if (!rule)
		return;
	key = rule->group;
	group_count = map_lookup(MAP(group_counters), &key);
	if (group_count) {
		group_count->solicited++;
		if (reason >= NDP_ANSWERED) {
			group_count->answered++;
			group_count->last_answer = jiffies64();
		}
	}
}

/* What respond() found. The pointers are null as far as it did not get. */
struct verdict {
	enum ndp_reason reason;
	const struct ndp_rule *rule;
	const struct ndp_group *group;
};

/* Validate and decide. The advertisement is made by the caller: nothing that the option loop has
 * left on the stack may be where the verifier expects one.
 */
static __always_inline void respond(void *ctx, const void *data, const void *end,
				    __u64 frame_len, const struct ndp_settings *config,
				    struct solicitation *ns, struct verdict *verdict)
{
	verdict->reason = validate(data, end, frame_len, config, ns);
	if (verdict->reason != NDP_NOT_NS)
		return;
	if (config->paused) {
		verdict->reason = because(NDP_PAUSED);
		return;
	}
	verdict->rule = match(ns);
	verdict->group = group_of(verdict->rule);
	verdict->reason = decide(ctx, ns, config, verdict->rule, verdict->group);
}

/* Read the tag of a frame; for an untagged frame, the bytes that lie there. The caller has seen
 * is_solicitation() or is_tagged_solicitation(). The volatile read hides from the verifier which of
 * the two it was: otherwise the verifier would walk the program once for each.
 */
static __always_inline struct vlan_tag tag_of(const void *data)
{
	const volatile struct vlan_tag *tag = data + sizeof(struct eth_macs);
	struct vlan_tag found;

	found.type = tag->type;
	found.control = tag->control;
	return found;
}

/* Begin the frame `delta` bytes further on, and take its MACs there. Returns 0, or -1 with the frame
 * unchanged.
 */
static __always_inline int move_macs(struct xdp_md *ctx, int delta)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct eth_macs macs;

	if (data + sizeof(macs) > end)
		return -1; /* never, like the next two */
	macs = *(struct eth_macs *)data;
	if (xdp_adjust_head(ctx, delta))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(macs) > end)
		return -1;
	*(struct eth_macs *)data = macs;
	return 0;
}

/* Remove the tag. Returns 0, or -1 with the frame unchanged. */
static __always_inline int take_tag(struct xdp_md *ctx)
{
	return move_macs(ctx, sizeof(struct vlan_tag));
}

/* Restore the frame that take_tag() has changed. */
static __always_inline void put_tag(struct xdp_md *ctx, const struct vlan_tag tag)
{
	void *data, *end;

	if (move_macs(ctx, -(int)sizeof(tag)))
		return;
	data = (void *)(long)ctx->data + sizeof(struct eth_macs);
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(tag) <= end)
		*(struct vlan_tag *)data = tag;
}

SEC("xdp.frags")
int ndp_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct solicitation ns;
	struct verdict verdict = {};
	struct ndp_tracer *tracer;
	enum ndp_reason reason;
	const struct ndp_settings *config;
	struct vlan_tag tag;
	__u64 frame_len = NA_LEN;
	__u32 zero = 0;

	if (!is_solicitation(data, end) && !is_tagged_solicitation(data, end)) {
		if (is_gateway_answer(data, end, ctx->ingress_ifindex))
			((struct ethernet *)(data - PAD))->dst.mac_first |= net16(0x0100);
		return XDP_PASS;
	}
	config = map_lookup(MAP(settings), &zero);
	if (!config)
		return XDP_PASS; /* never: an array's element is always there */
	ns.whole = 128;
	ns.dry_run = is_dry_run(ctx->ingress_ifindex);
	tag = tag_of(data);
	if (tag.type != net16(ETHERTYPE_IPV6) && tag.control & net16(VLAN_ID)) {
		verdict.reason = because(NDP_OTHER_VLAN);
		goto decided;
	}
	/* A tag without a VLAN says no more than a priority; Linux takes the frame as untagged. */
	if (tag.type != net16(ETHERTYPE_IPV6)) {
		if (take_tag(ctx))
			return XDP_PASS;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
	}
	/* A frame that goes on in other pieces of memory has at least a buffer's worth in the first:
	 * one of the answer's length is whole, and need not be asked for what it may have besides.
	 */
	if (data + NA_LEN > end || data + NA_LEN + 1 <= end)
		frame_len = xdp_get_buff_len(ctx);
	respond(ctx, data, end, frame_len, config, &ns, &verdict);
decided:
	reason = verdict.reason;
	tracer = traced(config, &ns);
	if (tracer &&
	    xdp_load_bytes(ctx, 0, tracer->event.frame, kept(tracer, xdp_get_buff_len(ctx))))
		tracer = 0;

	if (reason >= NDP_ANSWERED && verdict.group) {
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		reason = NDP_RESIZE_FAILED;
		/* In several pieces, of which the first does not hold an answer, resizing would
		 * change another one.
		 */
		if (frame_len == NA_LEN ||
		    ((frame_len < NA_LEN || data + NA_LEN <= end) &&
		     !xdp_adjust_tail(ctx, (int)NA_LEN - (int)frame_len))) {
			data = (void *)(long)ctx->data;
			end = (void *)(long)ctx->data_end;
			if (data + NA_LEN <= end) {
				advertise(data - PAD, &ns, config, verdict.group);
				reason = verdict.reason;
			}
		}
		if (tracer)
			xdp_load_bytes(ctx, 0, tracer->event.reply, NA_LEN);
	}
	count(reason, verdict.rule, ns.dry_run, tracer);
	if (reason >= NDP_ANSWERED)
		return XDP_TX;
	if (reason == NDP_RATE_LIMITED)
		return XDP_DROP;
	if (tag.type != net16(ETHERTYPE_IPV6) && reason != NDP_OTHER_VLAN)
		put_tag(ctx, tag);
	return XDP_PASS;
}

/* "Not mine" is TC_ACT_UNSPEC: other filters and other programs of the hook get their turn. */
#define PASS		 (-1)
#define DROP		 2 /* TC_ACT_SHOT */
#define PACKET_OTHERHOST 3 /* linux/if_packet.h */

SEC("tc")
int ndp_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct solicitation ns;
	struct verdict verdict = {};
	struct ndp_tracer *tracer;
	struct advertisement na;
	enum ndp_reason reason;
	const struct ndp_settings *config;
	__u64 frame_len;
	__u32 zero = 0;

	/* The kernel has taken a tag off the frame; it stands beside it. */
	if (skb->protocol != net16(ETHERTYPE_IPV6))
		return PASS;
	/* Drivers put as little as the Ethernet header into the linear part. Pulling changes
	 * how the frame lies in memory, not a byte of it.
	 */
	if (data + HEADERS_LEN > end) {
		if (skb->len < HEADERS_LEN || skb_pull_data(skb, HEADERS_LEN))
			return PASS;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (!is_solicitation(data, end)) {
		if (is_gateway_answer(data, end, skb->ifindex))
			skb_change_type(skb, PACKET_OTHERHOST);
		return PASS;
	}
	frame_len = skb->len;
	if (frame_len <= NDP_FRAME_MAX) {
		if (skb_pull_data(skb, frame_len))
			return PASS;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	config = map_lookup(MAP(settings), &zero);
	if (!config)
		return PASS; /* never: an array's element is always there */
	ns.whole = 128;
	ns.dry_run = is_dry_run(skb->ifindex);
	/* A tag without a VLAN says no more than a priority. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		verdict.reason = because(NDP_OTHER_VLAN);
	else
		respond(skb, data, end, frame_len, config, &ns, &verdict);
	reason = verdict.reason;
	tracer = traced(config, &ns);
	if (tracer && skb_load_bytes(skb, 0, tracer->event.frame, kept(tracer, skb->len)))
		tracer = 0;

	if (reason >= NDP_ANSWERED && verdict.group) {
		advertise(&na, &ns, config, verdict.group);
		if (tracer)
			__builtin_memcpy(tracer->event.reply, (void *)&na + PAD, NA_LEN);
		if (frame_len != NA_LEN && skb_change_tail(skb, NA_LEN, 0))
			reason = NDP_RESIZE_FAILED;
		else if ((skb->vlan_present && skb_vlan_pop(skb)) ||
			 skb_store_bytes(skb, 0, (void *)&na + PAD, NA_LEN,
					 BPF_F_RECOMPUTE_CSUM))
			return DROP; /* never: it was just made that long */
	}
	count(reason, verdict.rule, ns.dry_run, tracer);
	if (reason >= NDP_ANSWERED)
		return redirect(skb->ifindex, 0);
	return reason == NDP_RATE_LIMITED ? DROP : PASS;
}

#ifndef NDXDP_BCC
char LICENSE[] SEC("license") = "GPL";
#endif
