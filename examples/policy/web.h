/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A web server in miniature: the shapes that extensions of one meet. */
#ifndef WEB_H
#define WEB_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

typedef struct web_request {
	const char *method;
	const char *uri;
	const char *agent;
	uint32_t client;
	int status;
	void *secret;
} web_request_t;

#endif
