/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a standalone program: main.c, capture.c (files), socket.c (an interface), records.c. */
#ifndef XDPU_STANDALONE_H
#define XDPU_STANDALONE_H

#include "xdpu.h"

#include <signal.h>
#include <stdio.h>
#include <stdnoreturn.h>

enum {
	BATCH = 64,
	FRAME_BYTES = 4096,
	HEADROOM_BYTES = 256, /* XDP_PACKET_HEADROOM */
	XDP_FRAME_BYTES = 40, /* of the headroom, never given away */
	TAILROOM_BYTES = 320, /* skb_shared_info */
	LONGEST_BYTES = FRAME_BYTES - HEADROOM_BYTES - TAILROOM_BYTES,
};

enum { EXIT_USAGE = 2, EXIT_PORT = 3 }; /* as xdpu's */

struct counters {
	uint64_t rx, verdicts[5], invalid; /* invalid ones count as aborted, too */
	uint64_t lost; /* had nowhere to go, or no room there */
};

extern volatile sig_atomic_t stopping;

noreturn void fail(int code, const char *what, const char *why);

/* Sets the edges around `length` bytes at the headroom of a frame. */
void place(struct xdpu_packet *packet, uint8_t *frame, size_t length);

/* Run, and count verdicts; they are 0 to 4 afterwards. */
void run(struct xdpu_packet *packets, size_t count, unsigned worker, struct counters *counters);

/* `out` NULL: nothing is written; "-": standard output. */
void run_capture(const char *in, const char *out, struct counters *counters);

struct interface {
	const char *name, *tap; /* tap NULL: what is passed is lost */
	int generic; /* XDP in the stack instead of the driver */
};

int run_interface(const struct interface *interface, struct counters *counters);

/* --records: NAME=FILE.  Read after each batch, or, once followed, by a thread of their own. */
void take_records(char *setting);
extern int records_on_stdout;
void records_of_batch(void);
void follow_records(void);
void end_records(FILE *to); /* the last of them; their numbers as members of a JSON object */

#endif
