// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The BPF program: it answers IPv6 Neighbor Solicitations for addresses that live behind this
 * host.
 *
 * Read this file from top to bottom; it has the steps in the order in which a frame meets them:
 *
 *     parse -> validate -> apply the rule -> advertise -> count
 *
 * The steps are shared by the two entry points at the end: ndp_xdp (native and generic XDP) and
 * ndp_tc (clsact or tcx ingress). Section numbers are RFC 4861's unless a comment names another
 * document. A solicitation that is not answered goes to the kernel unchanged; only a rate limit
 * drops. One other frame changes: a gateway's answer, see is_gateway_answer().
 *
 * ndxdp/ndp/decision.py specifies the same steps in Python, and the tests compare the two byte by
 * byte.
 */
#include "dialect.h"
#include "ndp_abi.h"
#include "ndp_frame.h"
#include "ndp_solicitation.h"
#include "ndp_maps.h"
#include "ndp_limits.h"
#include "ndp_trace.h"

/* ---- parse ---------------------------------------------------------------------------- */

/* Return true if the headers are those of IPv6 and of a Neighbor Solicitation. */
static __always_inline int has_solicitation(const struct ipv6 *ip6)
{
	const struct icmpv6 *icmp = (const void *)(ip6 + 1);

	return ip6->next_header == PROTOCOL_ICMPV6 && icmp->type == TYPE_NS &&
	       (ip6->version_class_flow & bpf_htonl(0xf0000000)) == bpf_htonl(0x60000000);
}

/* Return true if the frame is a solicitation without a tag. Every frame of the interface comes
 * here, so the most likely difference is compared first. A frame with an extension header before
 * ICMPv6 is no solicitation, nor is a frame that ends within its ICMPv6 header.
 */
static __always_inline int is_solicitation(const void *data, const void *end)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);

	if ((const void *)ip6 + sizeof(*ip6) + sizeof(struct icmpv6) > end)
		return 0;
	return eth->src.after == bpf_htons(ETHERTYPE_IPV6) && has_solicitation(ip6);
}

/* Return true if the frame is a solicitation with one VLAN tag in the frame. */
static __always_inline int is_tagged_solicitation(const void *data, const void *end)
{
	const struct vlan_tag *tag = data + sizeof(struct eth_macs);
	const __be16 *ethertype = (const void *)(tag + 1);
	const struct ipv6 *ip6 = (const void *)(ethertype + 1);

	if ((const void *)ip6 + sizeof(*ip6) + sizeof(struct icmpv6) > end)
		return 0;
	return (tag->type == bpf_htons(ETHERTYPE_8021Q) ||
		tag->type == bpf_htons(ETHERTYPE_8021AD)) &&
	       *ethertype == bpf_htons(ETHERTYPE_IPV6) && has_solicitation(ip6);
}

/* Return true for a gateway's answer to a solicitation that the daemon sent from an address behind
 * this host, to keep the gateway's neighbor entry or to announce the address. The caller then
 * marks the frame as one that the kernel does not forward; packet sockets still receive it.
 * Nobody needs it behind this host, and forwarding does harm:
 * - With a route to the address, the node there drops the answer, whose hop limit is then 254.
 * - To a link-local gateway, the kernel sends an ICMPv6 error.
 * - Without a route behind this host, the kernel sends the answer back to the link.
 */
static __always_inline int is_gateway_answer(const void *data, const void *end, __u32 ifindex)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct neighbor *msg = (const void *)(ip6 + 1);
	const struct ndp_settings *config;
	struct rule rule;
	struct solicitation asked;
	struct mac_trailing own;

	if ((const void *)(msg + 1) > end)
		return 0;
	if (eth->src.after != bpf_htons(ETHERTYPE_IPV6) ||
	    ip6->next_header != PROTOCOL_ICMPV6 || msg->icmp.type != TYPE_NA ||
	    ip6->hop_limit != HOP_LIMIT || !(msg->flags & bpf_htonl(FLAG_SOLICITED)))
		return 0;
	config = get_settings();
	/* Not on a bridge's port: the bridge would flood a frame with the group bit. */
	if (!config || !config->solicits || config->l3_ifindex != ifindex)
		return 0;
	mac_store_trailing(&own, 0, own_mac(config));
	if (!is_same_mac(&eth->dst, &own))
		return 0;
	asked.prefixlen = 128;
	asked.target = ip6->dst;
	rule = find_rule(&asked);
	if (!rule.word || rule.answer == NDP_NEVER || rule.flags & NDP_RULE_OWNED)
		return 0;
	return !is_local(&asked);
}

/* ---- validate ------------------------------------------------------------------------- */

