// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sends every packet back to where it came from. */
#include "packet.h"

SEC("xdp")
int tx(struct xdp_md *ctx)
{
	struct ethhdr *eth = DATA(ctx);

	if (!FITS(eth, DATA_END(ctx)))
		return XDP_DROP;
	swap_macs(eth);
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
