// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sends frames as a program does that has only sockets: AF_PACKET, past the qdisc, 64 a call.
 *
 *     skb_source IFACE FRAME_IN_HEX [ring|calls]
 *
 * By PACKET_TX_RING, whose slots have the frame from the start, or by sendmmsg(2).  One of the
 * sources of ../source.py, and spoken to in the same words: {"seconds": S, "rate": R, ...} on
 * standard input, R packets a second or 0 for all it can; what it did on standard output.  With a
 * rate each frame says when it left (../probe/probe.c).
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
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { BATCH = 64, ROOM = 2048, LEFT_AT = 42 + 4, SLOTS = 1024,
       DATA_AT = TPACKET2_HDRLEN - sizeof(struct sockaddr_ll) };

static char frames[BATCH][ROOM];
static struct iovec parts[BATCH];
static struct mmsghdr messages[BATCH];
static uint8_t *ring; /* NULL: by sendmmsg */
static uint32_t next_slot;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "skb_source: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct tpacket2_hdr *slot_at(uint32_t number)
{
	return (struct tpacket2_hdr *)(ring + (size_t)(number % SLOTS) * ROOM);
}

static void map_ring(int fd)
{
	struct tpacket_req shape = {.tp_block_size = 16 * ROOM, .tp_block_nr = SLOTS / 16,
				    .tp_frame_size = ROOM, .tp_frame_nr = SLOTS};
	int version = TPACKET_V2;

	if (setsockopt(fd, SOL_PACKET, PACKET_VERSION, &version, sizeof(version)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_TX_RING, &shape, sizeof(shape)))
		die("PACKET_TX_RING");
	ring = mmap(NULL, SLOTS * ROOM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (ring == MAP_FAILED)
		die("mmap");
}

/* How many of n slots were free, and are on their way. */
static uint32_t ring_some(int fd, uint32_t n, int stamped)
{
	uint64_t left = stamped ? now_ns() : 0;
	uint32_t put = 0;

	for (; put < n; put++) {
		struct tpacket2_hdr *slot = slot_at(next_slot);

		if (__atomic_load_n(&slot->tp_status, __ATOMIC_ACQUIRE) != TP_STATUS_AVAILABLE)
			break;
		memcpy((uint8_t *)slot + DATA_AT + LEFT_AT, &left, sizeof(left));
		__atomic_store_n(&slot->tp_status, TP_STATUS_SEND_REQUEST, __ATOMIC_RELEASE);
		next_slot++;
	}
	if (send(fd, NULL, 0, MSG_DONTWAIT) < 0 && errno != ENOBUFS && errno != EAGAIN)
		die("send");
	return put;
}

/* How many of n the kernel took. */
static uint32_t send_some(int fd, uint32_t n, int stamped)
{
	uint64_t left = stamped ? now_ns() : 0;
	int sent;

	if (ring)
		return ring_some(fd, n, stamped);
	for (uint32_t i = 0; i < n; i++)
		memcpy(frames[i] + LEFT_AT, &left, sizeof(left));
	sent = sendmmsg(fd, messages, n, 0);
	if (sent < 0 && errno != ENOBUFS && errno != EAGAIN)
		die("sendmmsg");
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

	if (argc != 3 && argc != 4) {
		fprintf(stderr, "skb_source: IFACE FRAME_IN_HEX [ring|calls]\n");
		return 2;
	}
	if (fd < 0)
		die("AF_PACKET");
	to.sll_ifindex = if_nametoindex(argv[1]);
	bytes = strlen(argv[2]) / 2;
	if (!to.sll_ifindex || bytes > ROOM || bytes < LEFT_AT + 8) {
		fprintf(stderr, "skb_source: interface %s: there is none in this namespace\n", argv[1]);
		return 1;
	}
	if (argc < 4 || strcmp(argv[3], "calls"))
		map_ring(fd);
	if (bind(fd, (struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)))
		die("bind");
	for (int i = 0; i < BATCH; i++) {
		for (size_t at = 0; at < bytes; at++)
			sscanf(argv[2] + 2 * at, "%2hhx", (unsigned char *)&frames[i][at]);
		parts[i] = (struct iovec){frames[i], bytes};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1};
	}
	for (uint32_t i = 0; ring && i < SLOTS; i++) {
		memcpy((uint8_t *)slot_at(i) + DATA_AT, frames[0], bytes);
		slot_at(i)->tp_len = bytes;
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
