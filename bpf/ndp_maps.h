/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The maps, and the lookups that more than one step of the data path needs.
 *
 * The names of the maps are the names of their pins, which outlive an upgrade of ndxdp. So some
 * keep an older word: `groups` and `group_counters` have rule classes, `vias` has output
 * interfaces.
 */
#ifndef NDP_MAPS_H
#define NDP_MAPS_H

/* ---- rules ---------------------------------------------------------------------------- */

/* Rules of single addresses: the table, see struct ndp_address_table. A hash table, because a trie
 * visits a node for each differing bit. A table that can be mapped begins at a page, and so each
 * bucket at a cache line.
 */
DEFINE_ARRAY_OF_ARRAYS(addresses, 1, struct ndp_bucket, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
/* One bit per hash of an address: see ndp_hint(). */
DEFINE_MAP(hints, BPF_MAP_TYPE_ARRAY, __u32, __u64, NDP_HINTS, 0);
/* Rules of prefixes. */
DEFINE_MAP(prefixes, BPF_MAP_TYPE_LPM_TRIE, struct ndp_prefix, struct ndp_rule,
	   NDP_MAX_PREFIXES, BPF_F_NO_PREALLOC);
/* Rule classes by their slot: an array for the first slots, which is quick, and a hash for the
 * others.
 */
DEFINE_MAP(groups, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_rule_class, NDP_FIRST_RULE_CLASSES, 0);
DEFINE_ARRAY_OF_HASHES(more_classes, BPF_MAP_TYPE_HASH, __u32, struct ndp_rule_class);
/* The output interfaces that the rules of a class accept. */
DEFINE_ARRAY_OF_HASHES(vias, BPF_MAP_TYPE_HASH, struct ndp_dev, __u8);

/* ---- the interface -------------------------------------------------------------------- */

DEFINE_MAP(settings, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_settings, 1, 0);
/* The end of the host's lease, beside the settings, which several processes write as a whole. */
DEFINE_MAP(lease, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_lease, 1, 0);
/* The host's local and anycast routes. The FIB lookup has one result for them and for no route. */
DEFINE_MAP(locals, BPF_MAP_TYPE_LPM_TRIE, struct ndp_prefix, __u8, NDP_MAX_LOCALS,
	   BPF_F_NO_PREALLOC);
/* Live neighbors on the interface's own link. The FIB lookup shows only neighbors on a route. */
DEFINE_MAP(on_link, BPF_MAP_TYPE_HASH, struct address, __u8, NDP_MAX_ON_LINK,
	   BPF_F_NO_PREALLOC);

/* ---- limits --------------------------------------------------------------------------- */

/* Token buckets of answers, and of requests, by MAC. A bucket is the time up to which its tokens
 * are spent.
 */
DEFINE_MAP(limiter, BPF_MAP_TYPE_LRU_HASH, __u64, __u64, NDP_MAX_SOLICITORS, 0);
DEFINE_MAP(requesters, BPF_MAP_TYPE_LRU_HASH, __u64, __u64, NDP_MAX_SOLICITORS, 0);
/* Buckets of each gateway, by MAC. */
DEFINE_MAP(gateways, BPF_MAP_TYPE_HASH, __u64, struct ndp_share, NDP_MAX_GATEWAYS,
	   BPF_F_NO_PREALLOC);
/* Buckets of all other nodes together. */
DEFINE_MAP(shares, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_share, 1, 0);

/* ---- results -------------------------------------------------------------------------- */

/* Solicitations by reason. */
DEFINE_MAP(reasons, BPF_MAP_TYPE_PERCPU_ARRAY, enum ndp_reason, __u64, NDP_REASON_MAX, 0);
/* Solicitations by the slot of the rule class, as in `groups` and `more_classes`. */
DEFINE_MAP(group_counters, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ndp_class_count,
	   NDP_FIRST_RULE_CLASSES, 0);
DEFINE_ARRAY_OF_HASHES(more_counters, BPF_MAP_TYPE_PERCPU_HASH, __u32, struct ndp_class_count);
/* Records of struct ndp_request for the daemon, and what the daemon counts of them. */
DEFINE_RING(requests, NDP_REQUESTS);
DEFINE_MAP(resolver, BPF_MAP_TYPE_ARRAY, __u32, struct ndp_resolver, 1, 0);
/* Records of struct ndp_event for a tracer, and the memory in which they are built. */
DEFINE_RING(events, NDP_EVENTS);
DEFINE_MAP(tracers, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct ndp_tracer, 1, 0);
/* Verdicts of dry runs by the number that the reader has given to its frame. */
DEFINE_MAP(explained, BPF_MAP_TYPE_HASH, __u32, struct ndp_explained, NDP_MAX_DRY_RUNS,
	   BPF_F_NO_PREALLOC);

/* ---- lookups -------------------------------------------------------------------------- */

/* Return the value of a key in the hash that an array of hashes has, or null if there is no hash or
 * no such entry.
 */
static __always_inline void *lookup_in_hash(void *array, const void *key)
{
	__u32 zero = 0;
	void *hash = bpf_map_lookup_elem(array, &zero);

	return hash ? bpf_map_lookup_elem(hash, key) : 0;
}

/* Return the settings. Null never happens, as an array always has its elements, but the verifier
 * requires the check.
 */
static __always_inline const struct ndp_settings *get_settings(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(settings), &zero);
}