/* Return true if the frame is for the MAC that the target's rule advertises. A neighbor that has
 * this MAC in its cache sends its probes there (7.3.3).
 */
static __always_inline int is_for_advertised_mac(const struct ethernet *eth,
						 const struct neighbor *msg, const void *end,
						 const struct solicitation *ns)
{
	struct profile profile = {};

	if (eth->dst.mac_first & bpf_htons(GROUP_MAC_BIT) || (const void *)(msg + 1) > end)
		return 0;
	load_profile(&profile, find_rule(ns));
	return profile.exists && profile.flags & NDP_CLASS_LLADDR &&
	       is_same_mac(&eth->dst, profile_mac(&profile));
}

/* Results of the walk over the options. */
struct options {
	__u64 sum;    /* their one's-complement sum, not folded */
	__u64 sllao;  /* 1: there is an SLLAO */
	__u64 lladdr; /* MAC as a number: the first SLLAO's, if there is one */
};

/* Walk the options, which begin at `cursor`.
 * length: bytes of the ICMPv6 message; not below that of a struct neighbor.
 *
 * A step reads one unit, and has no branch that depends on the unit's content: the verifier follows
 * both ways of a branch, so a branch would double the verifier's work at each step. Nor does the
 * rest of the program depend on the number of steps.
 */
SUBPROGRAM enum ndp_reason walk_options(const void *cursor, const void *end, __u64 length,
					struct options *options)
{
	__u64 units = (length - sizeof(struct neighbor)) / 8; /* that remain of the message */
	__u64 left = 0;	 /* units that remain of the current option */
	__u64 first = 0; /* the first unit of the first SLLAO, which is not 0 */
	__u64 sum = 0, begins, is_first_sllao, i;
	struct lladdr_option sllao;

	for (i = 0; i < UNITS_MAX; i++) {
		const struct lladdr_option *option = cursor;

		cursor += 8;
		/* Otherwise the compiler adds i * 8 to a pointer, which takes CAP_PERFMON. */
		barrier_var(cursor);
		barrier_var(units);
		if (!units || cursor > end)
			break;
		begins = is_zero(left); /* the unit is the first of an option */
		/* From an option of length 0 on, `left` is negative, and so not 0 in the end. */
		left |= -begins & option->len;
		/* Linux, too, takes the first SLLAO and ignores all others. */
		is_first_sllao =
			begins & is_zero(option->type ^ OPTION_SLLAO) & ~option_type(first);
		first |= option->mac.word & -is_first_sllao;
		sum += sum_word(option->mac.word);
		left--;
		units--;
	}
	if (units) /* the rest is in another piece of memory */
		return NDP_BAD_LENGTH;
	sllao.mac.word = first;
	/* An Ethernet address takes one unit (4.6.1, RFC 2464 6). */
	if (left | length % 8 || (first && sllao.len != 1))
		return NDP_BAD_OPTION;
	options->sum = sum;
	options->sllao = first != 0;
	options->lladdr = mac_load_trailing(&sllao.mac);
	return NDP_CONTINUE;
}

/* Check the Ethernet header, and all of 7.1.1, and fill `ns`. The caller has seen
 * is_solicitation(). frame_len: bytes of the frame, those outside the linear part included.
 *
 * The fields of `ns` are set before the first check: otherwise the verifier would follow the rest
 * of the program once for each check, which would each leave other fields without a value.
 */
static __always_inline enum ndp_reason validate(const void *data, const void *end,
						__u64 frame_len,
						const struct ndp_settings *config,
						struct solicitation *ns)
{
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct neighbor *msg = (const void *)(ip6 + 1);
	const struct lladdr_option *option = (const void *)(msg + 1);
	__u64 length = 0, sum, lladdr, no_dad;
	struct mac_trailing own;
	struct options options;
	enum ndp_reason reason;

	ns->eth_source = mac_load_leading(&eth->src);
	ns->peer = ns->eth_source;
	ns->source = ip6->src;
	ns->source_sum = sum_address(&ip6->src);
	if (likely((const void *)(msg + 1) <= end)) {
		ns->target = msg->target;
		ns->target_sum = sum_address(&msg->target);
		length = bpf_ntohs(ip6->payload_len);
	} else {
		ns->target = (struct address){};
		ns->target_sum = 0;
	}
	mac_store_trailing(&own, 0, own_mac(config));
	if (unlikely(ns->eth_source == own_mac(config)))
		return because(NDP_OWN_FRAME);
	if (unlikely(!(eth->dst.mac_first == bpf_htons(MULTICAST_MAC) &&
		       eth->dst.mac_rest == ip6->dst.w[3] && is_multicast(&ip6->dst)) &&
		     !is_same_mac(&eth->dst, &own) &&
		     !is_for_advertised_mac(eth, msg, end, ns)))
		return because(NDP_OTHER_HOST);
	if (unlikely(ip6->hop_limit != HOP_LIMIT))
		return because(NDP_BAD_HOP_LIMIT);
	if (unlikely(msg->icmp.code != 0))
		return because(NDP_BAD_CODE);

