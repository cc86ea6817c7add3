/*
 * print.h
 *	  Values whose text PostgreSQL cannot hold.
 */
#ifndef ELT_PRINT_H
#define ELT_PRINT_H

#include "fmgr.h"
#include "utils/memutils.h"

/* Values with fewer bytes have a text that fits, in all likelihood by far. */
#define ELT_PRINT_CAREFULLY		(16 * 1024)

/* What is told as the size of a text that is longer than this. */
#define ELT_UNPRINTABLE_SIZE	MaxAllocSize

/* A value's text; NULL where it is longer than PostgreSQL can hold. */
extern const char *elt_print(FmgrInfo *output, Datum value);

/* Whether an error says that a text is longer than PostgreSQL can hold. */
extern bool elt_print_error(int sqlstate, const char *message);

#endif							/* ELT_PRINT_H */
