/*
 * log.c
 *	  Reading raw staging: windows of one relation's log for a batch, and other
 *	  looks at it (see log_scan.c for how it is read).
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "capture/change.h"
#include "compat.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "transform/log_scan.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define MAX_PASSED_OVER	1000000 /* changes of other lanes in one window */
#define FETCH_GAP		2048	/* change_ids that are read over rather than
								 * searched behind */

/* How full a window is. */
typedef struct Filling
{
	int64		bytes;
	int64		passed_over;
	XLogRecPtr	last_lsn;		/* commit of the last change */
} Filling;

static bool accept_row(const EltLogRequest *request, EltLogWindow *window, EltLogRow *row,
					   Filling *filling);
static void append_row(EltLogWindow *window, EltLogRow *row);
static EltLogRow *replace(TupleDesc desc, const EltLogRow *row, Datum after, Datum unchanged,
						  TimestampTz commit_ts);

/*
 * elt_log_read
 *		Reads the changes of some lanes behind a position.
 */
EltLogWindow *
elt_log_read(const EltLogRequest *request)
{
	EltLogWindow *window = palloc0(sizeof(EltLogWindow));
	EltLogScan *scan = elt_log_scan_begin(request->raw, request->after, request->topic,
										  request->lanes, request->nlanes);
	Filling		filling = {0};
	EltLogRow  *row;

	window->position = request->after;
	window->desc = scan->copy ? CreateTupleDescCopy(scan->copy->tts_tupleDescriptor) : NULL;
	while ((row = elt_log_scan_next(scan)) != NULL)
	{
		if (!accept_row(request, window, row, &filling))
			break;
		if (row->tuple == NULL)
			pfree(row);
	}
	window->at_end = (row == NULL);

	/* Who stands at upto has seen the log that far. */
	if (row == NULL && request->upto < PG_INT64_MAX)
		window->position = Max(window->position, request->upto);

	/*
	 * The commit that the window ends in is settled only if nothing of it
	 * follows.
	 */
	if (row == NULL || row->commit_lsn != filling.last_lsn)
		window->settled_lsn = filling.last_lsn;
	elt_log_scan_end(scan);
	return window;
}

/* Takes the next change into the window; false where the window ends before it. */
static bool
accept_row(const EltLogRequest *request, EltLogWindow *window, EltLogRow *row,
		   Filling *filling)
{
	bool		full = window->nrows >= request->max_changes ||
	filling->bytes >= request->max_bytes || filling->passed_over >= MAX_PASSED_OVER;
	bool		overfull = window->nrows >= 4 * (int64) request->max_changes ||
	filling->bytes >= 4 * request->max_bytes || filling->passed_over >= 4 * MAX_PASSED_OVER;

	if (row->change_id > request->upto)
	{
		window->position = request->upto;
		return false;
	}
	if (full && (!request->whole_commits || overfull || row->commit_lsn != filling->last_lsn))
		return false;
	if (row->op == ELT_OP_TRUNCATE)
	{
		window->position = row->change_id - 1;
		window->barrier = row;
		return false;
	}
	if (row->tuple != NULL)
	{
		if (request->one_schema_version && window->nrows > 0 &&
			row->schema_version != window->rows[0]->schema_version)
			return false;
		append_row(window, row);
		filling->bytes += row->tuple->t_len;
	}
	else
		filling->passed_over++;
	window->position = row->change_id;
	filling->last_lsn = row->commit_lsn;
	return true;
}

static void
append_row(EltLogWindow *window, EltLogRow *row)
{
	int			n = window->nrows;

	if (n == 0)
		window->rows = palloc(64 * sizeof(EltLogRow *));
	else if (n >= 64 && (n & (n - 1)) == 0)
		window->rows = repalloc_huge(window->rows, 2 * (Size) n * sizeof(EltLogRow *));
	window->rows[window->nrows++] = row;
}

int64
elt_log_walk(const EltLogWalk *walk)
{
	EltLogScan *scan = elt_log_scan_begin(walk->raw, walk->after, walk->topic, NULL, 1);
	int64		position = walk->after;
	int64		count = 0;
	EltLogRow  *row;

	scan->walk = walk;
	while ((row = elt_log_scan_next(scan)) != NULL && row->change_id <= walk->upto && count < walk->max_changes)
	{
		if (row->op != '\0')
			walk->visit(walk->arg, row);
		position = row->change_id;
		count++;
		pfree(row);
	}
	if (row == NULL || row->change_id > walk->upto)
		position = walk->upto;
	elt_log_scan_end(scan);
	return position;
}

/* What elt_log_fetch looks for. */
typedef struct Wanted
{
	const int64 *change_ids;
	int			n;
} Wanted;

static bool
is_wanted(const EltLogRow *row, void *arg)
{
	Wanted	   *wanted = arg;
	int			low = 0;
	int			high = wanted->n - 1;

	while (low <= high)
	{
		int			middle = low + (high - low) / 2;

		if (wanted->change_ids[middle] == row->change_id)
			return true;
		if (wanted->change_ids[middle] < row->change_id)
			low = middle + 1;
		else
			high = middle - 1;
	}
	return false;
}

