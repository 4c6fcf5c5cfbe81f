// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The balancer with what every one has: about 2,700 instructions. */
#include "balancer.h"
