// SPDX-License-Identifier: Apache-2.0
// bpf_for_each_map_elem over every kind of map; the packet says when to stop and what to delete.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct value {
	__u64 seen;
	__u32 number;
};

#define MAP(name, kind, key_type)		\
struct {					\
	__uint(type, BPF_MAP_TYPE_##kind);	\
	__uint(max_entries, 64);		\
	__type(key, key_type);			\
	__type(value, struct value);		\
} name SEC(".maps")

struct key {
	__u32 number;
	__u16 tail;
} __attribute__((packed));

MAP(hash, HASH, struct key);
MAP(lru, LRU_HASH, struct key);
MAP(percpu_hash, PERCPU_HASH, struct key);
MAP(lru_percpu, LRU_PERCPU_HASH, struct key);
MAP(array, ARRAY, __u32);
MAP(percpu_array, PERCPU_ARRAY, __u32);

struct command {
	__u64 flags;
	__u32 stop_after;	/* rounds; 0: never */
	__u32 delete_mask;	/* the element is deleted if number & mask is not 0 */
	__s64 result;
	__u64 keys, values, deleted;
} __attribute__((packed));

struct progress {
	__u64 keys, values, deleted;
	__u32 rounds, stop_after, delete_mask;
};

static long visit(void *map, const __u32 *key, struct value *value, struct progress *p)
{
	__u32 number = *key;

	p->keys += number + 1;
	p->values += value->number;
	value->seen += 1;
	if (number & p->delete_mask && bpf_map_delete_elem(map, key) == 0)
		p->deleted++;
	return ++p->rounds == p->stop_after;
}

static __always_inline struct command *command_of(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;

	return (void *)(c + 1) > (void *)(long)ctx->data_end ? 0 : c;
}

#define PROGRAM(name)								\
SEC("xdp") int each_##name(struct xdp_md *ctx)					\
{										\
	struct command *c = command_of(ctx);					\
	struct progress p = {};							\
										\
	if (!c)									\
		return XDP_ABORTED;						\
	p.stop_after = c->stop_after;						\
	p.delete_mask = c->delete_mask;						\
	c->result = bpf_for_each_map_elem(&name, visit, &p, c->flags);		\
	c->keys = p.keys;							\
	c->values = p.values;							\
	c->deleted = p.deleted;							\
	return XDP_TX;								\
}

PROGRAM(hash)
PROGRAM(lru)
PROGRAM(percpu_hash)
PROGRAM(lru_percpu)
PROGRAM(array)
PROGRAM(percpu_array)