	/* The frame may have padding behind the IPv6 payload, so the frame may end behind the message. */
	if (unlikely(length < sizeof(*msg) || frame_len > NDP_FRAME_MAX ||
		     NS_LEN - sizeof(*msg) + length > frame_len))
		return because(NDP_BAD_LENGTH);

	/* The checksum covers the pseudo-header (RFC 8200 8.1), the message and the options. */
	sum = ns->source_sum + sum_address(&ip6->dst);
	sum += (__u64)bpf_htonl(length) + bpf_htonl(PROTOCOL_ICMPV6);
	sum += *(const __u32 *)&msg->icmp;
	sum += msg->flags + ns->target_sum;
	barrier_var(sum); /* otherwise the compiler keeps each word until after the options */

	/* Nearly every solicitation has one option, an SLLAO of one unit. */
	if (likely(length == sizeof(*msg) + sizeof(*option) &&
		   (const void *)(option + 1) <= end &&
		   option->mac.before == bpf_htons(OPTION_SLLAO << 8 | 1))) {
		lladdr = mac_load_trailing(&option->mac);
		sum += sum_word(option->mac.word);
		no_dad = 1;
	} else {
		no_dad = differs_from_group(&ip6->dst, &ns->target);
		reason = walk_options(option, end, length, &options);
		if (reason != NDP_CONTINUE)
			return reason;
		lladdr = options.sllao ? options.lladdr : ns->eth_source;
		sum += options.sum;
		no_dad |= options.sllao;
	}
	if (unlikely(fold(sum) != 0xffff))
		return because(NDP_BAD_CHECKSUM);

	if (unlikely(is_multicast(&ns->target) || is_unspecified(&ns->target) ||
		     is_loopback(&ns->target)))
		return because(NDP_BAD_TARGET);
	/* Linux drops packets from loopback and v4-mapped sources (ip6_rcv_core()). */
	if (unlikely(is_multicast(&ns->source) || is_loopback(&ns->source) ||
		     is_v4_mapped(&ns->source) || (is_dad(ns) && no_dad)))
		return because(NDP_BAD_SOURCE);
	ns->peer = lladdr;
	return NDP_CONTINUE;
}

/* ---- decide --------------------------------------------------------------------------- */

/* Ask the daemon to have the kernel resolve the target. Requests are limited: a node that scans a
 * prefix must not fill the kernel's neighbor table (RFC 6583).
 */
static __always_inline void request_resolution(const struct solicitation *ns,
					       const struct ndp_settings *config,
					       const struct rule rule)
{
	struct ndp_request *request;

	if (ns->dry_run || !config->resolve_interval ||
	    charge(ns, config, FOR_REQUEST) != NDP_CONTINUE)
		return;
	request = bpf_ringbuf_reserve(MAP(requests), sizeof(*request), 0);
	if (!request)
		return;
	request->time = bpf_ktime_get_ns();
	*(struct address *)request->source = ns->source;
	*(struct address *)request->target = ns->target;
	__builtin_memcpy(request->eth_source, &ns->eth_source, sizeof(request->eth_source));
	__builtin_memcpy(request->peer, &ns->peer, sizeof(request->peer));
	request->rule_class = rule.rule_class;
	*(__u16 *)request->reserved = 0;
	bpf_ringbuf_submit(request, 0);
}

/* AF_INET6 (linux/socket.h, which is no UAPI header). */
#define FAMILY_INET6 10

/* Look up the route of a packet to the target that arrives on this interface. The packet's source
 * is unspecified: most solicitations have a link-local one, and the kernel forwards no such packet.
 *
 * Return NDP_CONTINUE if the kernel would forward the packet. For `neighbour` rules, and where a
 * `routed` rule defends against DAD, the next hop must also be the target itself and a live
 * neighbor: on a router with one prefix on both sides, a route does not prove that the target is
 * behind this host.
 */
