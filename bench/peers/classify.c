// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The same work as an XDP program and as one for DPDK's librte_bpf (dpdk_bpf.c): IPv4 UDP to ports
 * below 1024 goes back to where it came from, all else passes.
 */
#include "packet.h"

#define CHECKED 64

static __always_inline int work(void *data)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__be32 addr;

	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	if (bpf_ntohs(udp->dest) >= 1024)
		return XDP_PASS;
	addr = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = addr;
	swap_macs(eth);
	return XDP_TX;
}

SEC("xdp")
int classify(struct xdp_md *ctx)
{
	void *data = DATA(ctx);

	return data + CHECKED <= DATA_END(ctx) ? work(data) : XDP_PASS;
}

SEC("dpdk/classify")
int classify_for_dpdk(void *data)
{
	return work(data);
}

char _license[] SEC("license") = "GPL";
