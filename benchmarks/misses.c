// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What it takes this machine to read a cache line that it has not read for a while: pointers, each
 * in a line of its own and in random order, are followed through so many MB.
 *
 *     cc -O2 -o build/misses benchmarks/misses.c && build/misses
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LINE  64
#define STEPS 4000000

static double ns_a_step(size_t lines)
{
	size_t *order = malloc(lines * sizeof(*order)), i;
	char *memory = aligned_alloc(4096, lines * LINE);
	void **at = (void **)memory;
	struct timespec began, ended;

	for (i = 0; i < lines; i++)
		order[i] = i;
	for (i = lines - 1; i; i--) { /* Sattolo: one circle through all of them */
		size_t other = ((size_t)rand() << 31 | rand()) % i, kept = order[i];

		order[i] = order[other];
		order[other] = kept;
	}
	for (i = 0; i < lines; i++)
		*(void **)(memory + i * LINE) = memory + order[i] * LINE;
	for (i = 0; i < lines; i++)
		at = *at;
	clock_gettime(CLOCK_MONOTONIC, &began);
	for (i = 0; i < STEPS; i++)
		at = *at;
	clock_gettime(CLOCK_MONOTONIC, &ended);
	if (!at) /* never: or the compiler would leave it all out */
		abort();
	free(memory);
	free(order);
	return ((ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)) / STEPS;
}

int main(void)
{
	for (size_t kB = 256; kB <= 65536; kB *= 2)
		printf("%5.2f MB: %5.1f ns\n", kB / 1024.0, ns_a_step(kB * 1024 / LINE));
}
