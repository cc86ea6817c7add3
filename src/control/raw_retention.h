/*
 * raw_retention.h
 *	  Raw staging is kept for a time only.
 */
#ifndef ELT_RAW_RETENTION_H
#define ELT_RAW_RETENTION_H

/* Drops some of the leaves whose time is over, and ends the ranges of old ones, if it is time to; in transactions of its own. */
extern void elt_raw_retention_run(void);

#endif							/* ELT_RAW_RETENTION_H */