/* Reads on from one to the next where they are near, else searches anew. */
int
elt_log_fetch(Oid raw, const char *topic, const int64 *change_ids, int n,
			  int64 max_bytes, EltLogRow **rows, TupleDesc *desc)
{
	Wanted		wanted = {change_ids, n};
	int64		bytes = 0;
	int			found = 0;
	bool		on = true;

	*desc = NULL;
	while (on && found < n)
	{
		EltLogScan *scan = elt_log_scan_begin(raw, change_ids[found] - 1, topic, NULL, 1);
		bool		near = true;
		EltLogRow  *row;

		scan->wanted = is_wanted;
		scan->wanted_arg = &wanted;
		if (*desc == NULL && scan->copy != NULL)
			*desc = CreateTupleDescCopy(scan->copy->tts_tupleDescriptor);
		while (on && near && found < n)
		{
			row = elt_log_scan_next(scan);
			if (row == NULL || row->change_id > change_ids[found])
				on = false;
			else if (row->change_id < change_ids[found] || row->tuple == NULL)
			{
				near = change_ids[found] - row->change_id <= FETCH_GAP;
				pfree(row);
			}
			else
			{
				rows[found++] = row;
				bytes += row->tuple->t_len;
				on = bytes < max_bytes;
			}
		}
		elt_log_scan_end(scan);
	}
	return found;
}

void
elt_log_visit(Oid raw, const char *topic, int64 after, int64 upto,
			  EltLogWanted wanted, EltLogVisit visit, void *arg)
{
	EltLogScan *scan = elt_log_scan_begin(raw, after, topic, NULL, 1);
	EltLogRow  *row;

	scan->wanted = wanted;
	scan->wanted_arg = arg;
	while ((row = elt_log_scan_next(scan)) != NULL && row->change_id <= upto)
	{
		if (row->tuple != NULL)
		{
			visit(row, arg);
			pfree(row->tuple);
		}
		pfree(row);
	}
	elt_log_scan_end(scan);
}

EltLogRow *
elt_log_form(TupleTableSlot *slot, Datum *values, bool *nulls)
{
	EltLogRow  *row = palloc0(sizeof(EltLogRow));

	row->change_id = DatumGetInt64(values[ELT_RAW_CHANGE_ID - 1]);
	row->commit_lsn = DatumGetLSN(values[ELT_RAW_COMMIT_LSN - 1]);
	row->commit_ts = DatumGetTimestampTz(values[ELT_RAW_COMMIT_TS - 1]);
	row->key_hash = DatumGetInt32(values[ELT_RAW_KEY_HASH - 1]);
	row->schema_version = DatumGetInt32(values[ELT_RAW_SCHEMA_VERSION - 1]);
	row->op = DatumGetChar(values[ELT_RAW_OP - 1]);
	row->tuple = elt_form_minimal_tuple(slot->tts_tupleDescriptor, values, nulls);
	ExecStoreMinimalTuple(row->tuple, slot, false);
	elt_log_hold_values(row, slot);
	return row;
}

/* A copy of a row with another image. */
EltLogRow *
elt_log_replace(TupleDesc desc, const EltLogRow *row, Datum after, Datum unchanged)
{
	return replace(desc, row, after, unchanged, row->commit_ts);
}

EltLogRow *
elt_log_redate(TupleDesc desc, const EltLogRow *row, TimestampTz commit_ts)
{
	return replace(desc, row, row->after, row->unchanged, commit_ts);
}

static EltLogRow *
replace(TupleDesc desc, const EltLogRow *row, Datum after, Datum unchanged, TimestampTz commit_ts)
{
	EltLogRow  *copy = palloc(sizeof(EltLogRow));
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);
	Datum		values[ELT_RAW_NCOLUMNS];
	bool		nulls[ELT_RAW_NCOLUMNS];

	ExecStoreMinimalTuple(row->tuple, slot, false);
	slot_getallattrs(slot);
	memcpy(values, slot->tts_values, sizeof(values));
	memcpy(nulls, slot->tts_isnull, sizeof(nulls));
	values[ELT_RAW_AFTER - 1] = after;
	nulls[ELT_RAW_AFTER - 1] = (after == 0);
	values[ELT_RAW_UNCHANGED - 1] = unchanged;
	nulls[ELT_RAW_UNCHANGED - 1] = (unchanged == 0);
	values[ELT_RAW_COMMIT_TS - 1] = TimestampTzGetDatum(commit_ts);

	*copy = *row;
	copy->commit_ts = commit_ts;
	copy->tuple = elt_form_minimal_tuple(desc, values, nulls);
	ExecStoreMinimalTuple(copy->tuple, slot, false);
	elt_log_hold_values(copy, slot);
	ExecDropSingleTupleTableSlot(slot);
	return copy;
}
