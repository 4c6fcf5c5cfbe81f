// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Tells user space of every TCP and UDP packet by a record in a ring buffer. */
#include "packet.h"

struct seen {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u16 bytes;
	__u8 protocol;
	__u8 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} observed SEC(".maps");

SEC("xdp")
int observer(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *ports = (void *)(ip + 1);
	struct seen *seen;

	if (!FITS(ports, end) || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return XDP_PASS;
	seen = bpf_ringbuf_reserve(&observed, sizeof(*seen), 0);
	if (!seen)
		return XDP_ABORTED; /* full: nobody reads */
	seen->saddr = ip->saddr;
	seen->daddr = ip->daddr;
	seen->sport = ports->source;
	seen->dport = ports->dest;
	seen->bytes = end - DATA(ctx);
	seen->protocol = ip->protocol;
	seen->zero = 0;
	bpf_ringbuf_submit(seen, 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
