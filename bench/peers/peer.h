/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What `xdpu bench prog --peer FILE.so` asks of another engine: a shared object with these
 * functions.  Which programs of an object it can run is its own affair: load refuses the others,
 * with a reason, which is shown.  dpdk_bpf.c is an example.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* One word, for tables. */
const char *peer_name(void);

/* A program of an ELF object, or NULL and a sentence in `why`.  `program` is its function's name. */
void *peer_load(const char *object, const char *program, char *why, size_t why_bytes);

/* Make it ready to run, to machine code if the engine can: 0, or -1 and a sentence in `why`. */
int peer_compile(void *loaded, char *why, size_t why_bytes);

/* Run `count` times, each on a fresh copy of `packet`, and return the last verdict (XDP_*, or
 * what says that it failed: -1).  `packet` has `bytes` bytes; what became of it goes to `out`, which
 * has room for `*out_bytes`, and its length to `*out_bytes`.  With NULL in `loaded`: the same without
 * a program, which is what the loop costs by itself.
 */
int64_t peer_run(void *loaded, const uint8_t *packet, uint32_t bytes, uint64_t count, uint8_t *out,
		 uint32_t *out_bytes);

void peer_close(void *loaded);
