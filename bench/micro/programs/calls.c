// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One loop for two compilers: it calls a program of either through a pointer, on frames in turn. */
typedef unsigned int u32;
typedef unsigned long long u64;

u32 calls(u32 (*program)(void *), char *states, u64 stride, u64 frames, u64 count)
{
	u32 verdict = 0;
	for (u64 i = 0; i < count; i++)
		verdict = program(states + (i & (frames - 1)) * stride);
	return verdict;
}
