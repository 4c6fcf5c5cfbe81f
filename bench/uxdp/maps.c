// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Several maps for each packet: settings in an array, the sender in a hash, bytes of this CPU. */
#include "packet.h"

struct sender {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __be32);
	__type(value, struct sender);
} senders SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct sender);
} protocols SEC(".maps");

static __always_inline void count(struct sender *sender, __u64 bytes)
{
	sender->packets++;
	sender->bytes += bytes;
}

SEC("xdp")
int maps(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct sender *sender, first = {};
	__u64 bytes = end - DATA(ctx);
	__u32 key = 0, protocol;
	__u32 *verdict = bpf_map_lookup_elem(&settings, &key);

	if (!FITS(ip, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	protocol = ip->protocol;
	sender = bpf_map_lookup_elem(&protocols, &protocol);
	if (sender)
		count(sender, bytes);
	sender = bpf_map_lookup_elem(&senders, &ip->saddr);
	if (sender) {
		count(sender, bytes);
	} else {
		count(&first, bytes);
		bpf_map_update_elem(&senders, &ip->saddr, &first, BPF_NOEXIST);
	}
	return verdict && *verdict ? *verdict & 3 : XDP_DROP;
}

char _license[] SEC("license") = "GPL";
