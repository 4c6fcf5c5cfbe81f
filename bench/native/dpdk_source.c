// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Sends frames by the first device that the EAL's arguments name, and reads all of them.
 *
 *     dpdk_source EAL-ARGUMENT... -- FRAME_IN_HEX sends|reads
 *
 * The source of ../source.py for devices of DPDK.  {"seconds": S, "rate": R, ...} on standard input:
 * R packets a second or 0 for all it can.  What the device had no room for is `refused`: lost on
 * the way, if the way has no other room.  With `reads` it is the end of the path as well, polls all
 * the time and says at any other line what came, as udp_sink does.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "latency.h"

enum { BATCH = 64, ROOM = 2048, STAMP_AT = 42, MBUFS = 8191, DESCRIPTORS = 1024,
       LINK_MS = 10000, LOOKS = 256 };

struct stamp {
	uint32_t magic;
	uint64_t left_ns;
} __attribute__((packed));

static struct rte_mempool *pool;
static uint8_t frame[ROOM];
static uint32_t frame_bytes, magic;
static uint16_t devices;
static int reads;
static uint64_t packets, histogram[BUCKETS], taken, refused;

static void die(const char *what, int error)
{
	fprintf(stderr, "dpdk_source: %s: %s\n", what, strerror(error));
	exit(1);
}

static void read_all(void)
{
	struct rte_mbuf *got[BATCH];

	for (uint16_t device = 0; device < devices; device++) {
		uint16_t n = rte_eth_rx_burst(device, 0, got, BATCH);
		uint64_t now = n ? now_ns() : 0;

		for (uint16_t i = 0; i < n; i++) {
			struct stamp stamp = {0};

			if (got[i]->data_len >= STAMP_AT + sizeof(stamp))
				memcpy(&stamp, rte_pktmbuf_mtod_offset(got[i], void *, STAMP_AT),
				       sizeof(stamp));
			if (stamp.magic != magic)
				continue;
			packets++;
			if (stamp.left_ns)
				histogram[bucket_of(now - stamp.left_ns)]++;
		}
		rte_pktmbuf_free_bulk(got, n);
	}
}

static void send_some(uint16_t n, int stamped)
{
	struct rte_mbuf *burst[BATCH];
	uint64_t left = stamped ? now_ns() : 0;
	uint16_t sent;

	if (rte_pktmbuf_alloc_bulk(pool, burst, n)) { /* all are with the device */
		refused += n;
		return;
	}
	for (uint16_t i = 0; i < n; i++) {
		uint8_t *data = rte_pktmbuf_mtod(burst[i], uint8_t *);

		memcpy(data, frame, frame_bytes);
		memcpy(data + STAMP_AT + sizeof(uint32_t), &left, sizeof(left));
		burst[i]->data_len = burst[i]->pkt_len = frame_bytes;
	}
	sent = rte_eth_tx_burst(0, 0, burst, n);
	taken += sent;
	refused += n - sent;
	rte_pktmbuf_free_bulk(burst + sent, n - sent);
}

static int links_are_up(void)
{
	struct rte_eth_link link;

	for (uint16_t device = 0; device < devices; device++)
		if (rte_eth_link_get_nowait(device, &link) || !link.link_status)
			return 0;
	return 1;
}

static void need_links(const char *why)
{
	for (int ms = 0; !links_are_up(); ms++) {
		if (ms == LINK_MS) {
			fprintf(stderr, "dpdk_source: %s\n", why);
			exit(1);
		}
		rte_delay_us_sleep(1000);
	}
}

static void serve(double seconds, double rate)
{
	uint64_t start, end, last, longest = 0;
	uint32_t burst = rate * 20e-6;
	double due;

	need_links("nobody is at the other end of the device");
	burst = !rate || burst > BATCH ? BATCH : burst < 1 ? 1 : burst;
	taken = refused = 0;
	due = start = last = now_ns();
	end = start + seconds * 1e9;
	for (uint64_t now = start; now < end && due < end; now = now_ns()) {
		uint64_t since;

		if (reads)
			read_all();
		if (rate && now < due)
			continue;
		send_some(burst, rate > 0);
		since = last > due ? last : due;
		last = now_ns();
		if (rate && last > since && last - since > longest)
			longest = last - since;
		due = rate ? due + burst / rate * 1e9 : now;
	}
	end = now_ns();
	if (rate && due > end)
		end = due;
	if (!links_are_up()) {
		fprintf(stderr, "dpdk_source: the other end of the device vanished\n");
		exit(1);
	}
	printf("{\"frames\": %llu, \"seconds\": %.9f, \"rate\": %.3f, \"longest_gap_s\": %.9f, "
	       "\"refused\": %llu}\n", (unsigned long long)taken, (end - start) * 1e-9, rate,
	       longest * 1e-9, (unsigned long long)refused);
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
}

static void open_device(uint16_t device)
{
	struct rte_eth_conf conf = {0};
	int error = rte_eth_dev_configure(device, 1, 1, &conf);

	if (!error)
		error = rte_eth_rx_queue_setup(device, 0, DESCRIPTORS, SOCKET_ID_ANY, NULL, pool);
	if (!error)
		error = rte_eth_tx_queue_setup(device, 0, DESCRIPTORS, SOCKET_ID_ANY, NULL);
	if (!error)
		error = rte_eth_dev_start(device);
	if (error)
		die("start the device", -error);
}

int main(int argc, char **argv)
{
	struct pollfd in = {.fd = 0, .events = POLLIN};
	int used = rte_eal_init(argc, argv);
	double seconds, rate;
	char line[256];

	if (used < 0)
		die("EAL", rte_errno);
	if (argc - used != 3)
		return 2;
	frame_bytes = strlen(argv[used + 1]) / 2;
	if (frame_bytes > ROOM || frame_bytes < STAMP_AT + sizeof(struct stamp))
		die("the frame", EMSGSIZE);
	for (uint32_t at = 0; at < frame_bytes; at++)
		sscanf(argv[used + 1] + 2 * at, "%2hhx", &frame[at]);
	memcpy(&magic, frame + STAMP_AT, sizeof(magic));
	reads = !strcmp(argv[used + 2], "reads");
	pool = rte_pktmbuf_pool_create("source", MBUFS, BATCH, 0, ROOM + RTE_PKTMBUF_HEADROOM,
				       SOCKET_ID_ANY);
	if (!pool)
		die("mbufs", rte_errno);
	devices = rte_eth_dev_count_avail();
	if (!devices)
		die("devices", ENODEV);
	for (uint16_t device = 0; device < devices; device++)
		open_device(device);
	setvbuf(stdin, NULL, _IONBF, 0); /* poll(2) has to see what is there */
	printf("ready\n");
	for (;;) {
		fflush(stdout);
		do {
			for (int i = 0; reads && i < LOOKS; i++)
				read_all();
		} while (!poll(&in, 1, reads ? 0 : -1));
		if (!fgets(line, sizeof(line), stdin))
			return 0;
		if (sscanf(line, "{\"seconds\": %lf, \"rate\": %lf,", &seconds, &rate) == 2)
			serve(seconds, rate);
		else
			tell();
	}
}
