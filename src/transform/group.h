/*
 * group.h
 *	  Pipelines that settle together: option "group".
 */
#ifndef ELT_GROUP_H
#define ELT_GROUP_H

#include "transform/batch.h"
#include "transform/isolate.h"

typedef struct EltGroupMember
{
	EltWork		work;			/* must be first */
	struct EltGroup *group;
	int			lanes[ELT_MAX_LANES];
	int64		settled;		/* position of all its lanes */
	int64		position;		/* the same, as this transaction will leave it */
	XLogRecPtr	settled_lsn;
	int64		read;
	bool		unblocked;		/* its commit ends the pipeline's block */
	EltLogWindow *window;		/* behind the position */
	int64		horizon;		/* of its log; see log_scan.c */
	int			merged;			/* rows of the window that are items */
	int			next;			/* the first of its rows that is not done with */
	int64		tried_written;	/* rows of the target, in the present try */
	int			rank;			/* 0: refers to no other target; else one more
								 * than those it refers to */
} EltGroupMember;

/* A change on its way, in the order of the source. */
typedef struct EltGroupItem
{
	EltGroupMember *member;
	EltLogRow  *row;
} EltGroupItem;

typedef struct EltGroup
{
	EltGroupMember *members;	/* parents first, by the targets' foreign keys */
	int			nmembers;
	bool		own_transaction;
	int64		max_changes;	/* to read of each member; 0: as configured */
	bool		announced;		/* see attempt.c */
	XLogRecPtr	open_commit;	/* a source transaction of which there may be
								 * more */
	EltGroupItem *items;
	int			nitems;
	bool		careful;		/* apply them one by one, as elt.attempts asks
								 * for */
	int			subtransactions;	/* that wrote */
	EltGroupMember *at;			/* being applied, or where it ended */

	/* of elt_group_apply: the items that are being tried */
	int			low;
	int			high;
	bool		writes_first;
	EltIsolateParts **parts;	/* what each member does of them */
	ErrorData  *error;
} EltGroup;

/* All pipelines of its group, itself too; NIL: it has none. */
extern List *elt_group_of(const EltPipeline *pipeline);

/* Whether two pipelines are of the same one. */
extern bool elt_group_is_same(const EltPipeline *a, const EltPipeline *b);

/* Raises where a group of that name is of another owner or source. */
extern void elt_group_check(const EltPipeline *pipeline);

/* As elt_batch_run, for all pipelines of a group at once. */
extern EltBatchEnd elt_group_run(List *pipelines, int64 max_changes,
								 EltBatchCounts *counts, bool own_transaction);

/* Puts parents before children, by the foreign keys between their targets. */
extern void elt_group_sort(EltGroup *group);

/*
 * What comes next, in this order: elt_group_read reads the windows,
 * elt_group_limit tells up to which change_id they tell all, elt_group_merge
 * makes items of that, elt_group_cut leaves out what is no whole source
 * transaction (or returns it, where it is the only one), and
 * elt_group_heed_attempts what should not be tried together.
 *
 * Where there are no items: elt_group_first_special tells whose copied rows or
 * truncate come next, and elt_group_take_copied makes items of such rows.
 * elt_group_next_row: what comes behind a member's items, NULL: not known.
 */
extern void elt_group_read(EltGroup *group);
extern int64 elt_group_limit(EltGroup *group);
extern void elt_group_merge(EltGroup *group, int64 limit);
extern XLogRecPtr elt_group_cut(EltGroup *group);
extern bool elt_group_heed_attempts(EltGroup *group);
extern EltGroupMember *elt_group_first_special(EltGroup *group);
extern void elt_group_take_copied(EltGroup *group, EltGroupMember *member);
extern EltLogRow *elt_group_next_row(const EltGroupMember *member);

/*
 * Applies the group's items from the first on, at least all of one source
 * transaction; returns how many are done with, which are whole source
 * transactions unless it is all.  -1: the step cannot go on, group->at says
 * why.
 */
extern int	elt_group_apply(EltGroup *group);

#endif							/* ELT_GROUP_H */
