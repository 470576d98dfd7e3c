/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Rate limits on answers, and on requests to the daemon.
 */
#ifndef NDP_LIMITS_H
#define NDP_LIMITS_H

struct limit {
	__u64 interval; /* ns between two; 0: no limit */
	__u64 credit;	/* ns by which a sender may be early */
};

/* The limits on answers, or on requests, as they lie in struct ndp_settings. */
struct limits {
	struct limit per_mac;	  /* on the soliciting MAC, and on the answered MAC */
	struct limit total;	  /* on all nodes together that are no gateways */
	struct limit per_gateway; /* on each gateway, in place of the other two */
};

#define OFFSET(field) __builtin_offsetof(struct ndp_settings, field)
_Static_assert(OFFSET(rate_credit) == OFFSET(rate_interval) + 8 &&
		       OFFSET(total_interval) == OFFSET(rate_interval) + 16 &&
		       OFFSET(gateway_interval) == OFFSET(rate_interval) + 32,
	       "the limits on answers lie as in struct limits");
_Static_assert(OFFSET(resolve_credit) == OFFSET(resolve_interval) + 8 &&
		       OFFSET(resolve_total_interval) == OFFSET(resolve_interval) + 16 &&
		       OFFSET(resolve_gateway_interval) == OFFSET(resolve_interval) + 32,
	       "the limits on requests lie as in struct limits");
#undef OFFSET

/* Return all ones if x is negative, else 0, without a branch: the verifier would follow the rest of
 * the program once for each way.
 */
static __always_inline __u64 sign(__s64 x)
{
	__u64 mask = x >> 63;

	barrier_var(mask);
	return mask;
}

/* Take one token out of a bucket, which is the time up to which its tokens are spent (GCRA).
 * Return the bucket's new time, or 0 if the bucket is empty.
 */
static __always_inline __u64 take_token(__u64 spent, __u64 now, const struct limit limit)
{
	__u64 debt = spent - now;

	debt &= ~sign(debt);
	/* A debt that this limit cannot cause is an earlier limit's, and is forgiven. */
	debt &= ~sign(limit.credit + limit.interval - debt);
	return (now + debt + limit.interval) & ~sign(limit.credit - debt);
}

/* Take a token out of `share`, and out of the `buckets` of two MACs: the one that solicits, and
 * the one that is answered. Anybody can forge the first to have frames sent to the second. Return
 * 1, or 0 if any bucket is empty; then no bucket is changed, nor in a dry run. Two CPUs that read
 * a bucket at the same time may allow one answer too many.
 */
static __always_inline int take_tokens(const struct solicitation *ns, __u64 *share,
				       const struct limit total, void *buckets,
				       const struct limit per_mac)
{
	__u64 now = bpf_ktime_get_ns(), shared = 0, source, peer;
	__u64 *by_source, *by_peer;

	if (total.interval) {
		shared = take_token(*share, now, total);
		if (!shared)
			return 0;
	}
	if (per_mac.interval) {
		by_source = bpf_map_lookup_elem(buckets, &ns->eth_source);
		by_peer = bpf_map_lookup_elem(buckets, &ns->peer);
		source = take_token(by_source ? *by_source : now, now, per_mac);
		peer = take_token(by_peer ? *by_peer : now, now, per_mac);
		if (!source || !peer)
			return 0;
		if (ns->dry_run)
			return 1;
		if (by_source)
			*by_source = source;
		else
			bpf_map_update_elem(buckets, &ns->eth_source, &source, BPF_ANY);
		if (ns->peer != ns->eth_source) {
			if (by_peer)
				*by_peer = peer;
			else
				bpf_map_update_elem(buckets, &ns->peer, &peer, BPF_ANY);
		}
	}
	if (shared && !ns->dry_run)
		*share = shared;
	return 1;
}

/* What a token is for. */
enum purpose {
	FOR_ANSWER,
	FOR_REQUEST,
};

/* Charge one answer, or one request, to the node that solicits. Return NDP_CONTINUE, or the reason
 * of the limit that forbids it. A gateway's share serves only answers to the gateway itself: a
 * node that forges a gateway's MAC to have another node answered does not use up that share.
 */
static __always_inline enum ndp_reason
charge(const struct solicitation *ns, const struct ndp_settings *config, enum purpose purpose)
{
	const struct limits *limits =
		(const void *)(purpose == FOR_ANSWER ? &config->rate_interval
						     : &config->resolve_interval);
	void *buckets = purpose == FOR_ANSWER ? MAP(limiter) : MAP(requesters);
	struct limit total = limits->total, per_mac = limits->per_mac;
	enum ndp_reason over = NDP_RATE_LIMITED;
	struct ndp_share *share = 0;
	__u32 zero = 0;

	if (ns->peer == ns->eth_source)
		share = bpf_map_lookup_elem(MAP(gateways), &ns->peer);
	if (share) {
		total = limits->per_gateway;
		per_mac.interval = 0;
		over = NDP_GATEWAY_LIMITED;
	} else {
		share = bpf_map_lookup_elem(MAP(shares), &zero);
	}
	if (!share ||
	    take_tokens(ns, purpose == FOR_ANSWER ? &share->answers : &share->requests, total,
			buckets, per_mac))
		return NDP_CONTINUE;
	return over;
}

#endif
