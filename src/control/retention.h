/*
 * retention.h
 *	  What is kept for a time only.
 */
#ifndef ELT_RETENTION_H
#define ELT_RETENTION_H

/* Deletes some of what is older than the settings say, if it is time to; in a transaction of its own. */
extern void elt_retention_run(void);

#endif							/* ELT_RETENTION_H */
