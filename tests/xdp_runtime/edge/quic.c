// A QUIC edge: connection ids of long and short headers, variable-length integers, server ids.
#include "edge.h"
RESULTS(16)

struct server {
	__u8 mac[6];
	__u16 weight;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct server);
} servers SEC(".maps");

struct cid {
	__u8 len;
	__u8 bytes[20];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct cid);
	__type(value, __u32);
} connections SEC(".maps");

// A variable-length integer and how many bytes it takes, or -1.
static __always_inline int varint(__u8 *at, __u8 *end, __u64 *out)
{
	if (at + 1 > end)
		return -1;
	switch (at[0] >> 6) {
	case 0:
		*out = at[0];
		return 1;
	case 1:
		if (at + 2 > end)
			return -1;
		*out = bpf_ntohs(*(__u16 *)at) & 0x3fff;
		return 2;
	case 2:
		if (at + 4 > end)
			return -1;
		*out = bpf_ntohl(*(__u32 *)at) & 0x3fffffff;
		return 4;
	default:
		if (at + 8 > end)
			return -1;
		*out = bpf_be64_to_cpu(*(__u64 *)at) & ~(3ull << 62);
		return 8;
	}
}

SEC("xdp") int quic(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	struct ethhdr *eth = data;
	struct iphdr *ip = data + 14;
	struct udphdr *udp;
	struct cid cid = {};
	struct server *server;
	__u32 id, *known;
	__u8 *q;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) ||
	    ip->protocol != IPPROTO_UDP || ip->ihl < 5)
		return XDP_PASS;
	udp = (void *)ip + ip->ihl * 4;
	if ((void *)(udp + 1) > end || udp->dest != bpf_htons(443))
		return XDP_PASS;
	q = (void *)(udp + 1);
	if (q + 1 > (__u8 *)end)
		return XDP_DROP;
	if (q[0] & 0x80) {
		__u64 token;
		__u32 i;
		int size;

		if (q + 6 > (__u8 *)end)
			return XDP_DROP;
		put(1, bpf_ntohl(*(__u32 *)(q + 1)));
		cid.len = q[5];
		if (cid.len > 20)
			return XDP_DROP;
		q += 6;
		for (i = 0; i < 20; i++) {
			if (i >= cid.len)
				break;
			if (q + i + 1 > (__u8 *)end)
				return XDP_DROP;
			cid.bytes[i] = q[i];
		}
		q += cid.len;
		if (q + 1 > (__u8 *)end)
			return XDP_DROP;
		i = q[0];
		if (i > 20)
			return XDP_DROP;
		q += i + 1;
		size = varint(q, end, &token);
		if (size < 0)
			return XDP_DROP;
		put(2, token);
		put(3, size);
	} else {
		if (q + 9 > (__u8 *)end)
			return XDP_DROP;
		cid.len = 8;
		__builtin_memcpy(cid.bytes, q + 1, 8);
	}
	known = bpf_map_lookup_elem(&connections, &cid);
	if (known) {
		id = *known;
		put(4, 1);
	} else {
		id = (cid.bytes[0] << 8 | cid.bytes[1]) % 13;
		bpf_map_update_elem(&connections, &cid, &id, BPF_ANY);
	}
	server = bpf_map_lookup_elem(&servers, &id);
	if (!server || !server->weight)
		return XDP_ABORTED;
	__builtin_memcpy(eth->h_source, eth->h_dest, 6);
	__builtin_memcpy(eth->h_dest, server->mac, 6);
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
