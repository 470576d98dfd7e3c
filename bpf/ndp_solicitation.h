/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A solicitation and its verdict, which the steps of the data path hand on.
 */
#ifndef NDP_SOLICITATION_H
#define NDP_SOLICITATION_H

/* The result of a check that finds nothing against an answer: go on with the next check. No map
 * has this value, and no solicitation ends with it.
 */
#define NDP_CONTINUE NDP_REASON_MAX

/* A struct ndp_rule by value: the verifier would follow the rest of the program once for each map
 * in which a rule may be.
 */
struct rule {
	union {
		__u64 word; /* 0: there is no rule */
		__u32 halves[2];
		struct {
			__u16 rule_class; /* slot of the rule class */
			__u8 answer;	  /* enum ndp_answer */
			__u8 flags;	  /* enum ndp_rule_flag */
			__u8 prefix_len;  /* bits, 0 to 128 */
			__u8 reserved[3];
		};
	};
};

_Static_assert(sizeof(struct rule) == sizeof(struct ndp_rule), "a rule fills one word");

/* Fields of a valid solicitation, copied out of the frame: pointers into the frame are invalid
 * once the frame is resized.
 */
struct solicitation {
	struct address source;
	__u32 padding;	 /* aligns `target` */
	__u32 prefixlen; /* 128; begins the trie key that `target` completes */
	struct address target;
	__u64 eth_source; /* MAC as a number: the Ethernet source */
	__u64 peer;	  /* MAC as a number: the SLLAO, else the Ethernet source */
	__u64 source_sum; /* sum_address(); the answer's checksum has the same words */
	__u64 target_sum; /* sum_address() */
	__u64 dry_run;	  /* the number of a dry run, else 0: see dry_run() */
};

/* Return true for a DAD probe: its source is unspecified. A sum is zero only if each word is. */
static __always_inline int is_dad(const struct solicitation *ns)
{
	return !ns->source_sum;
}

/* The first fields of a struct ndp_rule_class, which say how its rules answer. They are copied
 * because a class is in one of two maps, and the verifier would follow the rest of the program once
 * for each map.
 */
struct profile {
	__u8 na_source; /* enum ndp_na_source */
	__u8 flags;	/* enum ndp_rule_class_flag */
	__u8 lladdr[6];
	__u8 address[16];
	__u32 dev_set;
	__u32 exists; /* 0: there is no rule, or it has no class */
} __attribute__((aligned(8)));

/* The rule is zero, and its class does not exist, as far as the checks did not reach them. */
struct verdict {
	__u64 reason; /* enum ndp_reason */
	struct rule rule;
	struct profile profile;
};

/* Return the reason, at the place where a check fails. Without the barrier, which lets no code move
 * across it, the compiler would set each reason before its check.
 */
static __always_inline enum ndp_reason because(enum ndp_reason reason)
{
	asm volatile("");
	return reason;
}

/* Return the number, and hide from the verifier which one it is: it would follow the rest of the
 * program once for each number that the paths so far have left there.
 * unknown: any number that the verifier does not know.
 */
static __always_inline __u64 conceal(__u64 number, __u64 unknown)
{
	asm volatile("%0 ^= %1" : "+r"(number) : "r"(unknown));
	asm volatile("%0 ^= %1" : "+r"(number) : "r"(unknown));
	return number;
}

#endif