static __always_inline enum ndp_reason check_route(void *ctx, const struct solicitation *ns,
						   const struct ndp_settings *config,
						   const struct rule rule,
						   const struct profile *profile, __u32 defends)
{
	/* Aligned like a struct address. */
	struct bpf_fib_lookup fib __attribute__((aligned(8))) = {.family = FAMILY_INET6};
	struct address *next_hop = (struct address *)fib.ipv6_dst;
	struct ndp_dev dev = {.dev_set = profile->dev_set};
	long found;

	fib.ifindex = config->l3_ifindex;
	*next_hop = ns->target;
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
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
		return is_local(ns) ? NDP_ROUTE_LOCAL : NDP_NO_ROUTE;
	}
	if (fib.ifindex == config->l3_ifindex)
		return NDP_ROUTE_BACK;
	dev.ifindex = fib.ifindex;
	if (profile->flags & NDP_CLASS_DEV && !lookup_in_hash(MAP(vias), &dev))
		return NDP_ROUTE_ELSEWHERE;
	if (rule.answer == NDP_ALWAYS || (rule.answer == NDP_ROUTED && !defends))
		return NDP_CONTINUE;
	if (!is_same_address(next_hop, &ns->target))
		return NDP_ROUTE_GATEWAY;
	if (found == BPF_FIB_LKUP_RET_NO_NEIGH) {
		request_resolution(ns, config, rule);
		return NDP_NO_NEIGHBOUR;
	}
	return NDP_CONTINUE;
}

/* Return NDP_CONTINUE if no node of this link can own the target of a DAD probe. An `always` rule
 * defends only such a target: otherwise the rule would keep a node of the link from its own address.
 * route: the result of check_route().
 */
static __always_inline enum ndp_reason
check_always_dad(enum ndp_reason route, const struct solicitation *ns, const struct rule rule)
{
	if (unlikely(route == NDP_ROUTE_BACK))
		return because(NDP_DAD_ON_LINK);
	/* While forwarding is off, the FIB lookup does not return the output interface. */
	if (unlikely(route == NDP_NOT_FORWARDING && !is_local(ns)))
		return because(NDP_NOT_FORWARDING);
	/* Every link has all of fe80::/10, so only a rule for the single address is meant here. */
	if (unlikely(is_link_local(&ns->target) && rule.prefix_len < 128))
		return because(NDP_DAD_ON_LINK);
	return NDP_CONTINUE;
}

/* Check the kernel's routes and neighbors, if the rule depends on them or a DAD probe might be
 * defended.
 */
static __always_inline enum ndp_reason check_tables(void *ctx, const struct solicitation *ns,
						    const struct ndp_settings *config,
						    const struct rule rule,
						    const struct profile *profile)
{
	__u32 defends = is_dad(ns) && profile->flags & NDP_CLASS_DEFEND;
	enum ndp_reason reason;

	if (rule.answer == NDP_LOCAL) {
		if (unlikely(!is_local(ns)))
			return because(NDP_NOT_LOCAL);
	} else if (rule.answer != NDP_ALWAYS || defends) {
		reason = check_route(ctx, ns, config, rule, profile, defends);
		if (rule.answer == NDP_ALWAYS)
			reason = check_always_dad(reason, ns, rule);
		if (unlikely(reason != NDP_CONTINUE))
			return reason;
	}
	if (unlikely(is_dad(ns) && !defends))
		return because(NDP_DAD_IGNORED);
	if (unlikely(defends && bpf_map_lookup_elem(MAP(on_link), &ns->target)))
		return because(NDP_DAD_ON_LINK);
	return NDP_CONTINUE;
}

/* Return NDP_CONTINUE if the rule is valid at this time. */
static __always_inline enum ndp_reason check_time(const struct ndp_settings *config,
						  const struct profile *profile)
{
	if (unlikely(profile->flags & NDP_CLASS_DYNAMIC && config->heartbeat_timeout &&
		     (__s64)(bpf_ktime_get_ns() - config->heartbeat) >
			     (__s64)config->heartbeat_timeout))
		return because(NDP_EXPIRED);
	if (unlikely(profile->flags & NDP_CLASS_LEASED && has_lapsed()))
		return because(NDP_LAPSED);
	return NDP_CONTINUE;
}

/* Return the verdict of the rule, which is zero if no rule matches, and of its profile. */
static __always_inline enum ndp_reason apply_rule(void *ctx, const struct solicitation *ns,
						  const struct ndp_settings *config,
						  const struct rule rule,
						  const struct profile *profile)
{
	enum ndp_reason reason;

	if (unlikely(!profile->exists))
		return because(NDP_NO_RULE);
	if (unlikely(rule.answer == NDP_NEVER || rule.flags & NDP_RULE_OWNED))
		return because(NDP_DENIED);
	if (unlikely(profile->flags & (NDP_CLASS_DYNAMIC | NDP_CLASS_LEASED))) {
		reason = check_time(config, profile);
		if (unlikely(reason != NDP_CONTINUE))
			return reason;
	}
	if (unlikely(rule.answer != NDP_ALWAYS || is_dad(ns))) {
		reason = check_tables(ctx, ns, config, rule, profile);
		if (unlikely(reason != NDP_CONTINUE))
			return reason;
	}
	if (unlikely(config->rate_interval | config->total_interval)) {
		reason = charge(ns, config, FOR_ANSWER);
		if (unlikely(reason != NDP_CONTINUE))
			return reason;
	}
	return is_dad(ns) ? NDP_ANSWERED_DAD : NDP_ANSWERED;
}

