// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sorts TCP packets by their flags and destination port into classes, and counts each. */
#include "packet.h"

enum { OTHER, SYN, SYN_ACK, FIN, RST, DATA_OR_ACK, CLASSES };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CLASSES);
	__type(key, __u32);
	__type(value, __u64);
} classes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __be16);
	__type(value, __u64);
} ports SEC(".maps");

static __always_inline __u32 class_of(const struct tcphdr *tcp)
{
	if (tcp->rst)
		return RST;
	if (tcp->fin)
		return FIN;
	if (tcp->syn)
		return tcp->ack ? SYN_ACK : SYN;
	return tcp->ack ? DATA_OR_ACK : OTHER;
}

SEC("xdp")
int tcp_classify(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp;
	__u64 *count;
	__u32 class;

	if (!FITS(ip, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (ip->protocol != IPPROTO_TCP || ip->ihl < 5)
		return XDP_PASS;
	tcp = (void *)ip + ip->ihl * 4;
	if (!FITS(tcp, end))
		return XDP_DROP;
	class = class_of(tcp);
	count = bpf_map_lookup_elem(&classes, &class);
	if (count)
		*count += 1;
	count = bpf_map_lookup_elem(&ports, &tcp->dest);
	if (!count)
		return XDP_PASS;
	__sync_fetch_and_add(count, 1);
	return class == OTHER ? XDP_DROP : XDP_TX;
}

char _license[] SEC("license") = "GPL";
