// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sends frames as a program does that has only sockets: AF_PACKET, past the qdisc, 64 a call.
 *
 *     skb_source IFACE FRAME_IN_HEX
 *
 * One of the sources of ../source.py, spoken to in the same words: {"seconds": S, "rate": R, ...} on
 * standard input, R packets a second or 0 for all it can; what it did on standard output.  With a
 * rate each frame says when it left (../probe/probe.c).  PACKET_TX_RING does a tenth less.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "latency.h"

enum { BATCH = 64, ROOM = 2048, LEFT_AT = 42 + 4 };

static char frames[BATCH][ROOM];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];

/* How many of n the kernel took. */
static uint32_t send_some(int fd, uint32_t n, int stamped)
{
	uint64_t left = stamped ? now_ns() : 0;
	int sent;

	for (uint32_t i = 0; i < n; i++)
		memcpy(frames[i] + LEFT_AT, &left, sizeof(left));
	sent = sendmmsg(fd, messages, n, 0);
	if (sent < 0 && errno != ENOBUFS && errno != EAGAIN) {
		fprintf(stderr, "skb_source: %s\n", strerror(errno));
		exit(1);
	}
	return sent < 0 ? 0 : sent;
}

static void serve(int fd, double seconds, double rate)
{
	uint64_t start = now_ns(), end = start + seconds * 1e9, last = start, longest = 0, sent = 0;
	uint32_t burst = rate * 20e-6;
	double due = start;

	burst = !rate || burst > BATCH ? BATCH : burst < 1 ? 1 : burst;
	for (uint64_t now = start; now < end && due < end; now = now_ns()) {
		uint64_t since;

		if (rate && now < due)
			continue;
		sent += send_some(fd, burst, rate > 0);
		since = last > due ? last : due;
		last = now_ns(); /* a process is stopped as it leaves the call */
		if (rate && last > since && last - since > longest)
			longest = last - since;
		due = rate ? due + burst / rate * 1e9 : now;
	}
	end = now_ns();
	if (rate && due > end)
		end = due;
	printf("{\"frames\": %llu, \"seconds\": %.9f, \"rate\": %.3f, \"longest_gap_s\": %.9f}\n",
	       (unsigned long long)sent, (end - start) * 1e-9, rate, longest * 1e-9);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET};
	int fd = socket(AF_PACKET, SOCK_RAW, 0), one = 1;
	double seconds, rate;
	char line[256];
	size_t bytes;

	if (argc != 3 || fd < 0) {
		fprintf(stderr, "skb_source: %s\n", argc != 3 ? "IFACE FRAME_IN_HEX" : strerror(errno));
		return 1;
	}
	to.sll_ifindex = if_nametoindex(argv[1]);
	bytes = strlen(argv[2]) / 2;
	if (!to.sll_ifindex || bytes > ROOM || bytes < LEFT_AT + 8) {
		fprintf(stderr, "skb_source: interface %s: there is none in this namespace\n", argv[1]);
		return 1;
	}
	if (bind(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one))) {
		fprintf(stderr, "skb_source: %s\n", strerror(errno));
		return 1;
	}
	for (int i = 0; i < BATCH; i++) {
		for (size_t at = 0; at < bytes; at++)
			sscanf(argv[2] + 2 * at, "%2hhx", (unsigned char *)&frames[i][at]);
		parts[i] = (struct iovec){frames[i], bytes};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
	}
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "{\"seconds\": %lf, \"rate\": %lf,", &seconds, &rate) != 2)
			return 2;
		serve(fd, seconds, rate);
	}
	return 0;
}