/* Initialise `ns` for a frame of the interface, which has passed is_solicitation() or
 * is_tagged_solicitation(). Return the settings, or null.
 */
static __always_inline const struct ndp_settings *begin(struct solicitation *ns,
							const void *data, __u32 ifindex)
{
	ns->prefixlen = 128;
	ns->dry_run = dry_run(data, ifindex);
	return get_settings();
}

/* Validate a solicitation and decide on it. The advertisement is left to the caller: the verifier
 * must find nothing of the option walk on the stack where the advertisement goes.
 */
static __always_inline void judge(void *ctx, const void *data, const void *end, __u64 frame_len,
				  const struct ndp_settings *config, struct solicitation *ns,
				  struct verdict *verdict)
{
	verdict->reason = NDP_BAD_LENGTH;
	if (unlikely(data + HEADERS_LEN > end))
		return; /* never, but the verifier requires the check */
	verdict->reason =
		conceal(validate(data, end, frame_len, config, ns), config->l3_ifindex);
	if (unlikely(verdict->reason != NDP_CONTINUE))
		return;
	if (unlikely(config->paused)) {
		verdict->reason = because(NDP_PAUSED);
		return;
	}
	verdict->rule = find_rule(ns);
	load_profile(&verdict->profile, verdict->rule);
	/* Otherwise the compiler holds each field in a register, and moves all of them around at each
	 * place where paths meet.
	 */
	asm volatile("" : : "r"(verdict) : "memory");
	verdict->reason = apply_rule(ctx, ns, config, verdict->rule, &verdict->profile);
}

/* ---- advertise ------------------------------------------------------------------------ */

/* Write a proxy's advertisement (7.2.4, 7.2.8). An answer to DAD goes to all nodes, and is not
 * solicited. `out` may be the frame of the solicitation: no byte of the frame is read.
 */
static __always_inline void advertise(struct advertisement *out, const struct solicitation *ns,
				      const struct ndp_settings *config,
				      const struct profile *profile)
{
	const struct address *link_local = (const void *)config->link_local;
	const struct address *fixed = (const void *)profile->address;
	struct mac_trailing tllao, peer;
	__u64 lladdr = own_mac(config);
	__u32 flags = is_dad(ns) ? 0 : FLAG_SOLICITED;
	__u64 sum = ns->target_sum + ns->source_sum; /* of the IPv6 source and destination */

	if (profile->flags & NDP_CLASS_ROUTER)
		flags |= FLAG_ROUTER;
	if (profile->flags & NDP_CLASS_OVERRIDE)
		flags |= FLAG_OVERRIDE;

	mac_store_trailing(&peer, 0, ns->peer);
	out->eth.dst.mac_first = peer.mac_first;
	out->eth.dst.mac_rest = peer.mac_rest;
	mac_store_leading(&out->eth.src, lladdr, bpf_htons(ETHERTYPE_IPV6));
	out->ip6.version_class_flow = bpf_htonl(0x60000000);
	out->ip6.payload_len = bpf_htons(sizeof(out->na) + sizeof(out->tllao));
	out->ip6.next_header = PROTOCOL_ICMPV6;
	out->ip6.hop_limit = HOP_LIMIT;
	out->ip6.src = ns->target;
	out->ip6.dst = ns->source;
	if (unlikely(is_dad(ns))) { /* to ff02::1; the source is zero, and so is its sum */
		out->eth.dst.mac_first = bpf_htons(MULTICAST_MAC);
		out->eth.dst.mac_rest = bpf_htonl(1);
		out->ip6.dst =
			(struct address){.w = {bpf_htonl(0xff020000), 0, 0, bpf_htonl(1)}};
		sum += sum_address(&out->ip6.dst);
	}
	if (unlikely(profile->na_source != NDP_SOURCE_TARGET)) {
		if (profile->na_source == NDP_SOURCE_ADDRESS)
			out->ip6.src = *fixed;
		else if (!is_unspecified(link_local))
			out->ip6.src = *link_local;
		sum += sum_address(&out->ip6.src) - ns->target_sum;
	}
	out->na.icmp.type = TYPE_NA;
	out->na.icmp.code = 0;
	out->na.flags = bpf_htonl(flags);
	out->na.target = ns->target;
	if (profile->flags & NDP_CLASS_LLADDR)
		lladdr = mac_load_trailing(profile_mac(profile));
	mac_store_trailing(&tllao, bpf_htons(OPTION_TLLAO << 8 | 1), lladdr);
	out->tllao.mac.word = tllao.word;

	sum += (__u64)bpf_htonl(sizeof(out->na) + sizeof(out->tllao)) +
	       bpf_htonl(PROTOCOL_ICMPV6);
	sum += bpf_htons(TYPE_NA << 8);
	sum += bpf_htonl(flags) + ns->target_sum;
	sum += sum_word(tllao.word);
	out->na.icmp.checksum = ~fold(sum);
}

