// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One of each: the helpers and maps that the other examples do not use.
 * Drops IPv4 with a bad header checksum, remembers who sent last, and keeps the TCP connections
 * that were opened and not yet closed.
 */
#include "packet.h"

struct connection {
	__be32 src;
	__be32 dst;
	__be16 src_port;
	__be16 dst_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct connection);
	__type(value, __u32);
} open_connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __be32);
	__type(value, __u64);
} recent_sources SEC(".maps");

/* What no two runs agree on is kept apart. */
struct surroundings {
	__u64 ktime_ns;
	__u32 random;
	__u32 cpu;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct surroundings);
} surroundings SEC(".maps");

__u64 runs;           /* .bss */
__u64 next_id = 1000; /* .data */

static __noinline void look_around(void)
{
	__u32 key = 0;
	struct surroundings now = {
		.ktime_ns = bpf_ktime_get_ns(),
		.random = bpf_get_prandom_u32(),
		.cpu = bpf_get_smp_processor_id(),
	};

	bpf_map_update_elem(&surroundings, &key, &now, BPF_ANY);
}

static __noinline void remember_source(__be32 addr)
{
	__u64 one = 1, *packets = bpf_map_lookup_elem(&recent_sources, &addr);

	if (packets)
		__sync_fetch_and_add(packets, 1);
	else
		bpf_map_update_elem(&recent_sources, &addr, &one, BPF_ANY);
}

static __always_inline void track(struct iphdr *ip, struct tcphdr *tcp)
{
	struct connection key = {ip->saddr, ip->daddr, tcp->source, tcp->dest};
	__u32 id;

	if (tcp->fin || tcp->rst) {
		bpf_map_delete_elem(&open_connections, &key);
	} else if (tcp->syn) {
		id = __sync_fetch_and_add(&next_id, 1);
		bpf_map_update_elem(&open_connections, &key, &id, BPF_NOEXIST);
	}
}

SEC("xdp")
int helpers(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__s64 sum;

	__sync_fetch_and_add(&runs, 1);
	look_around();
	if (!FITS(eth, end) || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (!FITS(ip, end) || ip->version != 4 || ip->ihl != 5)
		return XDP_PASS;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0);
	if (sum < 0 || fold(sum) != 0xffff) {
		bpf_printk("bad header checksum from %x, sum %x", bpf_ntohl(ip->saddr), fold(sum));
		return XDP_DROP;
	}
	remember_source(ip->saddr);
	if (ip->protocol == IPPROTO_TCP && !(ip->frag_off & IPV4_NOT_FIRST) && FITS(tcp, end))
		track(ip, tcp);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
