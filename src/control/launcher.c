/*
 * launcher.c
 *	  The cluster process: a supervisor for every database with the extension.
 *
 * The launcher is registered when the library is preloaded, starts once
 * recovery is finished, and connects to no database.  It reads pg_database
 * and starts a supervisor in each database that it does not know yet.  A
 * supervisor that finds no extension leaves with "finished"; the launcher
 * then looks at this database again only when its configuration generation
 * moved (CREATE EXTENSION moves it at commit) or after REPROBE_MS.  So an
 * idle database without the extension costs no process.
 *
 *	event									what happens
 *	CREATE EXTENSION commits				generation moves, launcher wakes, supervisor starts
 *	CREATE EXTENSION rolls back				nothing
 *	DROP EXTENSION commits					generation moves, the supervisor cleans up and finishes
 *	CREATE DATABASE ... TEMPLATE			the new database is probed within NAP_MS
 *	DROP DATABASE and its like				the workers make room first, see vacate.c
 *	supervisor fails or is terminated		restart with backoff; its workers run on and are adopted
 *	launcher fails or is terminated			the postmaster restarts it after 5 s; supervisors run on
 *	any process is killed hard				crash restart: shared memory is empty, all start anew
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "clock.h"
#include "control/worker.h"
#include "elt.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define NAP_MS		10000
#define REPROBE_MS	300000

typedef struct Database
{
	Oid			dboid;			/* hash key */
	bool		empty;			/* probed: no extension there */
	uint64		generation;		/* as it was before the last start */
	TimestampTz started_at;
	EltBackoff	backoff;
	bool		warned;			/* no room for its supervisor, said once */
} Database;

typedef struct Candidate
{
	Oid			dboid;
	NameData	name;
} Candidate;

static HTAB *databases;

static long one_round(void);
static List *connectable_databases(void);
static bool wants_supervisor(Database *database);
static void reap_supervisor(Database *database, int index);
static void reap_orphans(List *candidates);

void
elt_launcher_main(Datum main_arg)
{
	HASHCTL		ctl = {0};
	long		nap_ms = 0;

	elt_worker_start(main_arg, ELT_WORKER_LAUNCHER, "elt launcher");
	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(Database);
	databases = hash_create("elt databases", 16, &ctl, HASH_ELEM | HASH_BLOBS);

	while (elt_worker_nap(nap_ms))
		nap_ms = one_round();
}

/* Returns how long to nap. */
static long
one_round(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "elt launcher round",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	long		nap_ms = NAP_MS;
	List	   *candidates = connectable_databases();
	ListCell   *cell;

	reap_orphans(candidates);
	foreach(cell, candidates)
	{
		Candidate  *candidate = lfirst(cell);
		bool		found;
		Database   *database = hash_search(databases, &candidate->dboid, HASH_ENTER, &found);
		int			index = elt_registry_find(ELT_WORKER_SUPERVISOR, candidate->dboid, 0);

		if (!found)
			memset((char *) database + sizeof(Oid), 0, sizeof(Database) - sizeof(Oid));
		if (index >= 0)
		{
			reap_supervisor(database, index);
			index = elt_registry_find(ELT_WORKER_SUPERVISOR, candidate->dboid, 0);
		}
		if (index >= 0 || !wants_supervisor(database))
			continue;
		if (!elt_backoff_is_due(&database->backoff) || elt_registry_is_vacated(candidate->dboid))
		{
			nap_ms = Min(nap_ms, 1000);
			continue;
		}

		database->generation = elt_config_generation(candidate->dboid);
		database->started_at = elt_clock_now();
		database->empty = false;
		if (elt_registry_launch(ELT_WORKER_SUPERVISOR, candidate->dboid, 0, NameStr(candidate->name)) >= 0)
			database->warned = false;
		else if (!database->warned)
		{
			database->warned = true;
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("no background worker is free for the elt supervisor of database \"%s\"",
							NameStr(candidate->name)),
					 errhint("Raise max_worker_processes in postgresql.conf (now %d) and restart the server.",
							 max_worker_processes)));
		}
	}

	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return nap_ms;
}

static bool
wants_supervisor(Database *database)
{
	return !database->empty ||
		database->generation != elt_config_generation(database->dboid) ||
		TimestampDifferenceExceeds(database->started_at, elt_clock_now(), REPROBE_MS);
}

static void
reap_supervisor(Database *database, int index)
{
	EltWorkerSlot ended;

	if (!elt_registry_reap(index, &ended))
		return;
	if (ended.finished)
	{
		database->empty = true;
		database->backoff.failures = 0;
		database->backoff.retry_at = 0;
	}
	else
		elt_backoff_note_end(&database->backoff, &ended);
}

/* Frees the slots of workers that ended in a database which is gone since. */
static void
reap_orphans(List *candidates)
{
	for (int index = 0; index < elt_registry_size(); index++)
	{
		EltWorkerSlot slot;
		bool		orphan;
		ListCell   *cell;

		if (!elt_registry_read(index, &slot) || !OidIsValid(slot.dboid))
			continue;
		orphan = true;
		foreach(cell, candidates)
			orphan &= ((Candidate *) lfirst(cell))->dboid != slot.dboid;
		if (orphan)
			(void) elt_registry_reap(index, &slot);
	}
}

/* The databases that a worker can connect to, as Candidates in the current context. */
static List *
connectable_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *candidates = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	elt_worker_begin("reading pg_database");
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		Candidate  *candidate;
		MemoryContext old;

		/* datconnlimit -2 marks a database that a failed DROP left invalid */
		if (!form->datallowconn || form->datistemplate || form->datconnlimit == -2)
			continue;
		old = MemoryContextSwitchTo(context);
		candidate = palloc(sizeof(Candidate));
		candidate->dboid = form->oid;
		candidate->name = form->datname;
		candidates = lappend(candidates, candidate);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	elt_worker_commit();
	return candidates;
}
