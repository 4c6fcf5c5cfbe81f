// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* LD_PRELOADed: the kernel refuses, as often as STORM says ("sendto 11 90 7": errno 11 for 90 of
 * 100 calls of sendto, seed 7).  Of sendto only wake-ups of a socket's rings, which have no buffer;
 * of writev only frames for a TAP, which have a virtio header first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int error, percent;
static uint64_t state;
static char call[16];

__attribute__((constructor)) static void read_storm(void)
{
	const char *text = getenv("STORM");
	unsigned long long seed = 0;

	if (text && sscanf(text, "%15s %d %d %llu", call, &error, &percent, &seed) != 4)
		abort();
	state = seed * 2862933555777941757ULL + 3037000493ULL;
}

static int refused(const char *name)
{
	if (strcmp(call, name))
		return 0;
	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	if ((int)((state >> 33) % 100) >= percent)
		return 0;
	errno = error;
	return 1;
}

ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to,
	       socklen_t to_bytes)
{
	static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);

	if (!data && !length && refused("sendto"))
		return -1;
	if (!real)
		real = dlsym(RTLD_NEXT, "sendto");
	return real(fd, data, length, flags, to, to_bytes);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	static ssize_t (*real)(int, const struct iovec *, int);

	if (count == 2 && (parts[0].iov_len == 10 || parts[0].iov_len == 12) && refused("writev"))
		return -1;
	if (!real)
		real = dlsym(RTLD_NEXT, "writev");
	return real(fd, parts, count);
}
