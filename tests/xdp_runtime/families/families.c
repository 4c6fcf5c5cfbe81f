// SPDX-License-Identifier: Apache-2.0
// One program a map family: it reads commands from the packet and writes what came of them there.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__type(value, __u32);
	__uint(max_entries, 3);
} queue SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__type(value, __u32);
	__uint(max_entries, 3);
} stack SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct lpm_key {
	__u32 length;
	__u8 data[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct lpm_key);
	__type(value, __u32);
	__uint(max_entries, 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} trie SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 64);
} percpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} cells SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 4);
} devices SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 8);
} first SEC(".maps"), second SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(key_size, 4);
	__uint(max_entries, 3);
	__array(values, struct inner);
} outer SEC(".maps") = { .values = { [0] = &first, [2] = &second } };

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(key_size, 4);
	__uint(max_entries, 3);
	__array(values, struct inner);
} named SEC(".maps") = { .values = { [1] = &second } };

struct command {
	__u32 what, key, value, flags;
	__s64 result;
	__u64 out;
};

#define BEGIN(ctx)                                             \
	struct command *c = (void *)(long)(ctx)->data;         \
	if ((void *)(c + 1) > (void *)(long)(ctx)->data_end)   \
		return XDP_DROP

SEC("xdp")
int queues(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u32 value = c->value;
	switch (c->what & 7) {
	case 0: c->result = bpf_map_push_elem(&queue, &value, c->flags); break;
	case 1: c->result = bpf_map_pop_elem(&queue, &value); break;
	case 2: c->result = bpf_map_peek_elem(&queue, &value); break;
	case 3: c->result = bpf_map_push_elem(&stack, &value, c->flags); break;
	case 4: c->result = bpf_map_pop_elem(&stack, &value); break;
	default: c->result = bpf_map_peek_elem(&stack, &value); break;
	}
	c->out = value;
	return XDP_PASS;
}

SEC("xdp")
int rings(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u64 *record;
	struct command copy = *c;
	switch (c->what & 7) {
	case 0:
		c->result = bpf_ringbuf_output(&ring, &copy, sizeof(copy), c->flags & 5);
		break;
	case 1:
	case 2:
		record = bpf_ringbuf_reserve(&ring, 24, 0);
		c->result = !record;
		if (record) {
			record[0] = c->value;
			record[1] = c->key;
			record[2] = record[0] + record[1];
			if (c->what & 1)
				bpf_ringbuf_submit(record, 0);
			else
				bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		}
		break;
	default:
		c->result = bpf_ringbuf_query(&ring, c->key & 7);
	}
	return XDP_PASS;
}

SEC("xdp")
int tries(struct xdp_md *ctx)
{
	BEGIN(ctx);
	struct lpm_key key = { .length = c->flags & 63 };
	__builtin_memcpy(key.data, &c->key, 4);
	__u32 value = c->value, *found;
	switch (c->what & 3) {
	case 0: c->result = bpf_map_update_elem(&trie, &key, &value, c->what >> 2 & 3); break;
	case 1: c->result = bpf_map_delete_elem(&trie, &key); break;
	default:
		key.length = 32;
		found = bpf_map_lookup_elem(&trie, &key);
		c->result = !found;
		c->out = found ? *found : 0;
	}
	return XDP_PASS;
}

SEC("xdp")
int percpus(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u32 key = c->key & 7;
	__u64 value = c->value, *found;
	switch (c->what & 7) {
	case 0: c->result = bpf_map_update_elem(&percpu, &key, &value, c->flags & 3); break;
	case 1: c->result = bpf_map_delete_elem(&percpu, &key); break;
	case 2:
		found = bpf_map_lookup_percpu_elem(&percpu, &key, bpf_get_smp_processor_id());
		c->out = found ? *found : ~0ULL;
		break;
	case 3:
		found = bpf_map_lookup_percpu_elem(&cells, &key, bpf_get_smp_processor_id());
		if (found)
			c->out = *found += value;
		break;
	case 4:
		found = bpf_map_lookup_percpu_elem(&percpu, &key, 1000000);
		c->result = !found;
		break;
	default:
		found = bpf_map_lookup_elem(&percpu, &key);
		if (found)
			c->out = *found += value;
	}
	return XDP_PASS;
}

