/*
 * alloc.h
 *	  Memory of the code under test comes chunk by chunk from fuzz.c, which
 *	  watches where each ends; put before each file by test/fuzz/build.
 *
 * All of it is freed after each input.  What core allocated is core's.
 */
#ifndef FUZZ_ALLOC_H
#define FUZZ_ALLOC_H

#include "postgres.h"
#include "utils/memutils.h"

extern void *fuzz_alloc(Size size, bool zero);
extern void *fuzz_realloc(void *old, Size size);
extern char *fuzz_strndup(const char *string, Size length);

#define palloc(size)				fuzz_alloc((size), false)
#define palloc0(size)				fuzz_alloc((size), true)
#define repalloc(old, size)			fuzz_realloc((old), (size))
#define repalloc_huge(old, size)	fuzz_realloc((old), (size))
#define pnstrdup(string, length)	fuzz_strndup((string), (length))
#define pstrdup(string)				fuzz_strndup((string), strlen(string))
#define pfree(pointer)				((void) (pointer))

#endif							/* FUZZ_ALLOC_H */
