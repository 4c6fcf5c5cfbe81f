/* SPDX-License-Identifier: Apache-2.0 */
/* --records NAME=FILE of a standalone program: each record of a ring as a line of hex digits. */
#include "standalone.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TAKERS_MAX = 64, POLL_MS = 200 };

struct taker {
	const struct xdpu_map *map;
	const char *name;
	FILE *to;
	uint64_t records;
};

int records_on_stdout;

static struct taker takers[TAKERS_MAX];
static unsigned taker_count;
static pthread_t thread;
static volatile int following, over;

void take_records(char *setting)
{
	struct taker *taker = &takers[taker_count];
	char *file = strchr(setting, '=');

	if (!file)
		fail(EXIT_USAGE, setting, "is not NAME=FILE");
	*file++ = 0;
	taker->map = xdpu_map_find(setting);
	if (!taker->map)
		fail(EXIT_USAGE, setting, "the program has no such map");
	if (!xdpu_ring_count(taker->map))
		fail(EXIT_USAGE, setting, "is no ring buffer and no perf event array");
	if (taker_count == TAKERS_MAX)
		fail(EXIT_USAGE, setting, "there are too many of --records");
	taker->name = setting;
	taker->to = strcmp(file, "-") ? fopen(file, "w") : stdout;
	records_on_stdout |= taker->to == stdout;
	if (!taker->to)
		fail(EXIT_USAGE, file, strerror(errno));
	taker_count++;
}

static int write_record(void *context, const void *data, size_t size)
{
	static const char digits[] = "0123456789abcdef";
	struct taker *taker = context;
	const uint8_t *bytes = data;

	for (size_t i = 0; i < size; i++) {
		putc(digits[bytes[i] >> 4], taker->to);
		putc(digits[bytes[i] & 15], taker->to);
	}
	putc('\n', taker->to);
	taker->records++;
	return 0;
}

static void take_all(void)
{
	for (unsigned i = 0; i < taker_count; i++)
		for (unsigned ring = 0; ring < xdpu_ring_count(takers[i].map); ring++)
			xdpu_ring_consume(takers[i].map, ring, write_record, &takers[i]);
}

void records_of_batch(void)
{
	if (taker_count && !following)
		take_all();
}

/* Wakes up when a ring says so, and shows what it has at once. */
static void *follow(void *argument)
{
	struct pollfd *events = NULL;
	unsigned count = 0;

	for (unsigned i = 0; i < taker_count; i++)
		for (unsigned ring = 0; ring < xdpu_ring_count(takers[i].map); ring++) {
			int fd = xdpu_ring_event(takers[i].map, ring);

			events = realloc(events, (count + 1) * sizeof(*events));
			if (fd < 0 || !events)
				fail(1, takers[i].name, strerror(fd < 0 ? -fd : ENOMEM));
			events[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
		}
	do {
		uint64_t times;

		take_all();
		for (unsigned i = 0; i < taker_count; i++)
			fflush(takers[i].to);
		poll(events, count, POLL_MS);
		for (unsigned i = 0; i < count; i++)
			if (events[i].revents & POLLIN && read(events[i].fd, &times, 8) < 0 &&
			    errno != EAGAIN)
				fail(1, "records", strerror(errno));
	} while (!over);
	free(events);
	return argument;
}

void follow_records(void)
{
	following = taker_count > 0;
	if (following && (errno = pthread_create(&thread, NULL, follow, NULL)))
		fail(1, "a thread for records", strerror(errno));
}

void end_records(FILE *to)
{
	over = 1;
	if (following)
		pthread_join(thread, NULL);
	take_all();
	for (unsigned i = 0; i < taker_count; i++) {
		uint64_t lost = 0;

		for (unsigned ring = 0; ring < xdpu_ring_count(takers[i].map); ring++)
			lost += xdpu_ring_lost(takers[i].map, ring);
		if (fflush(takers[i].to))
			fail(1, takers[i].name, strerror(errno));
		fprintf(to, "%s\"%s\": {\"records\": %llu, \"lost\": %llu}", i ? ", " : "", takers[i].name,
			(unsigned long long)takers[i].records, (unsigned long long)lost);
	}
}
