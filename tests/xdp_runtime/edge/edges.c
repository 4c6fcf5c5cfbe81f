// adjust_head, adjust_tail and adjust_meta by any amount, in any order, then what is there.
#include "edge.h"
RESULTS(8)

SEC("xdp") int adjust(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx), *end = end_of(ctx), *meta;
	__s16 amounts[3];
	__u8 kinds;

	if (data + 14 > end)
		return XDP_DROP;
	__builtin_memcpy(amounts, data + 1, 6);
	kinds = data[0];
	for (int i = 0; i < 3; i++) {
		long error;

		switch (kinds >> 2 * i & 3) {
		case 0:
			error = bpf_xdp_adjust_head(ctx, amounts[i] >> (data[7] & 7));
			break;
		case 1:
			error = bpf_xdp_adjust_tail(ctx, amounts[i]);
			break;
		case 2:
			error = bpf_xdp_adjust_meta(ctx, amounts[i] & -4);
			break;
		default:
			error = bpf_xdp_adjust_meta(ctx, amounts[i] % 300u);
		}
		put(i, error);
		put(3, ctx->data_end - ctx->data);
		put(4, ctx->data - ctx->data_meta);
		data = data_of(ctx);
		end = end_of(ctx);
		meta = (void *)(long)ctx->data_meta;
		if (meta + 8 <= data)
			*(__u64 *)meta = 0x1122334455667788 + i;
		if (data + 8 > end)
			return XDP_ABORTED;
		data[7] += i;
	}
	put(5, bpf_xdp_get_buff_len(ctx));
	return XDP_PASS;
}

// What the kernel refuses at its extremes, one by one.
SEC("xdp") int extremes(struct xdp_md *ctx)
{
	int amounts[16] = {0x7fffffff, (int)0x80000000, -257, 257, 0xffff, -0xffff, 1, -1, 4096,
			   13, -216, -217, 2830, 3000, -40, -44};
	__u8 *data = data_of(ctx);
	__u32 n;

	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	n = data[0] & 15;
	put(0, bpf_xdp_adjust_head(ctx, amounts[n]));
	put(1, bpf_xdp_adjust_tail(ctx, amounts[n]));
	put(2, bpf_xdp_adjust_meta(ctx, amounts[n]));
	put(3, ctx->data_end - ctx->data);
	put(4, ctx->data - ctx->data_meta);
	return XDP_PASS;
}

SEC("xdp") int bytes(struct xdp_md *ctx)
{
	__u8 *data = data_of(ctx);
	__u64 words[16] = {};
	__u32 offset, size;

	if (data + 14 > (__u8 *)end_of(ctx))
		return XDP_DROP;
	offset = data[1] & 1 ? *(__u32 *)(data + 2) : data[2] | data[3] << 8;
	size = (data[0] & 127) + 1;
	if (data[1] & 2)
		offset = ctx->data_end - ctx->data - (data[2] & 63);
	put(0, bpf_xdp_load_bytes(ctx, offset, words, size));
	put(1, words[0] ^ words[1] ^ words[7]);
	words[0]++;
	put(2, bpf_xdp_store_bytes(ctx, offset - 3, words, size));
	return XDP_TX;
}

char LICENSE[] SEC("license") = "GPL";
