// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The host of examples/policy/web.yaml, which says the same as the annotations here. */
#include "web.h"

#include <stdio.h>
#include <unistd.h>

#include "xdpu_host.h"

XDPU_HOST("read readPid web_pid");
pid_t web_pid;

XDPU_HOST("read readRequest struct web_request_t method uri agent client");

XDPU_HOST("call now web_now return > 0");
time_t web_now(void)
{
	return time(NULL);
}

XDPU_HOST("call respond web_respond request != 0; status >= 400; status <= 599");
int web_respond(web_request_t *request, int status, const char *text)
{
	request->status = status;
	return printf("%d %s\n", status, text);
}

XDPU_HOST("entry processBegin web_process_request");
void web_process_request(web_request_t *request)
{
	if (!request->status)
		web_respond(request, 404, "not found");
}

int main(void)
{
	web_request_t request = {.method = "GET", .uri = "/", .agent = "-"};

	web_pid = getpid();
	web_process_request(&request);
	return web_now() <= 0;
}
