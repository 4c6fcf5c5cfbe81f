// SPDX-License-Identifier: Apache-2.0
// A packet says behind its Ethernet header what is to be done with it.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_pull_data(struct xdp_md *ctx, __u32 len) __ksym;

char _license[] SEC("license") = "GPL";

struct order {
	__u32 verdict, ifindex, pull;
	__s32 head, tail;
};

static __always_inline int obey(struct xdp_md *ctx)
{
	struct order o;

	if (bpf_xdp_load_bytes(ctx, 14, &o, sizeof(o)))
		return XDP_ABORTED;
	if (o.pull)
		bpf_xdp_pull_data(ctx, o.pull);
	if (o.head)
		bpf_xdp_adjust_head(ctx, o.head);
	if (o.tail)
		bpf_xdp_adjust_tail(ctx, o.tail);
	if (o.verdict == XDP_REDIRECT)
		return bpf_redirect(o.ifindex, 0);
	return o.verdict;
}

SEC("xdp.frags")
int frags(struct xdp_md *ctx)
{
	return obey(ctx);
}

SEC("xdp")
int linear(struct xdp_md *ctx)
{
	return obey(ctx);
}
