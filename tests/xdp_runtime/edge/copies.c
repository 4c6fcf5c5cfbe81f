// Structures of 128 bytes and odd sizes, copied between packet, stack and maps; overlapping moves.
#include "edge.h"
RESULTS(8)

struct block {
	__u64 words[16];
};
struct odd {
	__u8 kind;
	__u16 ports[3];
	__u8 name[29];
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct block);
} blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct odd);
	__type(value, struct odd);
} odds SEC(".maps");

static __always_inline __u64 weigh(const struct block *b)
{
	const __u64 *w = (const __u64 *)b;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 16; i++)
		sum = sum * 131 + w[i];
	return sum;
}

SEC("xdp") int stack_and_map(struct xdp_md *ctx)
{
	struct block one, two, *kept;
	void *data = data_of(ctx);
	__u32 key;

	if (data + 142 > end_of(ctx))
		return XDP_DROP;
	one = *(struct block *)(data + 14);
	two = one;
	__builtin_memset(&two.words[5], 0xa5, 24);
	key = one.words[0] & 15;
	kept = bpf_map_lookup_elem(&blocks, &key);
	if (!kept) {
		bpf_map_update_elem(&blocks, &key, &two, BPF_ANY);
		return XDP_PASS;
	}
	*(struct block *)(data + 6) = *kept;
	*kept = one;
	put(0, weigh(&two));
	put(1, weigh(kept));
	return weigh(&two) & 1 ? XDP_TX : XDP_PASS;
}

SEC("xdp") int overlapping(struct xdp_md *ctx)
{
	__u64 words[16] = {};
	__u8 *data = data_of(ctx);
	void *at = words;

	if (data + 96 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	__builtin_memcpy(at, data, 64);
	__builtin_memmove(at + 8, at, 56);
	__builtin_memmove(at, at + 16, 64);
	__builtin_memmove(data + 12, data, 40);
	__builtin_memmove(data, data + 5, 33);
	__builtin_memcpy(data + 64, at, 32);
	put(0, words[0] ^ words[3] ^ words[7] ^ words[8]);
	return XDP_TX;
}

SEC("xdp") int packed_keys(struct xdp_md *ctx)
{
	struct odd key, value = {.kind = 3}, *found;
	__u8 *data = data_of(ctx);

	if (data + sizeof(key) + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	__builtin_memcpy(&key, data + 14, sizeof(key));
	key.kind &= 3;
	key.ports[1] &= 1;
	__builtin_memset(key.name, key.kind, sizeof(key.name));
	found = bpf_map_lookup_elem(&odds, &key);
	if (found) {
		found->ports[2]++;
		__builtin_memcpy(data + 14, found, sizeof(*found));
		return found->name[3] == key.name[3] ? XDP_PASS : XDP_TX;
	}
	__builtin_memcpy(&value.name, data, 14);
	bpf_map_update_elem(&odds, &key, &value, BPF_NOEXIST);
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
