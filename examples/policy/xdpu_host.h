/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a host grants to extensions, said where it is defined; the types are the debug
 * information's.  `xdpu policy host --binary HOST` prints the specification.
 *
 *	XDPU_HOST("entry processBegin web_process_request");
 *	XDPU_HOST("read readPid web_pid");
 *	XDPU_HOST("read readRequest struct web_request method uri");
 *	XDPU_HOST("call now web_now return > 0");
 */
#ifndef XDPU_HOST_H
#define XDPU_HOST_H

#define XDPU_HOST_JOIN_(a, b) a##b
#define XDPU_HOST_NAME_(n) XDPU_HOST_JOIN_(xdpu_host_, n)
#define XDPU_HOST(text) \
	static const char XDPU_HOST_NAME_(__COUNTER__)[] \
	__attribute__((used, section(".xdpu.host"))) = text

#endif
