/*
 * guc.h
 *	  The settings of elt. All can be changed by a reload.
 */
#ifndef ELT_GUC_H
#define ELT_GUC_H

extern int	elt_max_workers;	/* transform workers per database */
extern int	elt_batch_changes;	/* changes read per batch of a pipeline */
extern int	elt_batch_bytes_kb; /* kB read per batch of a pipeline */
extern int	elt_raw_partition_changes;	/* change_ids per leaf partition */
extern int	elt_quarantine_retention_s; /* how long resolved rows are kept;
										 * -1: for ever */
extern char *elt_local_conninfo;	/* how a worker reaches its own server */

extern void elt_guc_define(void);

#endif							/* ELT_GUC_H */