/* ---- count ---------------------------------------------------------------------------- */

/* Count the verdict, and show it to a tracer if there is one. */
static __always_inline void count(const struct verdict *verdict, __u64 dry_run,
				  struct ndp_tracer *tracer)
{
	struct ndp_class_count *class_count;
	__u32 key = verdict->reason;
	__u64 *total;

	if (unlikely(dry_run)) {
		explain(verdict, dry_run);
		return;
	}
	if (unlikely(tracer))
		trace_submit(tracer, verdict);
	total = bpf_map_lookup_elem(MAP(reasons), &key);
	if (total)
		++*total;
	if (!verdict->rule.word)
		return;
	key = verdict->rule.rule_class;
	class_count = bpf_map_lookup_elem(MAP(group_counters), &key);
	if (unlikely(!class_count))
		class_count = lookup_in_hash(MAP(more_counters), &key);
	if (class_count) {
		class_count->solicited++;
		if (likely(verdict->reason >= NDP_ANSWERED)) {
			class_count->answered++;
			class_count->last_answer = bpf_jiffies64();
		}
	}
}

/* ---- XDP: native and generic ---------------------------------------------------------- */

/* Pass a frame that is no solicitation. */
static __always_inline int xdp_pass_other(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	/* The kernel does not forward a frame to a group's MAC. */
	if (is_gateway_answer(data, end, ctx->ingress_ifindex))
		((struct ethernet *)(data - PAD))->dst.mac_first |= bpf_htons(GROUP_MAC_BIT);
	return XDP_PASS;
}

/* Return the tag of a frame for which is_tagged_solicitation() returns true. */
static __always_inline struct vlan_tag read_tag(const void *data)
{
	const __be16 *words = data + sizeof(struct eth_macs);
	struct vlan_tag tag;

	tag.type = words[0];
	tag.control = words[1];
	return tag;
}

/* Return true for a tag that names a VLAN. */
static __always_inline int has_vlan(const struct vlan_tag tag)
{
	return tag.control & bpf_htons(VLAN_ID);
}

/* Return true for a tag that has only a priority. Linux takes such a frame for an untagged one. */
static __always_inline int has_priority_tag(const struct vlan_tag tag)
{
	return tag.word && !has_vlan(tag);
}

/* Move the start of the frame by `delta` bytes towards its end, and the MACs with it. Return 0, or
 * -1 with the frame unchanged.
 */
SUBPROGRAM int move_macs(struct xdp_md *ctx, int delta)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct eth_macs macs;

	if (data + sizeof(macs) > end)
		return -1; /* never happens: the verifier requires this check */
	macs = *(struct eth_macs *)data;
	if (bpf_xdp_adjust_head(ctx, delta))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(macs) > end)
		return -1;
	*(struct eth_macs *)data = macs;
	return 0;
}

/* Put back the tag that move_macs() has overwritten; on failure the frame stays without it. */
static __always_inline void insert_tag(struct xdp_md *ctx, const struct vlan_tag tag)
{
	__be16 *words;
	void *end;

	if (move_macs(ctx, -(int)sizeof(tag)))
		return;
	words = (void *)(long)ctx->data + sizeof(struct eth_macs);
	end = (void *)(long)ctx->data_end;
	if ((void *)(words + 2) > end)
		return; /* never, but the verifier requires the check */
	words[0] = tag.type;
	words[1] = tag.control;
}

/* Return the frame's length in bytes. A frame in several buffers fills the first. So if the first
 * buffer has exactly NA_LEN bytes, as for nearly every solicitation, it is the whole frame, and the
 * helper (Linux 5.18) is not needed. `end - data` would take CAP_PERFMON.
 * unknown: any number that the verifier does not know.
 */