SEC("xdp")
int nested(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u32 which = c->flags & 3, key = c->key & 15;
	__u64 value = c->value, *found;
	void *map = c->what & 8 ? bpf_map_lookup_elem(&outer, &which)
				: bpf_map_lookup_elem(&named, &which);
	if (!map) {
		c->result = 1000;
		return XDP_PASS;
	}
	switch (c->what & 7) {
	case 0:
	case 1: c->result = bpf_map_update_elem(map, &key, &value, c->value & 3); break;
	case 2: c->result = bpf_map_delete_elem(map, &key); break;
	case 3:
		found = bpf_map_lookup_elem(&second, &key);
		if (found)
			c->out = *found += 1;
		break;
	default:
		found = bpf_map_lookup_elem(map, &key);
		if (found)
			c->out = *found += value;
	}
	return XDP_PASS;
}

SEC("xdp")
int bytes(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u8 buffer[16] = "0123456789abcdef";
	__u32 size = (c->value & 15) + 1, at = c->key & 127, what = c->what;
	__u64 length = bpf_xdp_get_buff_len(ctx);
	__s64 result;
	if (what & 1)
		result = bpf_xdp_load_bytes(ctx, at, buffer, size);
	else
		result = bpf_xdp_store_bytes(ctx, at, buffer, size);
	struct command *again = (void *)(long)ctx->data;
	if ((void *)(again + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	again->result = result;
	again->out = length ^ *(__u64 *)buffer ^ *(__u64 *)(buffer + 8);
	return XDP_PASS;
}

SEC("xdp")
int redirects(struct xdp_md *ctx)
{
	BEGIN(ctx);
	return bpf_redirect_map(&devices, c->key & 7, c->flags & 3);
}

SEC("xdp")
int texts(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u8 *text = (void *)(c + 1), buffer[24] = {};
	if ((void *)(text + 24) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(buffer, text, 24);
	__u32 size = (c->key & 15) + 1;
	__u64 flags = c->flags & 63;
	__u64 numbers[3] = { c->key, c->value, *(__u64 *)text };
	unsigned long big = 1;
	long number = 1;
	switch (c->what & 3) {
	case 0: c->result = bpf_strtol((char *)buffer, size, flags, &number); break;
	case 1: c->result = bpf_strtoul((char *)buffer, size, flags, &big); break;
	case 2: c->result = bpf_strncmp((char *)buffer, size, "0x12ab"); break;
	default:
		c->result = bpf_snprintf((char *)buffer, size, "%d<%5u>%llx", numbers, sizeof(numbers));
		__builtin_memcpy(text, buffer, 24);
	}
	c->out = number ^ big;
	return XDP_PASS;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events_out SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_BLOOM_FILTER);
	__type(value, __u32);
	__uint(max_entries, 1000);
} seen SEC(".maps");

SEC("xdp")
int events(struct xdp_md *ctx)
{
	BEGIN(ctx);
	__u32 key = c->key;
	struct command copy = *c;
	switch (c->what & 3) {
	case 0: c->result = bpf_map_push_elem(&seen, &key, 0); break;
	case 1: c->result = bpf_map_peek_elem(&seen, &key); break;
	case 2:
		c->result = bpf_perf_event_output(ctx, &events_out,
			BPF_F_CURRENT_CPU | (__u64)(c->flags & 127) << 32, &copy, sizeof(copy));
		break;
	default:
		c->result = bpf_perf_event_output(ctx, &events_out, c->flags & 3, &copy, 8);
	}
	return XDP_PASS;
}

struct sum {
	__u64 total, stop, steps;
};

static long add(__u32 index, void *data)
{
	struct sum *sum = data;
	__u64 here[2] = { index, sum->steps };
	sum->steps++;
	sum->total += here[0] * 3 + here[1];
	return index == sum->stop;
}

static long nest(__u32 index, void *data)
{
	struct sum inner = { .stop = 3 };
	struct sum *sum = data;
	sum->total += bpf_loop(index & 7, add, &inner, 0) + inner.total;
	return 0;
}

SEC("xdp")
int loops(struct xdp_md *ctx)
{
	BEGIN(ctx);
	struct sum sum = { .stop = c->value };
	__u64 kept = c->key;
	c->result = bpf_loop(c->flags & 63, add, &sum, c->what & 2);
	c->out = sum.total ^ sum.steps << 32 ^ kept;
	return XDP_PASS;
}

SEC("xdp")
int nested_loops(struct xdp_md *ctx)
{
	BEGIN(ctx);
	struct sum sum = {};
	c->result = bpf_loop(c->flags & 31, nest, &sum, 0);
	c->out = sum.total ^ c->key;
	return XDP_PASS;
}
