/*
 * raw_retention.c
 *	  Raw staging is kept for a time only: leaves of elt_raw whose newest row
 *	  is older than elt.raw_retention are dropped.
 *
 * What is old, and who needs it still, is asked of elt.expired_leaves(): a
 * leaf goes only when every lane of every pipeline of the relation has settled
 * it, and no unresolved quarantined or parked change, no replay and no first
 * copy needs it.  Only the oldest leaf of a relation goes, so that what is
 * kept is always without a gap, and never one that is being filled.
 *
 * A leaf covers a range of change_ids, so that of a quiet relation would stay
 * open for ever.  Therefore change_ids skip to the next range once a present
 * leaf has been filled for a quarter of the retention: what is past its time
 * stays for a quarter longer at most, and there are no more than a handful of
 * leaves of a quiet relation.  Holes in change_ids are of no interest to
 * anybody.
 *
 * Locking.  DROP TABLE of a leaf takes ACCESS EXCLUSIVE on it and on the
 * relation's partition above.  The capture worker does not need the latter,
 * but transform workers and queries do, so:
 *	- nobody is waited for who holds one of them for longer than a moment,
 *	  such as a report over raw staging: then the leaf has to wait;
 *	- lock_timeout bounds how long others queue up behind us, and grows from
 *	  MIN_WAIT_MS only where batches are longer than that;
 *	- one leaf is dropped at a time, in its own transaction, and its files are
 *	  unlinked after the locks are released.
 * All is looked at again under the locks, so a replay or a batch that has begun
 * meanwhile is seen.
 *
 * Failure: an error (most of all, a lock that cannot be had) takes back the
 * one leaf, which is tried again later; it is logged where it is not a lock.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/partition.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/raw_retention.h"
#include "control/worker.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#define MAX_PERIOD_MS	60000	/* between two looks */
#define BUDGET_MS		300		/* for drops in one round of the supervisor */
#define MIN_WAIT_MS		100
#define MAX_WAIT_MS		2000

typedef struct Expired
{
	int64		source_id;
	char	   *source;
	char	   *relation;
	Oid			partition;
	Oid			leaf;
	int64		last_change;	/* 0: it never got a row */
	Datum		last_lsn;
	Datum		last_commit_ts;
	bool		needed;
} Expired;

static MemoryContext context;	/* of a run */
static int	wait_ms = MIN_WAIT_MS;
static volatile bool blocked;	/* somebody held a lock */

static bool attempt(void (*action) (void *arg), void *arg);
static void skip_ranges(void *arg);
static List *expired_leaves(void);
static void drop_leaf(void *arg);
static bool is_read_for_long(const Expired *leaf);
static bool is_expired(const Expired *leaf);
static void elt_retention_before_drop(const Expired *leaf);

void
elt_raw_retention_run(void)
{
	static TimestampTz due_at = 0;
	static int	last_age_s = -2;
	TimestampTz now = elt_clock_now();
	List	   *leaves = NIL;
	ListCell   *cell;
	bool		more = false;

	if (elt_raw_retention_s == last_age_s && now < due_at)
		return;
	last_age_s = elt_raw_retention_s;
	due_at = TimestampTzPlusMilliseconds(now, MAX_PERIOD_MS);
	if (elt_raw_retention_s >= 0)
		due_at = Min(due_at, TimestampTzPlusMilliseconds(now, Max(elt_raw_retention_s, 4) * INT64CONST(250)));

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "elt raw retention", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(context);
	blocked = false;
	if (attempt(skip_ranges, &leaves))
	{
		foreach(cell, leaves)
		{
			Expired    *leaf = lfirst(cell);

			if (leaf->needed)
				continue;
			if (TimestampDifferenceExceeds(now, elt_clock_now(), BUDGET_MS))
			{
				more = true;
				break;
			}
			more |= attempt(drop_leaf, leaf);	/* the one behind it may be
												 * old, too */
		}
	}
	wait_ms = blocked ? Min(wait_ms * 2, MAX_WAIT_MS) : MIN_WAIT_MS;
	if (more)
		due_at = now;
}

/* Runs one transaction; false where it failed. */
static bool
attempt(void (*action) (void *arg), void *arg)
{
	MemoryContext caller = CurrentMemoryContext;
	volatile bool done = false;

	PG_TRY();
	{
		elt_worker_begin("dropping raw staging that is not kept any longer");
		if (elt_worker_holds_extension())
		{
			(void) set_config_option("lock_timeout", psprintf("%d", wait_ms), PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_LOCAL, true, 0, false);
			action(arg);
			done = true;
		}
		elt_worker_commit();
		MemoryContextSwitchTo(caller);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(caller);
		pgstat_report_activity(STATE_IDLE, NULL);
		done = false;
		if (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE || error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED)
			blocked = true;
		else
			ereport(LOG,
					(errcode(error->sqlerrcode),
					 errmsg("could not drop raw staging that is not kept any longer: %s", error->message),
					 errhint("This is tried again within a minute.")));
	}
	PG_END_TRY();
	return done;
}

/* Begins new leaves where the present ones are old; then lists what is to go, in *arg. */
static void
skip_ranges(void *arg)
{
	uint64		rows;
	int64	   *source_ids;
	bool		skipped = false;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT a FROM elt.aged_sources() a", 0, NULL, NULL, NULL);
	source_ids = MemoryContextAlloc(context, Max(rows, 1) * sizeof(int64));
	for (uint64 row = 0; row < rows; row++)
		source_ids[row] = elt_spi_int64(row, 1);
	elt_spi_end(&spi);

	for (uint64 row = 0; row < rows; row++)
	{
		EltSource  *source = elt_catalog_source_by_id(source_ids[row]);

		if (source != NULL)
			skipped |= elt_partition_skip_range(source);
	}
	if (skipped)
		elt_config_changed();	/* who has change_ids of the old range drops
								 * them */
	*(List **) arg = expired_leaves();
}

