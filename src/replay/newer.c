/*
 * newer.c
 *	  Which quarantined changes have a newer one that was applied.
 *
 * Where newer changes of a key do not wait behind a quarantined one, that may
 * have become moot: applied now it would overwrite a newer state.  What was
 * applied meanwhile is in raw staging, between the oldest of the quarantined
 * changes and where their lanes stand, less what was not applied itself
 * because it is in quarantine too, or was given up.  One look through the log
 * tells it for all of them.
 *
 * Truncates count too where the order does not make them a barrier for what
 * is in quarantine.
 *
 * Locking: the caller has locked the lanes of the changes.
 */
#include "postgres.h"

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "replay/newer.h"
#include "transform/quarantine.h"
#include "transform/transform_catalog.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"

/* Rows by key hash. */
typedef struct NewerEntry
{
	int32		key_hash;		/* hash key */
	List	   *places;			/* of int: in rows */
} NewerEntry;

typedef struct Look
{
	const EltNewerSearch *search;
	EltNewer   *newer;			/* of each row */
	HTAB	   *keys;
	HTAB	   *unapplied;		/* change_ids that are in quarantine
								 * themselves, or were given up */
	int64		truncate;		/* the newest that was applied; 0: none */
} Look;

static HTAB *unapplied_changes(const EltNewerSearch *search);
static bool is_wanted(const EltLogRow *row, void *arg);
static void visit(const EltLogRow *row, void *arg);

EltNewer *
elt_newer_find(const EltNewerSearch *search)
{
	HASHCTL		ctl = {0};
	Look		look = {search};

	look.newer = palloc_extended(Max(search->nrows, 1) * sizeof(EltNewer), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	if (search->nrows == 0)
		return look.newer;
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(NewerEntry);
	ctl.hcxt = CurrentMemoryContext;
	look.keys = hash_create("elt quarantined keys", search->nrows, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	look.unapplied = unapplied_changes(search);
	for (int i = 0; i < search->nrows; i++)
	{
		bool		found;
		NewerEntry *entry = hash_search(look.keys, &search->rows[i]->key_hash, HASH_ENTER, &found);

		entry->places = lappend_int(found ? entry->places : NIL, i);
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	elt_log_visit(search->raw, elt_pipeline_topic(search->pipeline),
				  search->rows[0]->change_id, search->position, is_wanted, visit, &look);
	PopActiveSnapshot();

	for (int i = 0; search->truncates && i < search->nrows; i++)
	{
		if (look.truncate > search->rows[i]->change_id)
		{
			look.newer[i].change_id = look.truncate;
			look.newer[i].truncate = true;
		}
	}
	return look.newer;
}

/* Changes of the pipeline that were not applied: in quarantine still, or given up. */
static HTAB *
unapplied_changes(const EltNewerSearch *search)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(search->pipeline->pipeline_id),
	Int64GetDatum(search->rows[0]->change_id)};
	HASHCTL		ctl = {0};
	HTAB	   *unapplied;
	uint64		rows;
	EltSpi		spi;

	ctl.keysize = sizeof(int64);
	ctl.entrysize = sizeof(int64);
	ctl.hcxt = CurrentMemoryContext;
	unapplied = hash_create("elt unapplied changes", 1024, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT change_id FROM elt.quarantine_unresolved WHERE pipeline_id = $1 AND change_id > $2 "
					   "UNION ALL SELECT change_id FROM elt.quarantine_resolved "
					   "WHERE pipeline_id = $1 AND change_id > $2 AND status = 'discarded'", 2, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		int64		change_id = elt_spi_int64(row, 1);

		(void) hash_search(unapplied, &change_id, HASH_ENTER, NULL);
	}
	elt_spi_end(&spi);
	return unapplied;
}

static bool
is_wanted(const EltLogRow *row, void *arg)
{
	Look	   *look = arg;

	return row->op == ELT_OP_TRUNCATE ||
		hash_search(look->keys, &row->key_hash, HASH_FIND, NULL) != NULL;
}

static void
visit(const EltLogRow *row, void *arg)
{
	Look	   *look = arg;
	const EltNewerSearch *search = look->search;
	NewerEntry *entry;
	ListCell   *lc;

	if (row->op == ELT_OP_TRUNCATE)
	{
		/* a barrier: once one lane is behind it, all are */
		look->truncate = row->change_id;
		return;
	}
	if (!search->changes ||
		(row->op == ELT_OP_DELETE && !search->options->apply_deletes) ||
		row->change_id > search->positions[row->key_hash & (search->pipeline->lanes - 1)] ||
		hash_search(look->unapplied, &row->change_id, HASH_FIND, NULL) != NULL)
		return;
	entry = hash_search(look->keys, &row->key_hash, HASH_FIND, NULL);
	foreach(lc, entry->places)
	{
		int			place = lfirst_int(lc);
		const EltLogRow *older = search->rows[place];

		if (older->change_id < row->change_id && row->key != 0 && elt_log_same_key(older, row))
			look->newer[place].change_id = row->change_id;
	}
}
