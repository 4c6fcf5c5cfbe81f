// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Request and response over one TCP connection, one byte each, the next when the last is answered.
 *
 *     tcp_rr PORT                     answers one connection
 *     tcp_rr PORT ADDRESS SECONDS     asks; prints {"packets": round trips, "histogram": {"BUCKET":
 *                                     count, ...}}, buckets as in ../histogram.py
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "latency.h"

static uint64_t packets, histogram[BUCKETS];

static int failed(const char *what)
{
	fprintf(stderr, "tcp_rr: ");
	perror(what);
	return 1;
}

static int answer(int fd)
{
	char byte;
	int peer;

	if (listen(fd, 1))
		return failed("listen");
	fprintf(stderr, "ready\n");
	peer = accept(fd, NULL, NULL);
	if (peer < 0)
		return failed("accept");
	setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	while (read(peer, &byte, 1) == 1)
		if (write(peer, &byte, 1) != 1)
			break;
	return 0;
}

static int ask(int fd, double seconds)
{
	uint64_t end_ns = now_ns() + seconds * 1e9, began_ns;
	const char *comma = "";
	char byte = 0;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	while ((began_ns = now_ns()) < end_ns) {
		if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
			return failed("a round trip");
		histogram[bucket_of(now_ns() - began_ns)]++;
		packets++;
	}
	printf("{\"packets\": %llu, \"histogram\": {", (unsigned long long)packets);
	for (unsigned i = 0; i < BUCKETS; i++) {
		if (!histogram[i])
			continue;
		printf("%s\"%u\": %llu", comma, i, (unsigned long long)histogram[i]);
		comma = ", ";
	}
	printf("}}\n");
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in there = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (argc != 2 && argc != 4)
		return 2;
	there.sin_port = htons(atoi(argv[1]));
	if (argc == 2) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
		if (bind(fd, (struct sockaddr *)&there, sizeof(there)))
			return failed("bind");
		return answer(fd);
	}
	if (inet_pton(AF_INET, argv[2], &there.sin_addr) != 1)
		return 2;
	if (connect(fd, (struct sockaddr *)&there, sizeof(there)))
		return failed("connect");
	return ask(fd, atof(argv[3]));
}