static List *
expired_leaves(void)
{
	List	   *leaves = NIL;
	uint64		rows;
	EltSpi		spi;
	MemoryContext old = MemoryContextSwitchTo(context);

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT source_id, source, relation, partition, leaf, last_change, last_lsn, last_commit_ts, "
					   "needed_by IS NOT NULL FROM elt.expired_leaves(NULL)", 0, NULL, NULL, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext spi_context = MemoryContextSwitchTo(spi.caller_context);
		Expired    *leaf = palloc0(sizeof(Expired));
		bool		isnull;

		leaf->source_id = elt_spi_int64(row, 1);
		leaf->source = elt_spi_text(&spi, row, 2);
		leaf->relation = elt_spi_text(&spi, row, 3);
		leaf->partition = (Oid) elt_spi_int64(row, 4);
		leaf->leaf = (Oid) elt_spi_int64(row, 5);
		leaf->last_change = elt_spi_int64(row, 6);
		leaf->last_lsn = elt_spi_datum(&spi, row, 7, &isnull);
		leaf->last_commit_ts = elt_spi_datum(&spi, row, 8, &isnull);
		leaf->needed = elt_spi_bool(row, 9);
		leaves = lappend(leaves, leaf);
		MemoryContextSwitchTo(spi_context);
	}
	elt_spi_end(&spi);
	MemoryContextSwitchTo(old);
	return leaves;
}

static void
drop_leaf(void *arg)
{
	Expired    *leaf = arg;
	char	   *schema;
	char	   *name;
	EltSpi		spi;

	if (is_read_for_long(leaf))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("raw staging is being read")));
	elt_retention_before_drop(leaf);

	LockRelationOid(leaf->partition, AccessExclusiveLock);
	LockRelationOid(leaf->leaf, AccessExclusiveLock);
	if (!is_expired(leaf))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("raw staging is needed again")));
	schema = get_namespace_name(get_rel_namespace(leaf->leaf));
	name = get_rel_name(leaf->leaf);
	elt_spi_begin(&spi);
	elt_spi_execute(psprintf("DROP TABLE %s", quote_qualified_identifier(schema, name)));
	elt_spi_end(&spi);
	ereport(DEBUG1,
			(errmsg_internal("dropped raw staging %s of %s, up to change " INT64_FORMAT,
							 name, leaf->relation, leaf->last_change)));
}

/* Whether a transaction that is not of the moment holds what we need. */
static bool
is_read_for_long(const Expired *leaf)
{
	Oid			types[] = {OIDOID, OIDOID, INT4OID};
	Datum		values[] = {ObjectIdGetDatum(leaf->partition), ObjectIdGetDatum(leaf->leaf), Int32GetDatum(MAX_WAIT_MS)};
	bool		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	found = elt_spi_run("SELECT FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid "
						"WHERE l.locktype = 'relation' AND l.relation IN ($1, $2) "
						"AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
						"AND l.pid IS DISTINCT FROM pg_backend_pid() "
						"AND coalesce(a.xact_start, '-infinity') < clock_timestamp() - make_interval(secs => $3 / 1000.0) "
						"AND a.backend_type IS DISTINCT FROM 'autovacuum worker' LIMIT 1",
						3, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return found;
}

/* Under the locks: still the oldest, still too old, and needed by nobody. */
static bool
is_expired(const Expired *leaf)
{
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(leaf->partition), ObjectIdGetDatum(leaf->leaf)};
	bool		found;
	EltSpi		spi;

	elt_spi_begin(&spi);
	found = elt_spi_run("SELECT FROM elt.expired_leaves($1) WHERE leaf = $2 AND needed_by IS NULL",
						2, types, values, NULL) > 0;
	elt_spi_end(&spi);
	return found;
}

/*
 * elt_retention_before_drop
 *		What has to outlive a leaf is saved here, in the transaction that drops
 *		it and before anything is locked: how far the relation's history is
 *		gone, and the large values that are nowhere else.
 */
static void
elt_retention_before_drop(const Expired *leaf)
{
	Oid			types[] = {INT8OID, TEXTOID, INT8OID, LSNOID, TIMESTAMPTZOID, OIDOID};
	Datum		values[] = {Int64GetDatum(leaf->source_id), CStringGetTextDatum(leaf->relation),
	Int64GetDatum(leaf->last_change), leaf->last_lsn, leaf->last_commit_ts, ObjectIdGetDatum(leaf->leaf)};
	EltSpi		spi;

	if (leaf->last_change == 0)
		return;
	elt_spi_begin(&spi);
	elt_spi_run("INSERT INTO elt.raw_dropped (source_id, relation, upto_change, upto_lsn, upto_commit_ts) "
				"VALUES ($1, $2, $3, $4, $5) ON CONFLICT (source_id, relation) DO UPDATE SET "
				"upto_change = excluded.upto_change, upto_lsn = excluded.upto_lsn, "
				"upto_commit_ts = excluded.upto_commit_ts, leaves = raw_dropped.leaves + 1, dropped_at = now()",
				5, types, values, NULL);
	elt_spi_run("SELECT elt.keep_large_values($6)", 6, types, values, NULL);
	elt_spi_run("DELETE FROM elt.oversize_values WHERE source_id = $1 AND relation = $2 AND change_id <= $3",
				6, types, values, NULL);
	elt_spi_end(&spi);
}
