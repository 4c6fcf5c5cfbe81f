// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Every packet ends here. */
#include "packet.h"

SEC("xdp")
int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";
