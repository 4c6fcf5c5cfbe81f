// SPDX-License-Identifier: Apache-2.0
// bpf_trace_printk and bpf_trace_vprintk of a format, and with numbers, that are in the packet.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

#define TEXT 160
#define NUMBERS 13

struct command {
	__u32 three, size;	/* trace_printk rather than trace_vprintk; bytes of the format */
	__s64 result;
	__u64 bytes;		/* of the numbers */
	__u64 numbers[NUMBERS];
	__u64 text[TEXT / 8];
};

char text[TEXT];

SEC("xdp")
int prints(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;
	__u64 numbers[NUMBERS];
	__u64 size, bytes;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	for (int i = 0; i < TEXT / 8; i++)
		((volatile __u64 *)text)[i] = c->text[i];
	__builtin_memcpy(numbers, c->numbers, sizeof(numbers));
	size = c->size;
	bytes = c->bytes;
	if (!size || size > TEXT || bytes > sizeof(numbers))
		return XDP_DROP;
	if (c->three)
		c->result = bpf_trace_printk(text, size, numbers[0], numbers[1], numbers[2]);
	else
		c->result = bpf_trace_vprintk(text, size, numbers, bytes);
	return XDP_PASS;
}
