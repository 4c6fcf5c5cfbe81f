// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The smallest program: every packet goes on to the kernel's stack. */
#include "packet.h"

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
