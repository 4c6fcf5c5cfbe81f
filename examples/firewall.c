// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Drops TCP and UDP to blocked ports; the list is a map that may change while packets flow. */
#include "ports.h"

SEC("xdp")
int firewall(struct xdp_md *ctx)
{
	return is_blocked(DATA(ctx), DATA_END(ctx)) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