static __always_inline __u64 xdp_frame_len(struct xdp_md *ctx, __u64 unknown)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u64 frame_len = NA_LEN;

	if (unlikely(data + NA_LEN > end || data + NA_LEN + 1 <= end))
		frame_len = bpf_xdp_get_buff_len(ctx);
	barrier(); /* pointers into the frame are read again: these have passed different comparisons */
	return conceal(frame_len, unknown);
}

/* Judge the frame. The caller has removed the tag, unless it names a VLAN. */
static __always_inline void xdp_judge(struct xdp_md *ctx, const struct vlan_tag tag,
				      __u64 frame_len, const struct ndp_settings *config,
				      struct solicitation *ns, struct verdict *verdict)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (unlikely(has_vlan(tag)))
		verdict->reason = because(NDP_OTHER_VLAN);
	else
		judge(ctx, data, end, frame_len, config, ns, verdict);
}

/* Return the record of this solicitation if it is traced, else null. */
static __always_inline struct ndp_tracer *
xdp_trace(struct xdp_md *ctx, const struct ndp_settings *config, const struct solicitation *ns)
{
	struct ndp_tracer *tracer = trace_begin(config, ns);

	if (unlikely(tracer) &&
	    bpf_xdp_load_bytes(ctx, 0, tracer->event.frame,
			       trace_copy_len(tracer, bpf_xdp_get_buff_len(ctx))))
		return 0;
	return tracer;
}

/* Turn the solicitation into the advertisement. Return the verdict's reason, or
 * NDP_RESIZE_FAILED with the frame unchanged.
 */
static __always_inline enum ndp_reason
xdp_answer(struct xdp_md *ctx, const struct ndp_settings *config, const struct solicitation *ns,
	   const struct verdict *verdict, __u64 frame_len, struct ndp_tracer *tracer)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	/* bpf_xdp_adjust_tail() changes only the last buffer. So the first buffer must already hold
	 * the answer, or the frame must grow.
	 */
	if (unlikely(frame_len != NA_LEN) &&
	    ((frame_len > NA_LEN && data + NA_LEN > end) ||
	     bpf_xdp_adjust_tail(ctx, (int)NA_LEN - (int)frame_len)))
		return NDP_RESIZE_FAILED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + NA_LEN > end || !verdict->profile.exists)
		return NDP_RESIZE_FAILED; /* never, but the verifier requires the check */
	advertise(data - PAD, ns, config, &verdict->profile);
	if (unlikely(tracer))
		bpf_xdp_load_bytes(ctx, 0, tracer->event.reply, NA_LEN);
	return verdict->reason;
}

/* Return the program's result for the verdict. A frame that passes gets its priority tag back; the
 * tag of a VLAN was not removed.
 */
static __always_inline int xdp_action(struct xdp_md *ctx, enum ndp_reason reason,
				      const struct vlan_tag tag)
{
	if (likely(reason >= NDP_ANSWERED))
		return XDP_TX;
	if (reason == NDP_RATE_LIMITED)
		return XDP_DROP;
	if (has_priority_tag(tag))
		insert_tag(ctx, tag);
	return XDP_PASS;
}

SEC("xdp.frags")
int ndp_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	const struct ndp_settings *config;
	struct verdict verdict;
	struct ndp_tracer *tracer;
	struct vlan_tag tag = {};
	struct solicitation ns;
	__u64 frame_len;

	if (unlikely(!is_solicitation(data, end))) {
		if (!is_tagged_solicitation(data, end))
			return xdp_pass_other(ctx);
		tag = read_tag(data);
	}
	verdict = (struct verdict){}; /* here, as most frames do not come so far */
	config = begin(&ns, data, ctx->ingress_ifindex);
	if (unlikely(!config || (has_priority_tag(tag) && move_macs(ctx, sizeof(tag)))))
		return XDP_PASS;
	/* The verifier then follows the rest once, and not once with a tag and once without. */
	tag.word = conceal(tag.word, config->l3_ifindex);
	frame_len = xdp_frame_len(ctx, config->trace_until);
	xdp_judge(ctx, tag, frame_len, config, &ns, &verdict);
	verdict.reason = conceal(verdict.reason, config->l3_ifindex);
	tracer = xdp_trace(ctx, config, &ns);
	if (likely(verdict.reason >= NDP_ANSWERED))
		verdict.reason = xdp_answer(ctx, config, &ns, &verdict, frame_len, tracer);
	count(&verdict, ns.dry_run, tracer);
	return xdp_action(ctx, verdict.reason, tag);
}

/* ---- tc: clsact or tcx ingress -------------------------------------------------------- */

/* Actions (linux/pkt_cls.h). UNSPEC passes the frame to the next filter or program of the hook. */
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_SHOT   2

