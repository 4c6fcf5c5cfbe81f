// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Makes another packet of the one it is given, and tail-calls the program under test; the same
 * packets in the same order as the port of bench/micro/many.py makes.  -DFLOWS= -DKIND= */
#include "micro.h"

#define FLOW 0 /* one of FLOWS source addresses, at random */
#define NEXT 1 /* one source address after the other */
#define ROUTE4 2 /* to one of FLOWS destinations, at random */
#define ROUTE6 3

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} target SEC(".maps");

struct state { u64 random, count, in_order; };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct state);
} state SEC(".maps");

SEC("xdp") int many(struct xdp_md *ctx)
{
	u8 *data = (u8 *)(long)ctx->data, *end = (u8 *)(long)ctx->data_end;
	u32 key = 0, id;
	u64 x;
	struct state *s = bpf_map_lookup_elem(&state, &key);
	if (!s || data + 64 > end)
		return ABORTED;
	x = s->random * 6364136223846793005ULL + 1442695040888963407ULL;
	s->random = x;
	id = ((x >> 32) * FLOWS) >> 32;
	if (s->in_order || KIND == NEXT)
		id = s->count++;
	if (KIND == ROUTE4)
		*(u32 *)(data + 30) = __builtin_bswap32(
			((id * 2654435761U) & ~255U) | (x >> 24 & 255));
	else if (KIND == ROUTE6)
		*(u64 *)(data + 38) = __builtin_bswap64(
			((id * 11400714819323198485ULL) & ~0xffffULL) | (x >> 16 & 0xffff));
	else
		*(u32 *)(data + 26) = id * 2654435761U;
	bpf_tail_call(ctx, &target, 0);
	return ABORTED;
}

SEC("xdp") int idle(struct xdp_md *ctx)
{
	return PASS;
}
