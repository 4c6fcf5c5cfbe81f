// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Tail calls: one program looks at the ethertype, others handle what they know.
 * The table is filled when the object is loaded; the last slot stays empty, and a tail call into
 * an empty slot falls through.
 */
#include "packet.h"

enum { SLOT_IPV4, SLOT_IPV6, SLOT_ARP, SLOT_OTHER, SLOTS };

struct handlers {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SLOTS);
	__uint(key_size, sizeof(__u32));
	__array(values, int (struct xdp_md *));
};

extern struct handlers handlers; /* below, where the handlers are known */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} tail_misses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} ipv6_packets SEC(".maps");

static __always_inline void count(void *map)
{
	__u32 key = 0;
	__u64 *n = bpf_map_lookup_elem(map, &key);

	if (n)
		__sync_fetch_and_add(n, 1);
}

SEC("xdp")
int dispatcher(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	__u32 slot = SLOT_OTHER;

	if (!FITS(eth, DATA_END(ctx)))
		return XDP_DROP;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		slot = SLOT_IPV4;
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		slot = SLOT_IPV6;
	else if (eth->h_proto == bpf_htons(ETH_P_ARP))
		slot = SLOT_ARP;
	bpf_tail_call(ctx, &handlers, slot);
	count(&tail_misses);
	return XDP_PASS;
}

/* Drops what goes to UDP port 9, the discard service. */
SEC("xdp")
int handle_ipv4(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp;

	if (!FITS(ip, end) || ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	if (ip->frag_off & IPV4_NOT_FIRST)
		return XDP_PASS;
	udp = (void *)ip + ip->ihl * 4;
	if (!FITS(udp, end))
		return XDP_PASS;
	return udp->dest == bpf_htons(9) ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int handle_ipv6(struct xdp_md *ctx)
{
	count(&ipv6_packets);
	return XDP_PASS;
}

SEC("xdp")
int handle_arp(struct xdp_md *ctx)
{
	return XDP_PASS;
}

struct handlers handlers SEC(".maps") = {
	.values = {
		[SLOT_IPV4] = (void *)&handle_ipv4,
		[SLOT_IPV6] = (void *)&handle_ipv6,
		[SLOT_ARP] = (void *)&handle_arp,
	},
};

char _license[] SEC("license") = "GPL";
