// SPDX-License-Identifier: Apache-2.0
// What the helpers do with a packet in several buffers.  A packet starts with commands.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

enum { LENGTH, LOAD, STORE, TAIL, HEAD, META, OUTPUT, WHAT };
#define ROOM 256
#define COMMANDS 4

struct command {
	__u32 what, offset, size, spare;
};

struct result {
	__s32 error[COMMANDS];
	__u32 linear[COMMANDS];
	__u32 length[COMMANDS];
	__u8 loaded[COMMANDS][ROOM];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct result);
	__uint(max_entries, 1);
} results SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

static __always_inline int run(struct xdp_md *ctx, struct command *c, __u8 *memory)
{
	__u32 size = c->size;

	if (size == 0 || size > ROOM)
		size = ROOM;
	switch (c->what) {
	case LENGTH:
		return bpf_xdp_get_buff_len(ctx);
	case LOAD:
		return bpf_xdp_load_bytes(ctx, c->offset, memory, size);
	case STORE:
		__builtin_memset(memory, c->spare, ROOM);
		return bpf_xdp_store_bytes(ctx, c->offset, memory, size);
	case TAIL:
		return bpf_xdp_adjust_tail(ctx, c->offset);
	case HEAD:
		return bpf_xdp_adjust_head(ctx, c->offset);
	case META:
		return bpf_xdp_adjust_meta(ctx, c->offset);
	case OUTPUT:
		return bpf_perf_event_output(ctx, &events,
					     (__u64)c->offset << 32 | BPF_F_CURRENT_CPU, memory, 4);
	}
	return 0;
}

static __always_inline int all(struct xdp_md *ctx)
{
	struct command commands[COMMANDS] = {};
	__u32 zero = 0;
	struct result *r = bpf_map_lookup_elem(&results, &zero);

	if (!r || bpf_xdp_load_bytes(ctx, 0, commands, sizeof(commands)))
		return XDP_ABORTED;
	for (int i = 0; i < COMMANDS; i++) {
		r->error[i] = run(ctx, &commands[i], r->loaded[i]);
		r->linear[i] = ctx->data_end - ctx->data;
		r->length[i] = bpf_xdp_get_buff_len(ctx);
	}
	return XDP_PASS;
}

SEC("xdp.frags")
int frags(struct xdp_md *ctx)
{
	return all(ctx);
}

SEC("xdp")
int linear(struct xdp_md *ctx)
{
	return all(ctx);
}
