/*
 * raw_ahead.c
 *	  The next leaves of raw staging, made before they are needed.
 *
 * To make a leaf takes some milliseconds, in which the capture worker would
 * hold up its stream.  So the supervisor looks in each round how far the
 * change_ids of a source are, committed or not, and makes the leaves that they
 * will reach next: those within the next fifth of a leaf, or within what
 * LOOK_AHEAD_S brings at the present rate.  A relation gets one only where
 * it has the leaf before: relations that are quiet for now get theirs when
 * they need it, as does a stream that is faster than all this.
 *
 * Locking: SHARE UPDATE EXCLUSIVE on the relation's partition to the end of
 * the transaction; nobody is waited for.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/partition.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/raw_ahead.h"
#include "control/worker.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define LOOK_AHEAD_S	4
#define MAX_LEAVES		64		/* made in one round */
#define MAX_AHEAD		16		/* of one relation */

/* What is known of a source. */
typedef struct Pace
{
	int64		source_id;
	int64		change_id;		/* given out */
	TimestampTz at;
} Pace;

static List *paces = NIL;

static Pace *pace_of(int64 source_id);
static int64 look_ahead(const EltSource *source, Pace *pace);
static int	make_leaves(const EltSource *source, int64 present, int64 last, int most);

void
elt_raw_ahead_run(List *sources)
{
	ListCell   *cell;
	int			made = 0;

	foreach(cell, sources)
	{
		EltSource  *source = lfirst(cell);
		Pace	   *pace = pace_of(source->source_id);
		int64		present;
		int64		last;

		if (elt_registry_find(ELT_WORKER_CAPTURE, MyDatabaseId, source->source_id) < 0)
			continue;
		elt_worker_begin("making leaves of raw staging");
		if (elt_worker_holds_extension() && elt_catalog_source_by_id(source->source_id) != NULL)
		{
			last = look_ahead(source, pace) / source->partition_changes;
			present = pace->change_id / source->partition_changes;
			if (last > present)
				made += make_leaves(source, present, Min(last, present + MAX_AHEAD), MAX_LEAVES - made);
		}
		elt_worker_commit();
		if (made >= MAX_LEAVES)
		{
			SetLatch(MyLatch);	/* and on with the next round */
			break;
		}
	}
}

static Pace *
pace_of(int64 source_id)
{
	ListCell   *cell;
	Pace	   *pace;
	MemoryContext old;

	foreach(cell, paces)
	{
		pace = lfirst(cell);
		if (pace->source_id == source_id)
			return pace;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	pace = palloc0(sizeof(Pace));
	pace->source_id = source_id;
	paces = lappend(paces, pace);
	MemoryContextSwitchTo(old);
	return pace;
}

/* The change_id that leaves are to be there for. */
static int64
look_ahead(const EltSource *source, Pace *pace)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(elt_partition_sequence(source->name))};
	TimestampTz now = elt_clock_now();
	int64		before = pace->change_id;
	int64		ahead = source->partition_changes / 5;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT coalesce(pg_sequence_last_value($1), 0)", 1, types, values, NULL);
	pace->change_id = elt_spi_int64(0, 1);
	elt_spi_end(&spi);
	if (pace->at != 0 && now > pace->at)
		ahead = Max(ahead, (int64) ((pace->change_id - before) * (LOOK_AHEAD_S * (double) USECS_PER_SEC / (now - pace->at))));
	pace->at = now;
	return pace->change_id + Min(ahead, (int64) MAX_AHEAD * source->partition_changes);
}

/* Those behind the present one up to the last, of all relations that have the present one; returns how many. */
static int
make_leaves(const EltSource *source, int64 present, int64 last, int most)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	List	   *partitions = list_make1_oid(elt_partition_of_messages(source->name));
	ListCell   *cell;
	uint64		rows;
	int			made = 0;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT raw::oid FROM elt.source_tables WHERE source_id = $1 AND raw IS NOT NULL", 1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(spi.caller_context);

		partitions = lappend_oid(partitions, (Oid) elt_spi_int64(row, 1));
		MemoryContextSwitchTo(old);
	}
	elt_spi_end(&spi);

	foreach(cell, partitions)
	{
		Oid			partition = lfirst_oid(cell);

		if (!elt_partition_has_leaf(source, partition, present) ||
			elt_partition_has_leaf(source, partition, last) ||
			!ConditionalLockRelationOid(partition, ShareUpdateExclusiveLock))
			continue;
		for (int64 number = present + 1; number <= last && made < most; number++)
		{
			if (elt_partition_has_leaf(source, partition, number))
				continue;
			(void) elt_partition_leaf(source, partition, number * source->partition_changes);
			made++;
		}
		if (made >= most)
			break;
	}
	return made;
}
