// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The programs that the benchmarks need: who solicits, who counts what comes back, and the two
 * that any responder is held against. `benchmarks/wire.py` compiles and loads them.
 *
 *     solicit   run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES): makes each a fresh solicitation
 *     offer     the same with packets that are no solicitations, to be forwarded
 *     receive   at the solicitor's end: counts advertisements, times them, keeps a sample
 *     reflect   swaps the MACs and sends the frame back: nothing that answers can be faster
 *     pass      passes everything
 *     fresh     makes a solicitation and goes on to the program in `under_test`, for test runs
 */
#include "../bpf/dialect.h"
#include "../bpf/ndp_abi.h"
#include "../bpf/ndp_frame.h"

#define TARGETS	     1310720 /* a million, and the rest of those that are compared */
#define SOURCES	     16	     /* a power of two: soliciting routers take turns */
#define STAMPS	     1024
#define BUCKETS	     4096
#define SAMPLE_EVERY 1024
#define FLOOD	     0x100  /* the first of the other sources and MACs */
#define BESIDE	     0xfeed /* the legitimate router: the end of its address and MAC */
#define MILLISECOND  1000000
#define CLOCKED	     256 /* of an unpaced flood, one frame of so many looks at the clock */

/* What to send, and what was sent. Written by Python before a run. */
struct plan {
	__u64 interval; /* ns from one frame to the next; 0: as fast as it goes */
	__u64 due;	/* CLOCK_MONOTONIC ns of the next one */
	__u64 sent;	/* frames */
	__u64 dues;	/* frames of the one beside the flood */
	__u64 beside;	/* one frame of so many is the legitimate router's; 0: none */
	__u64 first;	/* where in `targets` this run begins */
	__u64 began;	/* CLOCK_MONOTONIC ns of the first frame */
	__u64 ended;	/* and of the last one, or one shortly before */
	__u32 targets;	/* different ones */
	__u32 timed;	/* 1: each is stamped, and the way back timed */
	__u32 reserved;
	__u32 macs; /* the flood's soliciting MACs: a power of two, at most SOURCES */
};

/* The headers of a packet that is forwarded: Ethernet, IPv6, UDP. */
struct offered {
	__u16 half_words[31];
};

/* The reflector's: apart from what the program makes of a frame. */
struct mac {
	__u16 half_words[3];
};

struct macs {
	struct mac dst;
	struct mac src;
};

struct stamp {
	__u64 time;
	__be32 low; /* of the target, its last 4 bytes */
	__u32 reserved;
};

struct counts {
	__u64 received;	 /* frames, of any kind */
	__u64 answers;	 /* advertisements of 86 bytes */
	__u64 beside;	 /* of them, those to the legitimate router */
	__u64 reflected; /* solicitations that came back */
	__u64 timed;	 /* answers that had a stamp */
	__u64 lost;	 /* samples without a place in the ring */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct plan);
	__uint(max_entries, 1);
} plan SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct address);
	__uint(max_entries, TARGETS);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct stamp);
	__uint(max_entries, STAMPS);
} stamps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counts);
	__uint(max_entries, 1);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, BUCKETS);
} took SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 524288);
} sample SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} under_test SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct offered);
	__uint(max_entries, 1);
} offered SEC(".maps");

static __always_inline struct plan *its_turn(void)
{
	__u32 zero = 0;
	struct plan *now = bpf_map_lookup_elem(&plan, &zero);
	__u64 time;

	if (!now || (!now->interval && now->sent % CLOCKED))
		return now;
	time = bpf_ktime_get_ns();
	if (time < now->due)
		return 0;
	if (!now->began)
		now->began = time;
	now->ended = time;
	/* Who was held up does not catch up: that would be a burst of another rate. */
	now->due =
		time - now->due > MILLISECOND ? time + now->interval : now->due + now->interval;
	return now;
}

