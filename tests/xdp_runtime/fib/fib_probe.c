// SPDX-License-Identifier: GPL-2.0
/* Asks bpf_fib_lookup and bpf_check_mtu what the packet says, and writes the answers into it.
 *
 * clang -O2 -g -target bpf -c fib_probe.c -o fib_probe.o
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct question {
	__u8 mac[12];
	__u16 type;
	__u16 padding;
	__u32 flags;
	__s32 code;
	struct bpf_fib_lookup params;
};

struct length {
	__u8 mac[12];
	__u16 type;
	__u16 padding;
	__u32 ifindex;
	__u32 length;
	__s32 difference;
	__u64 flags;
	__s32 code;
};

SEC("xdp")
int lookup(struct xdp_md *ctx)
{
	struct question *q = (void *)(long)ctx->data;
	struct bpf_fib_lookup params;

	if ((void *)(q + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	params = q->params;
	q->code = bpf_fib_lookup(ctx, &params, sizeof(params), q->flags);
	q->params = params;
	return XDP_PASS;
}

SEC("xdp")
int mtu(struct xdp_md *ctx)
{
	struct length *l = (void *)(long)ctx->data;
	__u32 length;

	if ((void *)(l + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	length = l->length;
	l->code = bpf_check_mtu(ctx, l->ifindex, &length, l->difference, l->flags);
	l->length = length;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
