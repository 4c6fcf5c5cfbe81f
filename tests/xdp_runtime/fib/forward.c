// SPDX-License-Identifier: GPL-2.0
/* A router as the kernel's sample xdp_fwd: bpf_fib_lookup says where to, bpf_redirect goes there.
 * What it cannot forward is the stack's.
 *
 * clang -O2 -g -target bpf -I../../../examples -c forward.c -o forward.o
 */
#include "packet.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline int forward(struct xdp_md *ctx, struct ethhdr *eth,
				   struct bpf_fib_lookup *fib)
{
	fib->ifindex = ctx->ingress_ifindex;
	if (bpf_fib_lookup(ctx, fib, sizeof(*fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return 0;
	__builtin_memcpy(eth->h_dest, fib->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib->smac, ETH_ALEN);
	return 1;
}

SEC("xdp")
int router(struct xdp_md *ctx)
{
	void *end = DATA_END(ctx);
	struct ethhdr *eth = DATA(ctx);
	struct bpf_fib_lookup fib = {};

	if (!FITS(eth, end))
		return XDP_DROP;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		__u32 sum;

		if (!FITS(ip, end) || ip->ttl <= 1)
			return XDP_PASS;
		fib.family = AF_INET;
		fib.tos = ip->tos;
		fib.l4_protocol = ip->protocol;
		fib.tot_len = bpf_ntohs(ip->tot_len);
		fib.ipv4_src = ip->saddr;
		fib.ipv4_dst = ip->daddr;
		if (!forward(ctx, eth, &fib))
			return XDP_PASS;
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if (!FITS(ip, end) || ip->hop_limit <= 1)
			return XDP_PASS;
		fib.family = AF_INET6;
		fib.flowinfo = *(__be32 *)ip & bpf_htonl(0x0fffffff);
		fib.l4_protocol = ip->nexthdr;
		fib.tot_len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		__builtin_memcpy(fib.ipv6_src, &ip->saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &ip->daddr, 16);
		if (!forward(ctx, eth, &fib))
			return XDP_PASS;
		ip->hop_limit--;
	} else {
		return XDP_PASS;
	}
	return bpf_redirect(fib.ifindex, 0);
}

char _license[] SEC("license") = "GPL";