/* Packet type (linux/if_packet.h): the kernel does not forward the frame. */
#define PACKET_OTHERHOST 3

/* Pull all headers into the linear part of the frame: some drivers leave only the Ethernet header
 * there. This changes no byte of the frame. Return 0, or another number on failure.
 */
static __always_inline int tc_pull_headers(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (data + HEADERS_LEN <= end)
		return 0;
	return skb->len < HEADERS_LEN || bpf_skb_pull_data(skb, HEADERS_LEN);
}

/* Make the whole frame linear, unless it is too long for a solicitation. */
static __always_inline int tc_pull_frame(struct __sk_buff *skb)
{
	return skb->len <= NDP_FRAME_MAX && bpf_skb_pull_data(skb, skb->len);
}

/* Pass a frame that is no solicitation. */
static __always_inline int tc_pass_other(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	if (is_gateway_answer(data, end, skb->ifindex))
		bpf_skb_change_type(skb, PACKET_OTHERHOST);
	return TC_ACT_UNSPEC;
}

/* Judge the frame, whose tag the kernel has moved into the skb. */
static __always_inline void tc_judge(struct __sk_buff *skb, const struct ndp_settings *config,
				     struct solicitation *ns, struct verdict *verdict)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;

	/* Like Linux, take a frame whose tag has only a priority for an untagged one. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		verdict->reason = because(NDP_OTHER_VLAN);
	else
		judge(skb, data, end, skb->len, config, ns, verdict);
}

/* Return the record of this solicitation if it is traced, else null. */
static __always_inline struct ndp_tracer *tc_trace(struct __sk_buff *skb,
						   const struct ndp_settings *config,
						   const struct solicitation *ns)
{
	struct ndp_tracer *tracer = trace_begin(config, ns);

	if (unlikely(tracer) &&
	    bpf_skb_load_bytes(skb, 0, tracer->event.frame, trace_copy_len(tracer, skb->len)))
		return 0;
	return tracer;
}

/* Turn the solicitation into the advertisement. Return the verdict's reason, or
 * NDP_RESIZE_FAILED with the frame unchanged.
 */
static __always_inline enum ndp_reason tc_answer(struct __sk_buff *skb,
						 const struct ndp_settings *config,
						 const struct solicitation *ns,
						 const struct verdict *verdict,
						 struct ndp_tracer *tracer)
{
	struct advertisement na;

	if (!verdict->profile.exists)
		return NDP_RESIZE_FAILED; /* never, but the verifier requires the check */
	advertise(&na, ns, config, &verdict->profile);
	/* Only resizing can fail: it, or tc_pull_frame(), leaves the frame linear and writable. */
	if ((skb->len != NA_LEN && bpf_skb_change_tail(skb, NA_LEN, 0)) ||
	    (skb->vlan_present && bpf_skb_vlan_pop(skb)) ||
	    bpf_skb_store_bytes(skb, 0, (void *)&na + PAD, NA_LEN, BPF_F_RECOMPUTE_CSUM))
		return NDP_RESIZE_FAILED;
	if (unlikely(tracer))
		__builtin_memcpy(tracer->event.reply, (void *)&na + PAD, NA_LEN);
	return verdict->reason;
}

/* Return the program's result for the verdict. */
static __always_inline int tc_action(struct __sk_buff *skb, enum ndp_reason reason)
{
	if (likely(reason >= NDP_ANSWERED))
		return bpf_redirect(skb->ifindex, 0);
	return reason == NDP_RATE_LIMITED ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

SEC("tc")
int ndp_tc(struct __sk_buff *skb)
{
	const struct ndp_settings *config;
	struct verdict verdict;
	struct ndp_tracer *tracer;
	struct solicitation ns;
	void *data, *end;

	if (skb->protocol != bpf_htons(ETHERTYPE_IPV6) || tc_pull_headers(skb))
		return TC_ACT_UNSPEC;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (!is_solicitation(data, end))
		return tc_pass_other(skb);
	verdict = (struct verdict){};
	config = begin(&ns, data, skb->ifindex);
	if (!config || tc_pull_frame(skb))
		return TC_ACT_UNSPEC;
	tc_judge(skb, config, &ns, &verdict);
	verdict.reason = conceal(verdict.reason, config->l3_ifindex);
	tracer = tc_trace(skb, config, &ns);
	if (likely(verdict.reason >= NDP_ANSWERED))
		verdict.reason = tc_answer(skb, config, &ns, &verdict, tracer);
	count(&verdict, ns.dry_run, tracer);
	return tc_action(skb, verdict.reason);
}

#ifndef NDXDP_BCC
char LICENSE[] SEC("license") = "GPL";
#endif
