/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The clock and the buckets of a histogram of latencies, as in ../histogram.py. */
#ifndef LATENCY_H
#define LATENCY_H

#include <stdint.h>
#include <time.h>

enum { FINE_BITS = 4, BUCKETS = 32 << FINE_BITS };

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static inline unsigned bucket_of(uint64_t ns)
{
	unsigned exponent;

	if (ns >> 32)
		return BUCKETS - 1;
	if (ns < 1 << FINE_BITS)
		return ns;
	exponent = 63 - __builtin_clzll(ns);
	return exponent << FINE_BITS | (ns >> (exponent - FINE_BITS) & ((1 << FINE_BITS) - 1));
}

#endif
