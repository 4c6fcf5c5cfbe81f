// SPDX-License-Identifier: Apache-2.0
// Dynptrs over the packet, and the kernel functions that work on all kinds.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_dynptr_from_xdp(struct xdp_md *ctx, __u64 flags, struct bpf_dynptr *d) __ksym;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *d) __ksym;
extern int bpf_dynptr_is_null(const struct bpf_dynptr *d) __ksym;
extern int bpf_dynptr_is_rdonly(const struct bpf_dynptr *d) __ksym;
extern int bpf_dynptr_adjust(const struct bpf_dynptr *d, __u32 start, __u32 end) __ksym;

char _license[] SEC("license") = "GPL";

#define ROOM 32

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u8[64]);
	__uint(max_entries, 1);
} memory SEC(".maps");

struct command {
	__u32 flags, start, end, offset, length, shrink, local, spare;
	__s32 made, adjusted, read, written;
	__u32 size, smaller, null, readonly, moved;
	__u8 out[ROOM];
};

/* a global function: proven by itself, for a dynptr of anything */
__noinline __u32 size_of(struct bpf_dynptr *d)
{
	return bpf_dynptr_size(d);
}

SEC("xdp")
int packet(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data, r = {};
	struct bpf_dynptr d;
	__u8 buffer[ROOM] = {};
	__u32 zero = 0;
	__u8 *value = bpf_map_lookup_elem(&memory, &zero);

	if (!value || (void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(&r, c, sizeof(r));
	if (r.length > ROOM)
		r.length = ROOM;
	if (r.local)
		r.made = bpf_dynptr_from_mem(value, 64, r.flags, &d);
	else
		r.made = bpf_dynptr_from_xdp(ctx, r.flags, &d);
	r.size = bpf_dynptr_size(&d);
	r.adjusted = bpf_dynptr_adjust(&d, r.start, r.end);
	r.smaller = size_of(&d);
	r.null = bpf_dynptr_is_null(&d) & 1;	/* a bool: the kernel leaves the rest as it was */
	r.readonly = bpf_dynptr_is_rdonly(&d) & 1;
	r.moved = bpf_dynptr_data(&d, 0, 4) != 0;
	bpf_xdp_adjust_tail(ctx, -(int)r.shrink);
	r.read = bpf_dynptr_read(buffer, r.length, &d, r.offset, 0);
	__builtin_memcpy(r.out, buffer, ROOM);
	__builtin_memset(buffer, 0x5a, ROOM);
	r.written = bpf_dynptr_write(&d, r.offset, buffer, r.length, 0);
	c = (void *)(long)ctx->data;
	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(c, &r, sizeof(r));
	return XDP_PASS;
}
