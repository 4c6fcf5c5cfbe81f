// SPDX-License-Identifier: Apache-2.0
// A lock in the values of maps: updates by the packet's command, and counting under the lock.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct value {
	__u32 first;
	struct bpf_spin_lock lock;
	__u64 count;
	__u64 twice;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct value);
	__uint(max_entries, 3);
} hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, __u32);
	__type(value, struct value);
	__uint(max_entries, 64);
} lru SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct value);
	__uint(max_entries, 2);
} array SEC(".maps");

struct command {
	__u32 which, key;
	__u64 flags, count;
	__s64 result;
	__u64 seen, twice;
};

SEC("xdp")
int locks(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	struct value new = {}, *v;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__u32 key = c->key;
	__u64 flags = c->flags, seen = 0, twice = 0;

	new.first = key;
	new.count = c->count;
	new.twice = 2 * c->count;
	switch (c->which) {
	case 0:
		c->result = bpf_map_update_elem(&hash, &key, &new, flags);
		break;
	case 1:
		c->result = bpf_map_update_elem(&array, &key, &new, flags);
		break;
	case 2:
		c->result = bpf_map_delete_elem(&hash, &key);
		break;
	default:
		break;
	}
	v = c->which & 1 ? bpf_map_lookup_elem(&array, &key) : bpf_map_lookup_elem(&hash, &key);
	if (!v)
		return XDP_DROP;
	bpf_spin_lock(&v->lock);
	seen = ++v->count;
	twice = v->twice += 2;
	bpf_spin_unlock(&v->lock);
	c->seen = seen;
	c->twice = twice;
	return XDP_PASS;
}

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 key = 1;
	struct value *v = bpf_map_lookup_elem(&array, &key), *w = bpf_map_lookup_elem(&hash, &key);

	if (!v || !w)
		return XDP_DROP;
	bpf_spin_lock(&v->lock);
	v->count++;
	v->twice += 2;
	bpf_spin_unlock(&v->lock);
	bpf_spin_lock(&w->lock);
	w->count++;
	w->twice += 2;
	bpf_spin_unlock(&w->lock);
	return XDP_PASS;
}

/* a lock among global variables */
static struct {
	__u64 count;
	struct bpf_spin_lock lock;
	__u64 twice;
} shared;

SEC("xdp")
int count_globally(struct xdp_md *ctx)
{
	bpf_spin_lock(&shared.lock);
	shared.count++;
	shared.twice += 2;
	bpf_spin_unlock(&shared.lock);
	return XDP_PASS;
}
