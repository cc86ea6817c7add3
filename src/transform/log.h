/*
 * log.h
 *	  Reading raw staging: windows of one relation's log.
 */
#ifndef ELT_LOG_H
#define ELT_LOG_H

#include "access/htup.h"
#include "access/tupdesc.h"
#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "raw.h"

/* One change. The values point into the tuple, are never external, and may be short. */
typedef struct EltLogRow
{
	int64		change_id;
	XLogRecPtr	commit_lsn;
	TimestampTz commit_ts;
	int32		key_hash;
	int32		schema_version;
	char		op;
	Datum		key;			/* 0: null, as in the next three */
	Datum		before;			/* may be out of line where after is there */
	Datum		after;
	Datum		unchanged;
	MinimalTuple tuple;			/* NULL: not one that was asked for */
	int64		quarantine_id;	/* comes from elt.quarantine; 0: from the log */
	ItemPointerData place;		/* its row of quarantine_unresolved then */
	bool		failed;			/* was quarantined, or stays so */
	bool		moot;			/* not to be applied; see
								 * elt_collapse_transactions */

	/* set by elt_log_walk only, which gives neither values nor tuple */
	uint64		fingerprint;	/* of the key; see elt_log_key_fingerprint */
	bool		partial;		/* "unchanged" names columns */
	bool		matches;
} EltLogRow;

typedef struct EltLogRequest
{
	Oid			raw;			/* the partition of raw staging */
	const char *topic;			/* of messages; NULL: rows of a table */
	int64		after;			/* change_id that is settled already */
	int64		upto;			/* last change_id of interest */
	const bool *lanes;			/* which lanes are asked for */
	int			nlanes;
	int			max_changes;
	int64		max_bytes;
	bool		whole_commits;	/* exceed the limits up to fourfold to end
								 * between commits */
	bool		one_schema_version;
} EltLogRequest;

typedef struct EltLogWindow
{
	TupleDesc	desc;			/* of the rows' tuples */
	EltLogRow **rows;			/* in order of change_id */
	int			nrows;
	int64		position;		/* all up to here is in rows, or of other
								 * lanes */
	XLogRecPtr	settled_lsn;	/* last commit that is complete; invalid: none */
	EltLogRow  *barrier;		/* the truncate that ends the window, else
								 * NULL */
	bool		at_end;			/* there was no more to see */
} EltLogWindow;

/* A look at each change but its images. */
typedef struct EltLogWalk
{
	Oid			raw;
	const char *topic;
	int64		after;
	int64		upto;
	int64		max_changes;	/* it ends after about that many */
	bool		(*matches) (void *arg, Datum key);	/* of any key that is not
													 * null; it may be
													 * compressed or out of
													 * line; NULL: all match */
	void		(*visit) (void *arg, const EltLogRow *row); /* in order of change_id */
	void	   *arg;
} EltLogWalk;

typedef struct EltLogBacklog
{
	double		changes;
	double		bytes;
	TimestampTz oldest_commit_ts;	/* 0: nothing pending */
} EltLogBacklog;

/*
 * All need an active snapshot.  elt_log_read's result is allocated in the
 * current memory context.
 */
extern EltLogWindow *elt_log_read(const EltLogRequest *request);
extern int64 elt_log_tail(Oid raw);

/* The change_id that readers stop before while a copy is made, else PG_INT64_MAX. */
extern int64 elt_log_horizon(Oid raw);

/* Returns where to walk on from: upto, once all of that was seen. */
extern int64 elt_log_walk(const EltLogWalk *walk);
extern void elt_log_measure(Oid raw, const char *topic, const int64 *positions, int nlanes,
							EltLogBacklog *backlog);
extern double elt_log_count(Oid raw, const char *topic, int64 after);
extern double elt_log_pending_share(const int64 *positions, int nlanes, int64 tail);

/*
 * 64 bits of a key's jsonb form: with key_hash they tell keys apart, but for
 * accidents that nobody will see.  0 where there is no key.
 */
extern uint64 elt_log_key_fingerprint(Datum key);

/*
 * elt_log_fetch
 *		The changes with these change_ids, which must be sorted, in "rows", up
 *		to max_bytes of them or to the first that is not there.  Returns how
 *		many that are, and what describes their tuples.
 *
 * elt_log_visit
 *		Calls back for the changes behind "after" and up to "upto" that are
 *		wanted, which is asked before their values are there.  They are gone
 *		after the call.
 */
typedef bool (*EltLogWanted) (const EltLogRow *row, void *arg);
typedef void (*EltLogVisit) (const EltLogRow *row, void *arg);

extern int	elt_log_fetch(Oid raw, const char *topic, const int64 *change_ids, int n,
						  int64 max_bytes, EltLogRow **rows, TupleDesc *desc);
extern void elt_log_visit(Oid raw, const char *topic, int64 after, int64 upto,
						  EltLogWanted wanted, EltLogVisit visit, void *arg);

/* A row of raw staging's columns; the slot is of minimal tuples. */
extern EltLogRow *elt_log_form(TupleTableSlot *slot, Datum *values, bool *nulls);

extern EltLogRow *elt_log_replace(TupleDesc desc, const EltLogRow *row, Datum after, Datum unchanged);
extern EltLogRow *elt_log_redate(TupleDesc desc, const EltLogRow *row, TimestampTz commit_ts);

#endif							/* ELT_LOG_H */
