// SPDX-License-Identifier: Apache-2.0
// SYN cookies: the packet says which helper, and holds its headers; the result goes to byte 8.
#include <linux/bpf.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "GPL";

struct command {
	__u8 what;
	__u8 length;
	__u16 unused[3];
	__u64 result;
	__u8 ip[40];
	__u8 tcp[60];
} __attribute__((packed));

SEC("xdp")
int cookies(struct xdp_md *ctx)
{
	struct command *c = (void *)(long)ctx->data;

	if ((void *)(c + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__u32 length = c->length;

	if (length > 60)
		return XDP_ABORTED;
	switch (c->what) {
	case 0:
		c->result = bpf_tcp_raw_gen_syncookie_ipv4((void *)c->ip, (void *)c->tcp, length);
		break;
	case 1:
		c->result = bpf_tcp_raw_gen_syncookie_ipv6((void *)c->ip, (void *)c->tcp, length);
		break;
	case 2:
		c->result = bpf_tcp_raw_check_syncookie_ipv4((void *)c->ip, (void *)c->tcp);
		break;
	case 3:
		c->result = bpf_tcp_raw_check_syncookie_ipv6((void *)c->ip, (void *)c->tcp);
		break;
	default:
		return XDP_DROP;
	}
	return XDP_PASS;
}
