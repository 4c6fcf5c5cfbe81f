// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Answers ping before the stack hears of it.  Fragments and IPv4 options go to the stack. */
#include "echo.h"

SEC("xdp")
int icmp_echo(struct xdp_md *ctx)
{
	return answer_echo(DATA(ctx), DATA_END(ctx)) ? XDP_TX : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
