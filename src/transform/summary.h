/*
 * summary.h
 *	  Errors in one line.
 */
#ifndef ELT_SUMMARY_H
#define ELT_SUMMARY_H

#include "utils/elog.h"

/*
 * elt_summary_note_origin
 *		Notes whether an error came out of user code.  To be called where it is
 *		caught, before anything is rolled back.
 *
 * elt_summary
 *		The error for who may see all: the pipeline's owner.
 *
 * elt_summary_for_all
 *		The error without what may be a row's data: for the log, for
 *		pg_monitor, for health().
 */
extern void elt_summary_note_origin(ErrorData *error);
extern char *elt_summary(const ErrorData *error);
extern char *elt_summary_for_all(const ErrorData *error);

#endif							/* ELT_SUMMARY_H */
