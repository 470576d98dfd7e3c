// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Passes everything. It only has to be there: veth hands on what its peer's XDP program sent
 * by XDP_TX only if it runs an XDP program itself.
 *
 *     clang -O2 -target bpf -c lab/xdp_pass.c -o build/xdp_pass.o
 *
 * No header is needed for this much, so none has to be installed.
 */
enum { XDP_PASS = 2 };

struct xdp_md;

__attribute__((section("xdp"), used)) int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

__attribute__((section("license"), used)) char _license[] = "GPL";
