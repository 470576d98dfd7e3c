/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Showing verdicts: `ndxdp explain` makes a dry run of one frame, `ndxdp trace` watches the
 * solicitations of the interface.
 */
#ifndef NDP_TRACE_H
#define NDP_TRACE_H

/* The interface index of the loopback device, in every network namespace. */
#define LOOPBACK_IFINDEX 1

/* Return the number of a dry run, which is the key of its verdict in `explained`, else 0. The
 * kernel gives a test run the loopback device as its input interface, to which ndxdp never
 * attaches. A dry run is judged like any other solicitation, but is neither counted nor charged to
 * a limit. Its number, see struct ndp_explained, is not 0: it has the IP version, or an EtherType.
 */
static __always_inline __u64 dry_run(const void *data, __u32 ifindex)
{
	const struct ethernet *eth = data - PAD;
	const volatile __u32 *number = (const void *)(eth + 1);

	return -is_zero(ifindex ^ LOOPBACK_IFINDEX) & *number;
}

/* Return the verdict in the layout that Python reads. */
static __always_inline struct ndp_explained explanation(const struct verdict *verdict)
{
	struct ndp_explained found = {.reason = verdict->reason};

	if (verdict->rule.word) {
		found.matched = 1;
		found.rule_class = verdict->rule.rule_class;
		found.answer = verdict->rule.answer;
		found.flags = verdict->rule.flags & NDP_RULE_OWNED;
		found.prefix_len = verdict->rule.prefix_len;
	}
	return found;
}

/* Store the verdict of a dry run under its number. */
static __always_inline void explain(const struct verdict *verdict, __u32 number)
{
	struct ndp_explained found = explanation(verdict);

	bpf_map_update_elem(MAP(explained), &number, &found, BPF_ANY);
}

/* Return this CPU's record if the solicitation is to be traced, else null. Tracing has a deadline,
 * because a tracer that is killed cannot switch it off.
 */
static __always_inline struct ndp_tracer *trace_begin(const struct ndp_settings *config,
						      const struct solicitation *ns)
{
	struct ndp_tracer *tracer;
	__u32 zero = 0;
	__u64 now, seen;

	if (likely(!config->trace_until || ns->dry_run))
		return 0;
	now = bpf_ktime_get_ns();
	tracer = bpf_map_lookup_elem(MAP(tracers), &zero);
	if (!tracer || now > config->trace_until)
		return 0;
	seen = tracer->seen++;
	if (config->trace_every > 1 && seen % config->trace_every)
		return 0;
	tracer->event.time = now;
	return tracer;
}

/* Return how many bytes of the frame to copy into the record, and note both lengths there.
 * frame_len: asked of the kernel once more. The option loop has compared the earlier value, and a
 * bound on that value would make the verifier tell all ways through the loop apart.
 */
static __always_inline __u32 trace_copy_len(struct ndp_tracer *tracer, __u32 frame_len)
{
	__u64 len = frame_len;

	barrier_var(
		len); /* otherwise the compiler compares a copy, and the verifier misses it */
	if (len > NDP_EVENT_FRAME)
		len = NDP_EVENT_FRAME;
	if (len < HEADERS_LEN)
		len = HEADERS_LEN; /* never: the frame has these headers */
	tracer->event.length = frame_len;
	tracer->event.captured = len;
	return len;
}

/* Send the record to the tracer. */
static __always_inline void trace_submit(struct ndp_tracer *tracer,
					 const struct verdict *verdict)
{
	tracer->event.verdict = explanation(verdict);
	if (bpf_ringbuf_output(MAP(events), &tracer->event, sizeof(tracer->event), 0))
		tracer->lost++;
}

#endif
