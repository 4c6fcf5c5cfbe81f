/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the micro programs share.  Each is a body over a packet, built for BPF, and where it uses
 * nothing but an array for this CPU as well: there a lookup is what C makes of it. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define INLINE static inline __attribute__((always_inline))
#define ABORTED 0
#define DROP 1
#define PASS 2
#define TX 3

#ifdef __bpf__

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define PROGRAM(name) \
	SEC("xdp") int name(struct xdp_md *ctx) \
	{ return body_##name((u8 *)(long)ctx->data, (u8 *)(long)ctx->data_end); }
#define MAP(name, kind, entries, key_type, value_type) \
	struct { \
		__uint(type, kind); \
		__uint(max_entries, entries); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")
#define LOOKUP(map, key) bpf_map_lookup_elem(&map, key)

char _license[] SEC("license") = "GPL";

#else

struct state { u8 *data, *end; }; /* how xdp_runtime/state.py's begins */
/* bench/micro/native.py adds the one that is wanted */
#define PROGRAM(name) struct state;
#define NATIVE(name) \
	int native(struct state *state) { return body_##name(state->data, state->end); }
#define MAP(name, kind, entries, key_type, value_type) static value_type name[entries]
#define LOOKUP(map, key) \
	(*(key) < sizeof(map) / sizeof((map)[0]) ? &(map)[*(key)] : (void *)0)
#endif

struct tuple { /* 20 bytes */
	u32 src, dst;
	u16 src_port, dst_port;
	u8 protocol, zero[3];
	u32 zone;
};

/* The 5-tuple of a UDP or TCP packet over IPv4 without options; 0 if it is none. */
INLINE int tuple_of(u8 *data, u8 *end, struct tuple *key)
{
	if (data + 42 > end || *(u16 *)(data + 12) != 0x0008 || data[14] != 0x45)
		return 0;
	key->src = *(u32 *)(data + 26);
	key->dst = *(u32 *)(data + 30);
	key->src_port = *(u16 *)(data + 34);
	key->dst_port = *(u16 *)(data + 36);
	key->protocol = data[23];
	return 1;
}
