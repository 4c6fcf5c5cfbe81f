// SPDX-License-Identifier: Apache-2.0
// Slices, clones, copies and fills of dynptrs over the packet and over memory.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_dynptr_from_xdp(struct xdp_md *ctx, __u64 flags, struct bpf_dynptr *d) __ksym;
extern __u32 bpf_dynptr_size(const struct bpf_dynptr *d) __ksym;
extern int bpf_dynptr_adjust(const struct bpf_dynptr *d, __u32 start, __u32 end) __ksym;
extern int bpf_dynptr_clone(const struct bpf_dynptr *d, struct bpf_dynptr *clone) __ksym;
extern int bpf_dynptr_copy(struct bpf_dynptr *to, __u32 to_off, struct bpf_dynptr *from,
			   __u32 from_off, __u32 size) __ksym;
extern int bpf_dynptr_memset(struct bpf_dynptr *d, __u32 offset, __u32 size, __u8 val) __ksym;
extern void *bpf_dynptr_slice(const struct bpf_dynptr *d, __u32 offset, void *buffer,
			      __u32 size) __ksym;
extern void *bpf_dynptr_slice_rdwr(const struct bpf_dynptr *d, __u32 offset, void *buffer,
				   __u32 size) __ksym;

char _license[] SEC("license") = "GPL";

#define ROOM 16

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u8[512]);
	__uint(max_entries, 1);
} memory SEC(".maps");

struct command {
	__u32 what, local, offset, start, end, shrink, to, size, flags, spare;
	__s32 cloned, copied, filled;
	__u32 bytes, found;
	__u8 out[ROOM];
};

static __always_inline int run(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data, r = {};
	struct bpf_dynptr d, e;
	__u8 buffer[ROOM] = {}, *p = 0, *value;
	__u32 zero = 0;

	value = bpf_map_lookup_elem(&memory, &zero);
	if (!value || (void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(&r, c, sizeof(r));
	if (r.local)
		bpf_dynptr_from_mem(value, 512, r.flags, &d);
	else
		bpf_dynptr_from_xdp(ctx, r.flags, &d);
	r.cloned = bpf_dynptr_clone(&d, &e);
	bpf_dynptr_adjust(&e, r.start, r.end);
	r.bytes = bpf_dynptr_size(&e);
	bpf_xdp_adjust_tail(ctx, -(int)r.shrink);
	if (r.what & 1)
		r.copied = bpf_dynptr_copy(&d, r.to, &e, r.offset, r.size);
	if (r.what & 2)
		r.filled = bpf_dynptr_memset(&e, r.to, r.size, r.spare);
	switch (r.what >> 2 & 3) {
	case 0:
		p = bpf_dynptr_slice(&e, r.offset, 0, ROOM);
		break;
	case 1:
		p = bpf_dynptr_slice(&e, r.offset, buffer, ROOM);
		break;
	case 2:
		p = bpf_dynptr_slice_rdwr(&e, r.offset, 0, ROOM);
		if (p)
			p[3] ^= 0x55;
		break;
	case 3:
		p = bpf_dynptr_slice_rdwr(&e, r.offset, buffer, ROOM);
		if (p)
			p[5] ^= 0xaa;
		break;
	}
	r.found = p != 0;
	if (p)
		__builtin_memcpy(r.out, p, ROOM);
	for (int i = 0; i < ROOM; i++)
		r.spare += buffer[i];
	c = (void *)(long)ctx->data;
	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	__builtin_memcpy(c, &r, sizeof(r));
	return XDP_PASS;
}

SEC("xdp")
int whole(struct xdp_md *ctx)
{
	return run(ctx);
}

SEC("xdp.frags")
int pieces(struct xdp_md *ctx)
{
	return run(ctx);
}
