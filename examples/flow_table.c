// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Counts packets and bytes by IPv4 TCP or UDP flow, in a hash that grows as flows appear. */
#include "packet.h"

struct flow_key {
	__be32 src;
	__be32 dst;
	__be16 src_port;
	__be16 dst_port;
	__u8 protocol;
	__u8 zero[3]; /* a key is compared as bytes: padding has to be somebody's */
};

struct flow {
	__u64 packets;
	__u64 bytes;
	__u32 first_length; /* of the packet that opened the flow */
	__u32 first_tos;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* Fills in the key; false if the packet belongs to no flow. */
static __always_inline int flow_of(void *data, void *end, struct flow_key *key, __u32 *tos)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *ports; /* TCP starts with the same two fields */

	if (!FITS(eth, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	if (!FITS(ip, end) || ip->version != 4 || ip->ihl < 5)
		return 0;
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return 0;
	if (ip->frag_off & IPV4_NOT_FIRST)
		return 0;
	ports = (void *)ip + ip->ihl * 4;
	if (!FITS(ports, end))
		return 0;
	key->src = ip->saddr;
	key->dst = ip->daddr;
	key->src_port = ports->source;
	key->dst_port = ports->dest;
	key->protocol = ip->protocol;
	*tos = ip->tos;
	return 1;
}

SEC("xdp")
int flow_table(struct xdp_md *ctx)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);
	struct flow_key key = {};
	struct flow *flow, fresh = {};

	if (!flow_of(data, end, &key, &fresh.first_tos))
		return XDP_PASS;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow) {
		fresh.first_length = end - data;
		/* Another CPU may have been first: whose entry it is does not matter. */
		bpf_map_update_elem(&flows, &key, &fresh, BPF_NOEXIST);
		flow = bpf_map_lookup_elem(&flows, &key);
		if (!flow)
			return XDP_PASS; /* the table is full */
	}
	__sync_fetch_and_add(&flow->packets, 1);
	__sync_fetch_and_add(&flow->bytes, end - data);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
