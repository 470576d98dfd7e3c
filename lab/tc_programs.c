// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two programs for tc that change nothing. `take` ends the chain with TC_ACT_OK, and the kernel
 * goes on with the frame: programs of Cilium and Beyla do that. `leave` lets the next program have
 * the frame.
 *
 *     clang -O2 -target bpf -c lab/tc_programs.c -o build/tc_programs.o
 *
 * No header is needed for this much, so none has to be installed.
 */
enum { TC_ACT_UNSPEC = -1, TC_ACT_OK = 0 };

struct __sk_buff;

__attribute__((section("tc/take"), used)) int take(struct __sk_buff *ctx)
{
	return TC_ACT_OK;
}

__attribute__((section("tc/leave"), used)) int leave(struct __sk_buff *ctx)
{
	return TC_ACT_UNSPEC;
}

__attribute__((section("license"), used)) char _license[] = "GPL";
