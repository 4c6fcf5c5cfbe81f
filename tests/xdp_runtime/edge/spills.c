// Pointers put aside on the stack while other parts of it are written at offsets that nobody knows
// before, by instructions and by helpers, in loops and out of them.
#include "edge.h"
RESULTS(16)

// In registers' place: the compiler has to keep these on the stack.
#define CLOBBER asm volatile("" ::: "r6", "r7", "r8", "r9", "memory")

SEC("xdp") int packet(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx);
	volatile __u8 buffer[32] = {};
	__u32 sum = 0;

	if (data + 20 > end)
		return XDP_DROP;
	for (int i = 0; i < 12; i++) {
		CLOBBER;
		buffer[data[i] & 31] += data[i + 8];
		if (data[i] == 7)
			break;
	}
	CLOBBER;
	for (int i = 0; i < 32; i++)
		sum = sum * 33 + buffer[i];
	*(__u32 *)data = sum;
	data[7] = buffer[data[6] & 31];
	return sum & 1 ? XDP_TX : XDP_PASS;
}

SEC("xdp") int value(struct xdp_md *ctx)
{
	__u32 key = 3, at = 0;
	__u64 *cell = bpf_map_lookup_elem(&results, &key);
	__u64 words[4] = {};

	if (!cell)
		return XDP_ABORTED;
	for (int i = 0; i < 16; i++) {
		__u8 *bytes = (__u8 *)words;

		CLOBBER;
		if (bpf_xdp_load_bytes(ctx, at, words, (i & 7) + 1))
			break;
		CLOBBER;
		*cell = *cell * 31 + words[0];
		bytes[words[0] & 15] = i;
		at += 1 + (words[0] & 3) + bytes[1] % 8u;
	}
	CLOBBER;
	*cell += at;
	put(4, words[1]);
	return at & 1 ? XDP_TX : XDP_PASS;
}

// A pointer to one of two places on the stack: what is stored through it is in one of them.
SEC("xdp") int one_of_two(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	__u32 key = 5;
	__u64 *cell = bpf_map_lookup_elem(&results, &key);
	void *volatile first, *volatile second;
	void *volatile *which;

	if (data + 40 > end || !cell)
		return XDP_DROP;
	first = data;
	second = data + 8;
	which = *(__u8 *)data & 1 ? &first : &second;
	barrier_var(which);
	*which = data + 16;
	*cell = *cell * 31 + *(__u32 *)first + *(__u32 *)second;
	which = *(__u8 *)(data + 1) & 1 ? &first : &second;
	barrier_var(which);
	*(__u32 *)*which += 3;
	return XDP_TX;
}

// The same, of a pointer into a map's value and one into the packet.
SEC("xdp") int of_different_kinds(struct xdp_md *ctx)
{
	void *data = data_of(ctx), *end = end_of(ctx);
	__u32 key = 6;
	__u64 *cell = bpf_map_lookup_elem(&results, &key), other = 9;
	void *volatile there;
	volatile __u8 buffer[16] = {};

	if (data + 40 > end || !cell)
		return XDP_DROP;
	if (*(__u8 *)data & 1)
		there = cell;
	else if (*(__u8 *)data & 2)
		there = &other;
	else
		there = data + 16;
	for (int i = 0; i < 8; i++) {
		buffer[*(__u8 *)(data + i) & 15] = i;
		*(__u64 *)there += buffer[i] + i;
	}
	put(7, other);
	return other & 1 ? XDP_TX : XDP_PASS;
}

// The context and a map by itself are put aside, too.
SEC("xdp") int context(struct xdp_md *ctx)
{
	struct xdp_md *volatile kept = ctx;
	volatile __u8 buffer[24] = {};
	__u32 sum = 0;

	for (int i = 0; i < 6; i++) {
		struct xdp_md *again = kept;
		__u8 *data = data_of(again), *end = end_of(again);

		if (data + 14 > end)
			return XDP_DROP;
		buffer[data[i] & 15] = i;
		sum = sum * 7 + buffer[i];
		if (bpf_xdp_adjust_head(kept, (int)(sum & 7) - 3))
			break;
	}
	put(8, sum);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
