// bpf_loop: callbacks with state behind their context, nested, ended early, refused counts and flags.
#include "edge.h"
RESULTS(8)

struct state {
	__u64 sum;
	__u32 turns, limit;
	__u8 bytes[64];
	__u64 *cell;
};

static long add(__u64 index, void *ctx)
{
	struct state *s = ctx;

	s->turns++;
	s->sum = (s->sum << 5 ^ s->sum >> 59) + s->bytes[index & 63] + index;
	return index >= s->limit;
}

static long inner(__u32 index, __u64 *sum)
{
	*sum += index * index;
	return 0;
}

static long outer(__u32 index, __u64 *sum)
{
	bpf_loop(index & 7, inner, sum, 0);
	*sum ^= index;
	return *sum > 5000;
}

static long through_map(__u32 index, struct state *s)
{
	if (s->cell)
		*s->cell += index;
	s->limit = index;
	return s->limit == 40;
}

SEC("xdp") int states(struct xdp_md *ctx)
{
	struct state s = {.sum = 7};
	__u8 *data = data_of(ctx);
	long turns;

	if (data + 64 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	__builtin_memcpy(s.bytes, data, 64);
	s.limit = data[3];
	turns = bpf_loop(data[2] & 127, add, &s, 0);
	put(0, s.sum);
	put(1, turns);
	put(2, s.turns);
	data[0] = s.sum;
	data[1] = turns;
	return turns & 1 ? XDP_TX : XDP_PASS;
}

SEC("xdp") int nested(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 sum = 0;

	if (data + 20 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	put(0, bpf_loop(data[14], outer, &sum, 0));
	put(1, sum);
	return sum & 1 ? XDP_TX : XDP_PASS;
}

SEC("xdp") int into_map(struct xdp_md *ctx)
{
	__u32 key = 5;
	struct state s = {.cell = bpf_map_lookup_elem(&results, &key)};

	put(0, bpf_loop(ctx->data_end - ctx->data, through_map, &s, 0));
	put(1, s.limit);
	return XDP_PASS;
}

SEC("xdp") int refusals(struct xdp_md *ctx)
{
	__u64 sum = 0;

	put(0, bpf_loop((1 << 23) + 1, inner, &sum, 0));
	put(1, bpf_loop(-1, inner, &sum, 0));
	put(2, bpf_loop(3, inner, &sum, 1));
	put(3, bpf_loop(0, inner, &sum, 0));
	put(4, bpf_loop(3, inner, &sum, 1ull << 63));
	put(5, sum);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
