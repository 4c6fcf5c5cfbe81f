// SPDX-License-Identifier: Apache-2.0
// Kernel functions on a packet in several buffers: dynptrs over it, and bpf_xdp_pull_data.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_dynptr_from_xdp(struct xdp_md *ctx, __u64 flags, struct bpf_dynptr *d) __ksym;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *d) __ksym;
extern int bpf_dynptr_adjust(const struct bpf_dynptr *d, __u32 start, __u32 end) __ksym;
extern int bpf_xdp_pull_data(struct xdp_md *ctx, __u32 len) __ksym;

char _license[] SEC("license") = "GPL";

#define ROOM 200

struct command {
	__u32 pull, again, head, meta, tail, start, end, read, write, size;
	__s32 pulled, pulled_again, adjusted, was_read, written;
	__u32 linear, linear_again, length, bytes, moved;
	__u8 out[ROOM];
};

static __always_inline int all(struct xdp_md *ctx)
{
	struct command r;
	struct bpf_dynptr d;
	__u8 buffer[ROOM] = {};
	__u32 size;

	if (bpf_xdp_load_bytes(ctx, 0, &r, sizeof(r)))
		return XDP_ABORTED;
	bpf_xdp_adjust_head(ctx, -(int)r.head);
	if (!bpf_xdp_adjust_meta(ctx, -(int)r.meta) && r.meta) {
		__u8 *meta = (void *)(long)ctx->data_meta;

		if ((void *)(meta + 4) > (void *)(long)ctx->data)
			return XDP_ABORTED;
		*(__u32 *)meta = 0xdeadbeef;
	}
	r.pulled = bpf_xdp_pull_data(ctx, r.pull);
	r.linear = ctx->data_end - ctx->data;
	bpf_dynptr_from_xdp(ctx, 0, &d);
	r.bytes = bpf_dynptr_size(&d);
	bpf_xdp_adjust_tail(ctx, r.tail);
	r.adjusted = bpf_dynptr_adjust(&d, r.start, r.end);
	size = *(volatile __u32 *)&r.size;
	if (size > ROOM)
		size = ROOM;
	r.was_read = bpf_dynptr_read(r.out, size, &d, r.read, 0);
	r.moved = bpf_dynptr_data(&d, 0, 4) != 0;
	__builtin_memset(buffer, 0x5a, ROOM);
	r.written = bpf_dynptr_write(&d, r.write, buffer, size, 0);
	r.pulled_again = bpf_xdp_pull_data(ctx, r.again);
	r.linear_again = ctx->data_end - ctx->data;
	r.length = bpf_xdp_get_buff_len(ctx);
	if (bpf_xdp_store_bytes(ctx, 0, &r, sizeof(r)))
		return XDP_DROP;
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
