// Maps of maps and of programs filled in the source, pinned maps, per-CPU values, tail calls
// from functions, token buckets on the packets' own clock.
#include "edge.h"
RESULTS(16)

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} even SEC(".maps"), odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {.values = {[1] = &odd, [2] = &even}};

int leaf(struct xdp_md *ctx);
int branch(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 6);
	__uint(key_size, 4);
	__array(values, int(void *));
} jumps SEC(".maps") = {.values = {[1] = (void *)&leaf, [3] = (void *)&branch, [4] = (void *)&branch}};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__type(key, __u8[3]);
	__type(value, __u8[12]);
} edge_percpu SEC(".maps");

struct bucket {
	__u32 tokens;
	__u64 last;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

SEC("xdp") int nested_maps(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 one = 1, *count;
	__u32 which, key;
	void *inner;

	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	which = data[0] & 3;
	inner = bpf_map_lookup_elem(&outer, &which);
	if (!inner)
		return XDP_PASS;
	key = data[1];
	count = bpf_map_lookup_elem(inner, &key);
	if (count) {
		*count += data[2];
		if (*count > 600)
			put(0, bpf_map_delete_elem(inner, &key));
		return XDP_TX;
	}
	put(1, bpf_map_update_elem(inner, &key, &one, BPF_ANY));
	return XDP_DROP;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 128);
	__type(key, __u32);
	__type(value, __u64);
} spare SEC(".maps");

// A table for some, another for the others: connection tables of CPUs with one to fall back to.
SEC("xdp") int fallback(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 one = 1, *count;
	__u32 which, key;
	void *table;

	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	which = data[0] & 3;
	table = bpf_map_lookup_elem(&outer, &which);
	if (!table)
		table = data[3] & 1 ? (void *)&spare : (void *)&even;
	key = data[1];
	count = bpf_map_lookup_elem(table, &key);
	if (count) {
		*count += data[2];
		if (*count > 300)
			put(12, bpf_map_delete_elem(table, &key));
		return XDP_TX;
	}
	put(13, bpf_map_update_elem(table, &key, &one, BPF_ANY));
	return XDP_PASS;
}

SEC("xdp") int leaf(struct xdp_md *ctx)
{
	put(2, ctx->data_end - ctx->data);
	return XDP_TX;
}

SEC("xdp") int branch(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);

	put(3, 1);
	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	data[3]++;
	bpf_tail_call(ctx, &jumps, data[3] & 7);
	return XDP_PASS;
}

static __noinline int jump(struct xdp_md *ctx, __u32 index)
{
	bpf_tail_call(ctx, &jumps, index);
	return 7;
}

SEC("xdp") int from_function(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	int got;

	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	got = jump(ctx, data[2] & 7);
	put(4, got);
	return got == 7 ? XDP_PASS : got;
}

SEC("xdp") int percpu(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), key[3], value[12] = {}, *found;

	if (data + 26 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	key[0] = data[0] & 3;
	key[1] = data[1] & 1;
	key[2] = 9;
	__builtin_memcpy(value, data + 14, 12);
	found = bpf_map_lookup_elem(&edge_percpu, key);
	if (found) {
		found[11]++;
		__builtin_memcpy(data + 14, found, 12);
		return XDP_TX;
	}
	put(5, bpf_map_update_elem(&edge_percpu, key, value, BPF_NOEXIST));
	return XDP_PASS;
}

SEC("xdp") int limit(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	struct bucket *b;
	__u64 now = 0;
	__u32 key, tokens;

	if (data + 24 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	now = data[15] * 100 + data[16];
	key = data[14] & 7;
	b = bpf_map_lookup_elem(&buckets, &key);
	if (!b)
		return XDP_ABORTED;
	if (now > b->last) {
		tokens = b->tokens + (now - b->last) / 7;
		b->tokens = tokens > 500 ? 500 : tokens;
		b->last = now;
	}
	tokens = b->tokens;
	if (tokens >= 20)
		b->tokens -= 20;
	put(6, tokens);
	return tokens >= 20 ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
