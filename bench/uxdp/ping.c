// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Answers pings. */
#include "echo.h"

SEC("xdp")
int ping(struct xdp_md *ctx)
{
	return answer_echo(DATA(ctx), DATA_END(ctx)) ? XDP_TX : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
