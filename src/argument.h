/*
 * argument.h
 *	  Arguments of SQL functions, checked.
 */
#ifndef ELT_ARGUMENT_H
#define ELT_ARGUMENT_H

#include "fmgr.h"

/* A text argument that must not be null; "what" names it in the error. */
extern char *elt_argument_text(FunctionCallInfo fcinfo, int number, const char *what);

/* Refuses what cannot name a "source" or a "pipeline". */
extern void elt_argument_check_name(const char *name, const char *what);

#endif							/* ELT_ARGUMENT_H */
