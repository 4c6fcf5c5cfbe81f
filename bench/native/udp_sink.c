// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Reads datagrams as fast as it can, 64 a call: what a program behind the stack could do at most.
 *
 *     udp_sink PORT
 *
 * A stamp at the start of a datagram (../probe/probe.c) says when its frame left.  At SIGUSR1 it
 * prints {"packets": N, "histogram": {"BUCKET": count, ...}}, buckets as in ../sink.py.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "latency.h"

enum { BATCH = 64 };

struct stamp {
	uint32_t magic;
	uint64_t left_ns;
} __attribute__((packed));

static volatile sig_atomic_t asked;
static uint64_t packets, histogram[BUCKETS];

static void ask(int number)
{
	(void)number;
	asked = 1;
}

static void tell(void)
{
	const char *comma = "";

	printf("{\"packets\": %llu, \"histogram\": {", (unsigned long long)packets);
	for (unsigned i = 0; i < BUCKETS; i++) {
		if (!histogram[i])
			continue;
		printf("%s\"%u\": %llu", comma, i, (unsigned long long)histogram[i]);
		comma = ", ";
	}
	printf("}}\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static char room[BATCH][2048];
	struct iovec parts[BATCH];
	struct mmsghdr messages[BATCH];
	struct sockaddr_in here = {.sin_family = AF_INET};
	struct sigaction action = {.sa_handler = ask};
	int fd = socket(AF_INET, SOCK_DGRAM, 0), bytes = 32 << 20;

	if (argc != 2)
		return 2;
	here.sin_port = htons(atoi(argv[1]));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof(here))) {
		fprintf(stderr, "udp_sink: %s\n", strerror(errno));
		return 1;
	}
	sigaction(SIGUSR1, &action, NULL); /* without SA_RESTART: it ends recvmmsg */
	memset(messages, 0, sizeof(messages));
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){room[i], sizeof(room[i])};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	fprintf(stderr, "ready\n");
	for (;;) {
		int got = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
		uint64_t now;

		if (asked) {
			asked = 0;
			tell();
		}
		if (got <= 0)
			continue;
		now = now_ns();
		packets += got;
		for (int i = 0; i < got; i++) {
			struct stamp stamp;

			memcpy(&stamp, room[i], sizeof(stamp));
			if (stamp.left_ns && messages[i].msg_len >= sizeof(stamp))
				histogram[bucket_of(now - stamp.left_ns)]++;
		}
	}
}
