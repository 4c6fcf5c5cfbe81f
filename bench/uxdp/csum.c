// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sums the whole packet, two bytes at a time, and writes the sum where its source MAC was. */
#include "packet.h"

#define LONGEST 1500

SEC("xdp")
int csum(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);
	void *end = DATA_END(ctx);
	__u16 *word = (void *)(eth + 1), check;
	__u32 sum = 0;

	if (!FITS(eth, end))
		return XDP_DROP;
	for (int i = 0; i < LONGEST / 2; i++) {
		if (!FITS(word, end))
			break;
		sum += *word++;
	}
	check = ~fold(sum);
	__builtin_memcpy(eth->h_source, &check, sizeof(check));
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