/* Return true if the host's lease has lapsed. */
static __always_inline int has_lapsed(void)
{
	__u32 zero = 0;
	const struct ndp_lease *held = bpf_map_lookup_elem(MAP(lease), &zero);

	return !held || bpf_ktime_get_boot_ns() >= held->until;
}

/* Return the interface's MAC as a number. */
static __always_inline __u64 own_mac(const struct ndp_settings *config)
{
	_Static_assert(__builtin_offsetof(struct ndp_settings, mac) % 8 == 0,
		       "the MAC can be read as a mac_leading");
	return mac_load_leading((const void *)config->mac);
}

/* Return the MAC that the profile advertises in place of the interface's. */
static __always_inline const struct mac_trailing *profile_mac(const struct profile *profile)
{
	_Static_assert(__builtin_offsetof(struct profile, lladdr) == 2,
		       "the profile begins with a mac_trailing");
	return (const void *)profile;
}

/* Return the rule of an address that is in the bucket, as in ndp_bucket.rules, or 0. The rules are
 * read before the addresses, which are written first. A branch for each slot would be mispredicted
 * in half of the cases.
 */
static __always_inline __u32 find_in_bucket(const struct ndp_bucket *bucket,
					    const struct address *target)
{
	const volatile __u32 *rules = bucket->rules;
	__u32 words[NDP_BUCKET_SLOTS], found = 0, i;
	const struct address *address;
	__u64 differs;

#pragma unroll
	for (i = 0; i < NDP_BUCKET_SLOTS; i++)
		words[i] = rules[i];
#pragma unroll
	for (i = 0; i < NDP_BUCKET_SLOTS; i++) {
		address = (const void *)bucket->addresses[i];
		differs = (address->d[0] ^ target->d[0]) | (address->d[1] ^ target->d[1]);
		found |= words[i] & -is_zero(differs >> 1 | (differs & 1));
	}
	return found;
}

/* Return the rule of a single address, as in ndp_bucket.rules, or 0. The address is passed in two
 * words of `struct address`: the verifier follows such a function once, and not for each call.
 */
GLOBAL_SUBPROGRAM __u32 find_address(__u64 first, __u64 second)
{
	const struct address target = {.d = {first, second}};
	const struct ndp_address_table *header;
	const struct ndp_bucket *bucket;
	__u32 found = 0, index = 0, i;
	void *table;
	__u64 more;

	_Static_assert(sizeof(*header) == sizeof(*bucket), "the header is an element");
	table = bpf_map_lookup_elem(MAP(addresses), &index);
	if (!table)
		return 0; /* never, but the verifier requires the check */
	header = bpf_map_lookup_elem(table, &index);
	if (!header)
		return 0;
	index = ndp_bucket_of(target.w, header);
#pragma unroll /* without CAP_PERFMON, the verifier would follow a loop beyond its end */
	for (i = 0; i < NDP_PROBES; i++) {
		bucket = bpf_map_lookup_elem(table, &index);
		if (!bucket)
			break;
		found = find_in_bucket(bucket, &target);
		/* One branch, after which the verifier does not know whether there is a rule. */
		more = bucket->passed & -is_zero(found);
		barrier_var(more);
		if (!more)
			break;
		index++;
	}
	return found;
}

/* Return the most specific rule of the target. A single address beats any prefix. Most targets have
 * no rule of their own: a zero bit in `hints` shows that without a look at the table, which may have
 * to come from memory.
 */
static __always_inline struct rule find_rule(const struct solicitation *ns)
{
	__u32 hint = ndp_hint(ns->target.w), word = hint / 64;
	const __u64 *bits = bpf_map_lookup_elem(MAP(hints), &word), *wider;
	const struct rule of_address = {.prefix_len = 128};
	struct rule rule = {};

	if (unlikely(bits && *bits >> hint % 64 & 1))
		rule.halves[0] = find_address(ns->target.d[0], ns->target.d[1]);
	if (unlikely(rule.word)) {
		/* The verifier would follow the rest once more, by the bits that are known. */
		rule.word = conceal(rule.word | of_address.word, ns->target.d[1]);
	} else {
		wider = bpf_map_lookup_elem(MAP(prefixes), &ns->prefixlen);
		if (likely(wider))
			rule.word = *wider;
	}
	barrier_var(rule.word); /* otherwise the compiler keeps each field by itself */
	return rule;
}

/* Copy the profile of the rule's class to `to`, which is zero, and stays so if there is no rule. */
static __always_inline void load_profile(struct profile *to, const struct rule rule)
{
	__u64 *words = (void *)to;
	const __u64 *found;
	__u32 slot;

	_Static_assert(__builtin_offsetof(struct profile, dev_set) == 24 &&
			       __builtin_offsetof(struct ndp_rule_class, dev_set) == 24,
		       "a class begins with its profile");
	if (!rule.word)
		return;
	slot = rule.rule_class;
	found = bpf_map_lookup_elem(MAP(groups), &slot);
	if (unlikely(!found))
		found = lookup_in_hash(MAP(more_classes), &slot);
	if (!found)
		return;
	words[0] = found[0];
	words[1] = found[1];
	words[2] = found[2];
	to->dev_set = *(const __u32 *)(found + 3);
	to->exists = 1;
}

/* Return true if the kernel delivers packets for the target to this host. */
static __always_inline int is_local(const struct solicitation *ns)
{
	return bpf_map_lookup_elem(MAP(locals), &ns->prefixlen) != 0;
}

#endif
