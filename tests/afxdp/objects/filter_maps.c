// SPDX-License-Identifier: Apache-2.0
// Maps that a filter can ask, and some that it cannot; what comes in is dropped.
#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

#define MAP(name, kind, key_type, value_type, entries, how) \
	struct { \
		__uint(type, kind); \
		__type(key, key_type); \
		__type(value, value_type); \
		__uint(max_entries, entries); \
		__uint(map_flags, how); \
	} name SEC(".maps")

struct vip {
	union {
		__be32 vip;
		__be32 vipv6[4];
	};
	__u16 port;
	__u8 proto;
};

struct flow {
	__be32 saddr, daddr;
	__be16 sport, dport;
	__u8 proto, pad[3];
};

struct flow6 {
	struct in6_addr src_ip, dst_ip;
	__be16 src_port, dst_port;
	__u32 protocol;
};

struct net {
	__u32 prefixlen;
	__be32 daddr;
};

struct net6 {
	__u32 prefixlen;
	__u8 data[16];
};

struct bits {
	__u32 src : 8, dst : 24;
};

struct number {
	__u32 src;
	__u16 dport, pad;
};

struct tag {
	__be16 vlan_id, h_proto;
};

MAP(vips, BPF_MAP_TYPE_HASH, struct vip, __u64, 64, 0);
MAP(flows, BPF_MAP_TYPE_LRU_HASH, struct flow, __u64, 64, 0);
MAP(flows6, BPF_MAP_TYPE_LRU_PERCPU_HASH, struct flow6, __u64, 64, 0);
MAP(nets, BPF_MAP_TYPE_LPM_TRIE, struct net, __u64, 64, BPF_F_NO_PREALLOC);
MAP(nets6, BPF_MAP_TYPE_LPM_TRIE, struct net6, __u64, 64, BPF_F_NO_PREALLOC);
MAP(Ports, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1024, 0);
MAP(protos, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 256, 0);
MAP(tagged, BPF_MAP_TYPE_PERCPU_HASH, struct tag, __u64, 64, 0);
MAP(plain, BPF_MAP_TYPE_HASH, __u32, __u64, 64, 0);
MAP(short_key, BPF_MAP_TYPE_HASH, __u16, __u64, 64, 0);
MAP(bits, BPF_MAP_TYPE_HASH, struct bits, __u64, 64, 0);
MAP(numbers, BPF_MAP_TYPE_HASH, struct number, __u64, 64, 0);
MAP(secret, BPF_MAP_TYPE_HASH, __be32, __u64, 64, BPF_F_WRONLY);
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, 8);
	__uint(value_size, 8);
	__uint(max_entries, 64);
} untyped SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(key_size, 256);
	__uint(value_size, 8);
	__uint(max_entries, 64);
} long_key SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

SEC("xdp")
int filter_maps(struct xdp_md *ctx)
{
	__u32 key = 700;
	__u32 *port = bpf_map_lookup_elem(&Ports, &key);

	if (port && *port == 77) /* a program may change what it is asked by */
		*port = 0;
	return XDP_DROP;
}
