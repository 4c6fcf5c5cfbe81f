// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Room before and after the packet: a 4-byte mark goes in front of it, where the next program or
 * the application finds it, and a 4-byte trailer is taken off, or put on where there is none.
 */
#include "packet.h"

#define MARK 0x58445055u                 /* "UPDX" in memory */
#define TRAILER bpf_htonl(0x7a11e4edu)
#define LONGEST 16383

static __always_inline int set_mark(struct xdp_md *ctx)
{
	__u32 *mark;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*mark)))
		return -1;
	mark = DATA_META(ctx);
	if ((void *)(mark + 1) > DATA(ctx))
		return -1;
	*mark = MARK;
	return 0;
}

/* The packet's last four bytes, or NULL. */
static __always_inline __u32 *last_word(struct xdp_md *ctx)
{
	void *data = DATA(ctx), *end = DATA_END(ctx);
	__u32 length = end - data;
	__u32 *word;

	if (length < ETH_HLEN + sizeof(*word) || length > LONGEST)
		return NULL;
	length -= sizeof(*word);
	/* Without this the compiler computes end - 4, and arithmetic on the end is refused. */
	asm volatile("%0 &= 0x3fff" : "+r"(length));
	word = data + length;
	return FITS(word, end) ? word : NULL;
}

SEC("xdp")
int meta(struct xdp_md *ctx)
{
	__u32 *word;

	if (set_mark(ctx))
		return XDP_ABORTED;
	word = last_word(ctx);
	if (word && *word == TRAILER)
		return bpf_xdp_adjust_tail(ctx, -(int)sizeof(*word)) ? XDP_ABORTED : XDP_PASS;
	if (bpf_xdp_adjust_tail(ctx, sizeof(*word)))
		return XDP_PASS; /* no room behind it */
	word = last_word(ctx);
	if (!word)
		return XDP_ABORTED;
	*word = TRAILER;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
