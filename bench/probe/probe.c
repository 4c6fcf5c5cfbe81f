// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Both ends of a measured path: frames that say when they left, and who reads it. */
#include "packet.h"

#define MAGIC 0x58445055 /* "XDPU" */
#define FINE_BITS 4      /* buckets of a power of two: 16 */
#define BUCKETS (64 << FINE_BITS)

/* Behind Ethernet, IPv4 and UDP. */
struct stamp {
	__u32 magic;
	__u64 left_ns; /* 0: not stamped */
} __attribute__((packed));

struct frame {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct stamp stamp;
} __attribute__((packed));

struct settings {
	__u32 ifindex; /* where the source's frames go */
	__u8 macs[12]; /* destination and source: a frame may come back from a program that changed it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

/* Packets of ours that arrived. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

/* Of those that were stamped: how many took so long. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} histogram SEC(".maps");

static __always_inline int leave(struct xdp_md *ctx, __u64 now_ns)
{
	struct frame *frame = DATA(ctx);
	struct settings *to;
	__u32 first = 0;

	to = bpf_map_lookup_elem(&settings, &first);
	if (!to || !FITS(frame, DATA_END(ctx)))
		return XDP_ABORTED;
	__builtin_memcpy(&frame->eth, to->macs, sizeof(to->macs));
	frame->stamp.left_ns = now_ns;
	return bpf_redirect(to->ifindex, 0);
}

SEC("xdp")
int source(struct xdp_md *ctx)
{
	return leave(ctx, 0);
}

SEC("xdp")
int stamped(struct xdp_md *ctx)
{
	return leave(ctx, bpf_ktime_get_ns());
}

static __always_inline __u32 bucket_of(__u64 ns)
{
	__u32 exponent = 0;

	if (ns >> 32)
		return BUCKETS - 1;
	if (ns >> (exponent + 16))
		exponent += 16;
	if (ns >> (exponent + 8))
		exponent += 8;
	if (ns >> (exponent + 4))
		exponent += 4;
	if (ns >> (exponent + 2))
		exponent += 2;
	if (ns >> (exponent + 1))
		exponent += 1;
	if (exponent < FINE_BITS)
		return ns & ((1 << FINE_BITS) - 1); /* exact */
	return (exponent << FINE_BITS) | ((ns >> (exponent - FINE_BITS)) & ((1 << FINE_BITS) - 1));
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	struct frame *frame = DATA(ctx);
	__u32 key = 0;
	__u64 *count;

	if (!FITS(frame, DATA_END(ctx)) || frame->stamp.magic != MAGIC)
		return XDP_PASS;
	count = bpf_map_lookup_elem(&arrived, &key);
	if (count)
		*count += 1;
	if (frame->stamp.left_ns) {
		key = bucket_of(bpf_ktime_get_ns() - frame->stamp.left_ns);
		count = bpf_map_lookup_elem(&histogram, &key);
		if (count)
			*count += 1;
	}
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
