// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* UDP of IPv4 to whoever is at this queue of `xsks`, an AF_XDP socket or a ring of xdpu; all else,
 * and where there is nobody, to the stack.
 */
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

SEC("xdp")
int sample(struct xdp_md *ctx)
{
	void *end = DATA_END(ctx);
	struct ethhdr *eth = DATA(ctx);
	struct iphdr *ip = (void *)(eth + 1);

	if (!FITS(eth, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (!FITS(ip, end) || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "GPL";