/* The next solicitation of the plan, whole: what a recycled page holds is the last answer. */
static __always_inline int solicitation(struct xdp_md *ctx, struct plan *plan)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethernet *eth = (void *)(long)ctx->data - PAD;
	struct ipv6 *ip6 = (void *)(eth + 1);
	struct neighbor *ns = (void *)(ip6 + 1);
	struct lladdr_option *sllao = (void *)(ns + 1);
	__u64 sum, turn = plan->sent++;
	struct address target, group, source;
	__u32 index, payload = sizeof(*ns);
	__u16 who = FLOOD + (turn & (SOURCES - 1)), last = FLOOD + (turn & (plan->macs - 1));
	struct mac_trailing option;
	struct mac_leading mac;
	struct address *asked;
	struct stamp *stamp;

	if ((void *)(ns + 1) > end)
		return -1;
	if (plan->beside && turn % plan->beside == 0) {
		plan->dues++;
		who = last = BESIDE;
	}
	index = plan->first + turn % (plan->targets ?: 1);
	asked = bpf_map_lookup_elem(&targets, &index);
	if (!asked)
		return -1;
	target = *asked;
	source = (struct address){.w = {bpf_htonl(0xfe800000), 0, 0, bpf_htonl(who)}};
	group = (struct address){
		.w = {bpf_htonl(0xff020000), 0, bpf_htonl(1),
		      bpf_htonl(0xff000000) | (target.w[3] & bpf_htonl(0x00ffffff))}};

	mac = (struct mac_leading){.mac_first = bpf_htonl(0x02000000),
				   .mac_rest = bpf_htons(last),
				   .after = bpf_htons(ETHERTYPE_IPV6)};
	eth->dst.mac_first = bpf_htons(0x3333);
	eth->dst.mac_rest = group.w[3];
	eth->src = mac;
	sum = (__u64)bpf_htonl(PROTOCOL_ICMPV6) + bpf_htons(TYPE_NS << 8);
	if ((void *)(sllao + 1) <= end) { /* a frame of 78 bytes has none */
		payload += sizeof(*sllao);
		mac_store_trailing(&option, bpf_htons(OPTION_SLLAO << 8 | 1),
				   mac_load_leading(&mac));
		sllao->mac = option;
		sum += (__u64)option.halves[0] + option.halves[1];
	}
	ip6->version_class_flow = bpf_htonl(0x60000000);
	ip6->payload_len = bpf_htons(payload);
	ip6->next_header = PROTOCOL_ICMPV6;
	ip6->hop_limit = 255;
	ip6->src = source;
	ip6->dst = group;
	sum += sum_address(&source) + sum_address(&group) + sum_address(&target);
	sum += bpf_htonl(payload);
	ns->icmp.type = TYPE_NS;
	ns->icmp.code = 0;
	ns->icmp.checksum = ~fold(sum);
	ns->flags = 0;
	ns->target = target;

	if (plan->timed) {
		index = bpf_htonl(target.w[3]) % STAMPS;
		stamp = bpf_map_lookup_elem(&stamps, &index);
		if (stamp) {
			stamp->low = target.w[3];
			stamp->time = bpf_ktime_get_ns();
		}
	}
	return 0;
}

SEC("xdp")
int solicit(struct xdp_md *ctx)
{
	struct plan *plan = its_turn();

	return plan && !solicitation(ctx, plan) ? XDP_TX : XDP_DROP;
}

SEC("xdp.frags")
int fresh(struct xdp_md *ctx)
{
	struct plan *plan = its_turn();

	if (plan && !solicitation(ctx, plan))
		bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int offer(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct offered *to = (void *)(long)ctx->data;
	struct plan *plan = its_turn();
	__u32 zero = 0;
	struct offered *from = bpf_map_lookup_elem(&offered, &zero);

	if (!plan || !from || (void *)(to + 1) > end)
		return XDP_DROP;
	plan->sent++;
	__builtin_memcpy(to, from, sizeof(*to));
	return XDP_TX;
}

/* 64 buckets for each power of two: a figure is right to 1.6 %. */
static __always_inline __u32 bucket(__u64 ns)
{
	__u32 power = 0, i;

	for (i = 0; i < 32 && ns >> power >= 128; i++)
		power++;
	return power * 64 + (ns >> power);
}

static __always_inline void time_answer(__be32 low, struct counts *seen)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 index = bpf_htonl(low) % STAMPS;
	struct stamp *stamp = bpf_map_lookup_elem(&stamps, &index);
	__u64 *count;

	if (!stamp || !stamp->time || stamp->low != low)
		return;
	index = bucket(now - stamp->time);
	stamp->time = 0;
	count = bpf_map_lookup_elem(&took, &index);
	if (!count)
		return;
	++*count;
	seen->timed++;
}

SEC("xdp")
int receive(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	const void *data = (void *)(long)ctx->data;
	const struct ethernet *eth = data - PAD;
	const struct ipv6 *ip6 = (const void *)(eth + 1);
	const struct neighbor *na = (const void *)(ip6 + 1);
	struct plan *expected;
	struct counts *seen;
	__u32 zero = 0;
	void *kept;

	seen = bpf_map_lookup_elem(&counts, &zero);
	expected = bpf_map_lookup_elem(&plan, &zero);
	if (!seen || !expected)
		return XDP_DROP;
	seen->received++;
	if (data + NA_LEN > end || end - data != NA_LEN ||
	    eth->src.after != bpf_htons(ETHERTYPE_IPV6) || ip6->next_header != PROTOCOL_ICMPV6)
		return XDP_DROP;
	if (na->icmp.type == TYPE_NS)
		seen->reflected++;
	if (na->icmp.type != TYPE_NA)
		return XDP_DROP;
	if (ip6->dst.w[3] == bpf_htonl(BESIDE))
		seen->beside++;
	if (expected->timed)
		time_answer(na->target.w[3], seen);
	if (seen->answers++ % SAMPLE_EVERY == 0) {
		kept = bpf_ringbuf_reserve(&sample, NA_LEN, 0);
		if (!kept) {
			seen->lost++;
		} else if (bpf_xdp_load_bytes(ctx, 0, kept, NA_LEN)) {
			bpf_ringbuf_discard(kept, BPF_RB_NO_WAKEUP);
		} else {
			bpf_ringbuf_submit(kept, BPF_RB_NO_WAKEUP);
		}
	}
	return XDP_DROP;
}

SEC("xdp.frags")
int reflect(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct macs *macs = (void *)(long)ctx->data;
	struct mac was;

	if ((void *)(macs + 1) > end)
		return XDP_PASS;
	was = macs->dst;
	macs->dst = macs->src;
	macs->src = was;
	return XDP_TX;
}

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("tc")
int pass_tc(struct __sk_buff *skb)
{
	return -1; /* TC_ACT_UNSPEC: who comes next decides */
}

char LICENSE[] SEC("license") = "GPL";
