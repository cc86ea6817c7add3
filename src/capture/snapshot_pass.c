/*
 * snapshot_pass.c
 *	  A pass: the tables of a source that are copied under one snapshot; its
 *	  beginning, its going on after an interruption, and its end.  For the first
 *	  of a source's snapshot workers, see snapshot_worker.c.
 *
 * Beginning.  Tables that were just published wait until what ran then has
 * ended (copy.c says why).  The smallest tables come first, many to a pass; a
 * large one has a pass of its own, so that small ones are not kept locked for
 * its time.  Each is locked in ACCESS SHARE mode before the snapshot is taken:
 * a table that is rewritten in between would look empty.  A lock that is not
 * to be had soon leaves the table for a later pass, so that a deadlock with
 * the application's DDL ends with us; an error is kept in source_tables.
 *
 * Going on.  The snapshot G is gone with the session that held it.  What is
 * left is read under a new one, G2, taken and waited for like the first; but
 * it must be as of G.  A row whose key the stream tells changes of, by
 * transactions that G2 sees and G does not, is left out: the stream has it.
 * Every other row is as it was.  (The row's xmin would not tell: it may be a
 * subtransaction's, or one of 2^32 transactions ago.)  So tables are given
 * back, and begun anew, where that is not exact:
 *
 *	- that have no key, or another shape than before
 *	- whose file is another one, since ctids mean other rows: TRUNCATE,
 *	  VACUUM FULL, ALTER TABLE
 *	- of which nothing was copied yet: that costs nothing
 *	- with more than ELT_PASS_MAX_CHANGED changes since G, because their keys
 *	  are kept in memory
 *	- with a change since G whose unchanged out-of-line value the stream did
 *	  not tell: it was in the row that is left out, and the row that G2 sees
 *	  may have another one
 */
#include "postgres.h"

#include "capture/copy.h"
#include "capture/parts.h"
#include "capture/schema.h"
#include "capture/snapshot.h"
#include "capture/snapshot_pass.h"
#include "catalog/pg_type.h"
#include "clock.h"
#include "control/worker.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

#define CHUNK_BLOCKS		1024
#define MEASURED_TABLES		500 /* that the smallest are chosen from */
#define PASS_TABLES			250
#define PASS_BLOCKS			(16 * CHUNK_BLOCKS) /* of several tables together */
#define SPARE_LEAVES		1000	/* workers that begin anew begin new
									 * leaves */
#define LOCK_TIMEOUT_MS		500 /* below the default of deadlock_timeout */
#define WAIT_MS				100
#define TELL_MS				1000
#define RETRY_MS			2000	/* of a lock */
#define ERROR_RETRY_MS		10000
#define REFUSED_RETRY_MS	60000	/* of a table whose rows cannot be copied */

/* A table that waits. */
typedef struct Candidate
{
	char	   *relation;		/* as source_tables has it */
	char	   *name;			/* as the source writes it */
	bool		newly_published;
	int64		blocks;
} Candidate;

/* What a pass reads under. */
typedef struct Taken
{
	char	   *snapshot;
	char	   *exported;
	XLogRecPtr	lsn;
	char	   *at;
} Taken;

static void guard_session(EltStream *stream);
static List *candidates(const EltSource *source, bool *later);
static List *measure(const EltSource *source, EltStream *stream, List *tables);
static List *choose(List *tables);
static int	compare_blocks(const ListCell *a, const ListCell *b);
static void wait_for_running(EltStream *stream);
static List *lock_tables(const EltSource *source, EltStream *stream, List *tables, const char *mode);
static void take_snapshot(EltStream *stream, Taken *taken);
static PGresult *read_parts(EltStream *stream, List *tables);
static void write_plan(const EltSource *source, List *tables, PGresult *parts, const char *partitions,
					   const Taken *taken);
static void write_chunks(int64 source_id, const char *relation, PGresult *parts, int row, int chunk_blocks);
static int64 rows_per_block(PGresult *parts);
static void note_error(int64 source_id, const char *relation, const char *error, int retry_ms);
static List *remaining(const EltSource *source);
static bool can_go_on(const EltSource *source, EltStream *stream, Candidate *table, PGresult *parts, const Taken *taken);
static void wait_for_stream(const EltSource *source, XLogRecPtr lsn);
static void nap_or_leave(long ms);
static int64 result_int64(PGresult *result, int row, int column);

void
elt_pass_read(int64 source_id, EltPass *pass)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source_id)};
	bool		isnull;
	EltSpi		spi;

	memset(pass, 0, sizeof(EltPass));
	elt_worker_begin_work("looking for a copy to make");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT phase = 'copying', run, lsn, taken_at, exported, resumed::text, end_leaf, "
					"EXISTS (SELECT FROM elt.snapshot_chunks c WHERE c.source_id = p.source_id) "
					"FROM elt.snapshot_passes p WHERE source_id = $1", 1, types, values, NULL) > 0)
	{
		pass->exists = true;
		pass->copying = elt_spi_bool(0, 1);
		pass->run = (int) elt_spi_int64(0, 2);
		pass->lsn = DatumGetLSN(elt_spi_datum(&spi, 0, 3, &isnull));
		pass->taken_at = DatumGetTimestampTz(elt_spi_datum(&spi, 0, 4, &isnull));
		pass->exported = elt_spi_text(&spi, 0, 5);
		pass->resumed = elt_spi_text(&spi, 0, 6);
		pass->end_leaf = elt_spi_int64(0, 7);
		pass->chunks = elt_spi_bool(0, 8);
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

void
elt_pass_connect(const EltSource *source, EltStream **stream)
{
	MemoryContext context = CurrentMemoryContext;

	if (*stream != NULL)
		return;
	elt_worker_begin("connecting to the source");
	MemoryContextSwitchTo(TopMemoryContext);
	*stream = elt_stream_connect(source->conninfo, psprintf("elt %s snapshot", source->name));
	MemoryContextSwitchTo(context);
	elt_stream_check_server(*stream);
	guard_session(*stream);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

/*
 * Tables are read as somebody else than their owners, who may have planted
 * something on them: see owner.c.  Who is no superuser may not load a library,
 * and has only rights to lose that it was granted.
 */
static void
guard_session(EltStream *stream)
{
	PGresult   *result = elt_stream_query(stream, "SELECT pg_catalog.current_setting('is_superuser')", PGRES_TUPLES_OK);
	bool		superuser = strcmp(PQgetvalue(result, 0, 0), "on") == 0;

	PQclear(result);
	if (superuser)
		PQclear(elt_stream_query(stream, "LOAD '" ELT_LIBRARY "'", PGRES_COMMAND_OK));
}

/* ---- begin ---- */

EltPassOutcome
elt_pass_plan(const EltSource *source, EltStream **stream)
{
	bool		later;
	List	   *tables = candidates(source, &later);
	Taken		taken;
	PGresult   *parts;

	if (tables == NIL)
		return later ? ELT_PASS_LATER : ELT_PASS_NOTHING;
	elt_pass_connect(source, stream);
	tables = choose(measure(source, *stream, tables));
	if (tables == NIL)
		return ELT_PASS_LATER;
	if (((Candidate *) linitial(tables))->newly_published)
		wait_for_running(*stream);

	PQclear(elt_stream_query(*stream, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", PGRES_COMMAND_OK));
	tables = lock_tables(source, *stream, tables, "");
	if (tables == NIL)
	{
		PQclear(elt_stream_query(*stream, "COMMIT", PGRES_COMMAND_OK));
		return ELT_PASS_LATER;
	}
	take_snapshot(*stream, &taken);
	parts = read_parts(*stream, tables);
	write_plan(source, tables, parts, elt_parts_read(source, *stream), &taken);
	PQclear(parts);
	return ELT_PASS_BEGUN;
}

/* Tables that wait; those that were just published by themselves, after the others. */
static List *
candidates(const EltSource *source, bool *later)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	List	   *tables = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_worker_begin_work("looking for tables to copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT t.relation, t.newly_published, coalesce(t.copy_retry_at > clock_timestamp(), false) "
					   "FROM elt.source_tables t JOIN elt.sources s USING (source_id) "
					   "WHERE t.source_id = $1 AND t.state = 'pending' AND t.horizon IS NOT NULL AND s.start_lsn IS NOT NULL "
					   "ORDER BY t.copy_retry_at > clock_timestamp() NULLS FIRST, t.newly_published, t.table_id LIMIT "
					   CppAsString2(MEASURED_TABLES), 1, types, values, NULL);
	*later = rows > 0;
	for (uint64 row = 0; row < rows; row++)
	{
		bool		newly_published = elt_spi_bool(row, 2);
		MemoryContext old;
		Candidate  *table;

		if (elt_spi_bool(row, 3))
			continue;
		if (newly_published && tables != NIL && !((Candidate *) linitial(tables))->newly_published)
			break;
		old = MemoryContextSwitchTo(context);
		table = palloc0(sizeof(Candidate));
		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
		table->relation = elt_spi_text(&spi, row, 1);
		table->newly_published = newly_published;
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return tables;
}

/*
 * Asks for the names and sizes of tables.  Leaves out those that are not there
 * and those that are locked: a size is not to be had without a lock either.
 */
static List *
measure(const EltSource *source, EltStream *stream, List *tables)
{
	StringInfoData command;
	PGresult   *result;
	List	   *present = NIL;
	ListCell   *cell;

	initStringInfo(&command);
	appendStringInfoString(&command, "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) FROM (VALUES ");
	foreach(cell, tables)
		appendStringInfo(&command, "%s(%d, %s)", foreach_current_index(cell) > 0 ? ", " : "",
						 foreach_current_index(cell), elt_stream_literal(((Candidate *) lfirst(cell))->relation));
	appendStringInfoString(&command,
						   ") AS w (i, name) LEFT JOIN (pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace) "
						   "ON c.oid = pg_catalog.to_regclass(w.name) AND c.relkind IN ('r', 'p') ORDER BY w.i");
	result = elt_stream_query(stream, command.data, PGRES_TUPLES_OK);
	foreach(cell, tables)
	{
		Candidate  *table = lfirst(cell);

		table->name = pstrdup(elt_stream_value(result, foreach_current_index(cell), 0));
		if (table->name[0] == '\0')
			note_error(source->source_id, table->relation, "the table does not exist at the source", ERROR_RETRY_MS);
		else
			present = lappend(present, table);
	}
	PQclear(result);

	PQclear(elt_stream_query(stream, "BEGIN READ ONLY", PGRES_COMMAND_OK));
	present = lock_tables(source, stream, present, "NOWAIT");
	foreach(cell, present)
	{
		Candidate  *table = lfirst(cell);

		result = elt_stream_query(stream,
								  psprintf("SELECT COALESCE((SELECT pg_catalog.sum(pg_catalog.pg_relation_size(p.relid)) "
										   "FROM pg_catalog.pg_partition_tree(r.oid) p WHERE p.isleaf), pg_catalog.pg_relation_size(r.oid), 0)::bigint "
										   "/ pg_catalog.current_setting('block_size')::bigint FROM pg_catalog.to_regclass(%s) AS r (oid)",
										   elt_stream_literal(table->name)),
								  PGRES_TUPLES_OK);
		table->blocks = result_int64(result, 0, 0);
		PQclear(result);
	}
	PQclear(elt_stream_query(stream, "COMMIT", PGRES_COMMAND_OK));
	return present;
}

static List *
choose(List *tables)
{
	List	   *chosen = NIL;
	int64		blocks = 0;
	ListCell   *cell;

	list_sort(tables, compare_blocks);
	foreach(cell, tables)
	{
		Candidate  *table = lfirst(cell);

		if (chosen != NIL && (blocks + table->blocks > PASS_BLOCKS || list_length(chosen) >= PASS_TABLES))
			break;
		blocks += table->blocks;
		chosen = lappend(chosen, table);
	}
	return chosen;
}

static int
compare_blocks(const ListCell *a, const ListCell *b)
{
	int64		left = ((Candidate *) lfirst(a))->blocks;
	int64		right = ((Candidate *) lfirst(b))->blocks;

	return (left > right) - (left < right);
}

/* Until all transactions that run now have ended. */
static void
wait_for_running(EltStream *stream)
{
	PGresult   *result = elt_stream_query(stream,
										  "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())",
										  PGRES_TUPLES_OK);
	const char *test = psprintf("SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) >= %s::pg_catalog.xid8",
								elt_stream_literal(elt_stream_value(result, 0, 0)));
	bool		ended;

	PQclear(result);
	for (;;)
	{
		result = elt_stream_query(stream, test, PGRES_TUPLES_OK);
		ended = elt_stream_value(result, 0, 0)[0] == 't';
		PQclear(result);
		if (ended)
			break;
		nap_or_leave(WAIT_MS);
	}
}

/* Locks tables in the transaction that is open; returns those that it could.  mode: "" or "NOWAIT". */
static List *
lock_tables(const EltSource *source, EltStream *stream, List *tables, const char *mode)
{
	List	   *locked = NIL;
	ListCell   *cell;

	/*
	 * capture goes past row security: a copy that it would cut short is
	 * refused
	 */
	PQclear(elt_stream_query(stream, psprintf("SET LOCAL row_security = off; SET LOCAL lock_timeout = %d", LOCK_TIMEOUT_MS),
							 PGRES_COMMAND_OK));
	foreach(cell, tables)
	{
		Candidate  *table = lfirst(cell);
		char		sqlstate[6];
		char	   *error;

		error = elt_stream_try(stream,
							   psprintf("SAVEPOINT s; LOCK TABLE %s IN ACCESS SHARE MODE %s; RELEASE SAVEPOINT s", table->name, mode),
							   sqlstate);
		if (error == NULL)
		{
			locked = lappend(locked, table);
			continue;
		}
		PQclear(elt_stream_query(stream, "ROLLBACK TO SAVEPOINT s; RELEASE SAVEPOINT s", PGRES_COMMAND_OK));
		note_error(source->source_id, table->relation, error,
				   strcmp(sqlstate, "55P03") == 0 ? RETRY_MS : ERROR_RETRY_MS);
	}
	PQclear(elt_stream_query(stream, "SET LOCAL lock_timeout = 0", PGRES_COMMAND_OK));
	return locked;
}

/* The first query of the transaction: LOCK TABLE takes no snapshot. */
static void
take_snapshot(EltStream *stream, Taken *taken)
{
	PGresult   *result = elt_stream_query(stream,
										  "SELECT pg_catalog.pg_current_snapshot(), pg_catalog.pg_export_snapshot(), pg_catalog.now()",
										  PGRES_TUPLES_OK);

	taken->snapshot = pstrdup(elt_stream_value(result, 0, 0));
	taken->exported = pstrdup(elt_stream_value(result, 0, 1));
	taken->at = pstrdup(elt_stream_value(result, 0, 2));
	PQclear(result);

	/* afterwards: the commits that the snapshot sees are in WAL by now */
	result = elt_stream_query(stream, "SELECT pg_catalog.pg_current_wal_insert_lsn()", PGRES_TUPLES_OK);
	taken->lsn = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(elt_stream_value(result, 0, 0))));
	PQclear(result);
}

/* The heaps that hold the tables' rows: number of the table, name, file, blocks, rows, block size. */
static PGresult *
read_parts(EltStream *stream, List *tables)
{
	StringInfoData command;
	ListCell   *cell;

	initStringInfo(&command);
	appendStringInfoString(&command,
						   "SELECT w.i, pg_catalog.format('%I.%I', n.nspname, c.relname), "
						   "c.oid || '/' || COALESCE(pg_catalog.pg_relation_filenode(c.oid), 0), "
						   "pg_catalog.pg_relation_size(c.oid) / b.size, "
						   "CASE WHEN c.reltuples >= 0 AND c.relpages > 0 THEN "
						   "(c.reltuples / c.relpages * (pg_catalog.pg_relation_size(c.oid) / b.size))::bigint END, b.size "
						   "FROM (VALUES ");
	foreach(cell, tables)
		appendStringInfo(&command, "%s(%d, pg_catalog.to_regclass(%s))", foreach_current_index(cell) > 0 ? ", " : "",
						 foreach_current_index(cell), elt_stream_literal(((Candidate *) lfirst(cell))->name));
	appendStringInfoString(&command,
						   ") AS w (i, root) CROSS JOIN LATERAL (SELECT w.root UNION "
						   "SELECT p.relid FROM pg_catalog.pg_partition_tree(w.root) p WHERE p.isleaf) AS l (relid) "
						   "JOIN pg_catalog.pg_class c ON c.oid = l.relid AND c.relkind = 'r' "
						   "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
						   "CROSS JOIN (SELECT pg_catalog.current_setting('block_size')::bigint) AS b (size) "
						   "ORDER BY 1, 2");
	return elt_stream_query(stream, command.data, PGRES_TUPLES_OK);
}

static void
write_plan(const EltSource *source, List *tables, PGresult *parts, const char *partitions, const Taken *taken)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, TEXTOID, LSNOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[6];
	int64		per_block = rows_per_block(parts);
	int64		width = source->partition_changes;
	int			chunk_blocks = Max(1, Min(CHUNK_BLOCKS, width / 2 / per_block));
	int64		leaves = SPARE_LEAVES;
	ArrayBuildState *names = NULL;
	ListCell   *cell;
	EltSpi		spi;

	if (elt_snapshot_rate_kb > 0)
		chunk_blocks = Max(1, Min(chunk_blocks, elt_snapshot_rate_kb / 8));
	for (int row = 0; row < PQntuples(parts); row++)
		leaves += 2 + 2 * result_int64(parts, row, 3) * per_block / width;

	elt_worker_begin_work("planning a copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	values[0] = Int64GetDatum(source->source_id);
	values[1] = CStringGetTextDatum(taken->snapshot);
	values[2] = LSNGetDatum(taken->lsn);
	values[3] = CStringGetTextDatum(taken->at);
	values[4] = CStringGetTextDatum(taken->exported);
	values[5] = Int64GetDatum(leaves);
	elt_spi_run("INSERT INTO elt.snapshot_passes (source_id, snapshot, lsn, taken_at, exported, leaves) "
				"VALUES ($1, $2::pg_snapshot, $3, $4::timestamptz, $5, $6)", 6, types, values, NULL);
	foreach(cell, tables)
	{
		Candidate  *table = lfirst(cell);
		Oid			table_types[] = {INT8OID, TEXTOID, INT8OID, INT8OID};
		Datum		table_values[4];
		char		nulls[] = "    ";
		int64		blocks = 0;
		int64		total = 0;
		bool		estimated = true;

		for (int row = 0; row < PQntuples(parts); row++)
		{
			if (result_int64(parts, row, 0) != foreach_current_index(cell))
				continue;
			blocks += result_int64(parts, row, 3);
			total += result_int64(parts, row, 4);
			estimated &= !PQgetisnull(parts, row, 4) || result_int64(parts, row, 3) == 0;
		}
		table_values[0] = values[0];
		table_values[1] = CStringGetTextDatum(table->relation);
		table_values[2] = Int64GetDatum(total);
		nulls[2] = estimated ? ' ' : 'n';
		table_values[3] = Int64GetDatum(blocks);
		if (elt_spi_run("UPDATE elt.source_tables SET newly_published = false, copy_error = NULL, copy_retry_at = NULL "
						"WHERE source_id = $1 AND relation = $2 AND state = 'pending'",
						2, table_types, table_values, NULL) == 0)
			continue;			/* it left the source meanwhile */
		names = accumArrayResult(names, table_values[1], false, TEXTOID, context);
		elt_spi_run("INSERT INTO elt.snapshot_tables (source_id, relation, total, blocks) VALUES ($1, $2, $3, $4)",
					4, table_types, table_values, nulls);
		for (int row = 0; row < PQntuples(parts); row++)
		{
			if (result_int64(parts, row, 0) == foreach_current_index(cell))
				write_chunks(source->source_id, table->relation, parts, row, chunk_blocks);
		}
	}
	elt_spi_end(&spi);
	if (names != NULL)
		elt_parts_base(source->source_id, taken->lsn, makeArrayResult(names, context), partitions);
	elt_config_changed();
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

static void
write_chunks(int64 source_id, const char *relation, PGresult *parts, int row, int chunk_blocks)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, TEXTOID, INT8OID, INT8OID};
	Datum		values[6];

	values[0] = Int64GetDatum(source_id);
	values[1] = CStringGetTextDatum(relation);
	values[2] = CStringGetTextDatum(elt_stream_value(parts, row, 1));
	values[3] = CStringGetTextDatum(elt_stream_value(parts, row, 2));
	values[4] = Int64GetDatum(result_int64(parts, row, 3));
	values[5] = Int64GetDatum(chunk_blocks);
	elt_spi_run("INSERT INTO elt.snapshot_chunks (source_id, relation, part, filenode, first_block, end_block) "
				"SELECT $1, $2, $3, $4, i, least(i + $6, $5) FROM generate_series(0, $5 - 1, $6) i ORDER BY i",
				6, types, values, NULL);
}

/* More than a block of the source can hold. */
static int64
rows_per_block(PGresult *parts)
{
	int64		size = PQntuples(parts) > 0 ? result_int64(parts, 0, 5) : BLCKSZ;

	return Max(size, 1) / 28 + 1;
}

static void
note_error(int64 source_id, const char *relation, const char *error, int retry_ms)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, INT4OID};
	Datum		values[] = {Int64GetDatum(source_id), CStringGetTextDatum(relation),
	CStringGetTextDatum(error), Int32GetDatum(retry_ms)};
	EltSpi		spi;

	elt_worker_begin_work("recording why a table is not copied");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.source_tables SET copy_error = $3, copy_retry_at = clock_timestamp() + $4 * interval '1 ms' "
				"WHERE source_id = $1 AND relation = $2 AND state = 'pending'", 4, types, values, NULL);
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

/* ---- go on ---- */

bool
elt_pass_resume(const EltSource *source, EltStream **stream, EltPass *pass)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[3];
	List	   *tables = remaining(source);
	List	   *present;
	Taken		taken;
	PGresult   *parts;
	ListCell   *cell;
	bool		any = false;
	EltSpi		spi;

	elt_pass_connect(source, stream);
	present = tables != NIL ? measure(source, *stream, tables) : NIL;
	PQclear(elt_stream_query(*stream, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", PGRES_COMMAND_OK));
	present = lock_tables(source, *stream, present, "");
	take_snapshot(*stream, &taken);
	wait_for_stream(source, taken.lsn);
	parts = present != NIL ? read_parts(*stream, present) : NULL;
	foreach(cell, tables)
	{
		Candidate  *table = lfirst(cell);

		if (list_member_ptr(present, table) && can_go_on(source, *stream, table, parts, &taken))
		{
			any = true;
			continue;
		}
		elt_worker_begin_work("giving a copy up");
		MemoryContextSwitchTo(context);
		elt_copy_cancel(source->source_id, table->relation);
		elt_worker_commit();
		MemoryContextSwitchTo(context);
		ereport(LOG,
				(errmsg("elt source \"%s\": the copy of table %s begins anew", source->name, table->relation)));
	}
	PQclear(parts);
	if (!any)
	{
		PQclear(elt_stream_query(*stream, "COMMIT", PGRES_COMMAND_OK));
		return false;
	}

	values[0] = Int64GetDatum(source->source_id);
	values[1] = CStringGetTextDatum(taken.exported);
	values[2] = CStringGetTextDatum(taken.snapshot);
	elt_worker_begin_work("going on with a copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.snapshot_passes SET run = run + 1, exported = $2, resumed = $3::pg_snapshot WHERE source_id = $1",
				3, types, values, NULL);
	elt_spi_run("UPDATE elt.snapshot_tables SET resumed_at = clock_timestamp(), updated_at = clock_timestamp(), resumed_done = done "
				"WHERE source_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	elt_pass_read(source->source_id, pass);
	return pass->exists;
}

/* The tables that still have something to copy. */
static List *
remaining(const EltSource *source)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	List	   *tables = NIL;
	uint64		rows;
	EltSpi		spi;

	elt_worker_begin_work("looking for what is still to be copied");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	rows = elt_spi_run("SELECT relation FROM elt.snapshot_tables t WHERE source_id = $1 AND EXISTS "
					   "(SELECT FROM elt.snapshot_chunks c WHERE c.source_id = $1 AND c.relation = t.relation)",
					   1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		Candidate  *table = palloc0(sizeof(Candidate));

		tables = lappend(tables, table);
		MemoryContextSwitchTo(old);
		table->relation = elt_spi_text(&spi, row, 1);
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return tables;
}

/* Whether what is left of a table can be read under another snapshot; see above. */
static bool
can_go_on(const EltSource *source, EltStream *stream, Candidate *table, PGresult *parts, const Taken *taken)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[3];
	StringInfoData files;
	char	   *filter;
	EltRelation *relation = elt_snapshot_describe(stream, source, table->relation, &filter);
	bool		exact;
	EltSpi		spi;

	initStringInfo(&files);
	for (int row = 0; row < PQntuples(parts); row++)
		appendStringInfo(&files, "%s ", elt_stream_value(parts, row, 2));

	values[0] = Int64GetDatum(source->source_id);
	values[1] = CStringGetTextDatum(table->relation);
	values[2] = CStringGetTextDatum(files.data);
	elt_worker_begin_work("going on with a copy");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	exact = relation->nkeys > 0 &&
		elt_spi_run("SELECT schema_version FROM elt.snapshot_tables t "
					"WHERE source_id = $1 AND relation = $2 AND schema_version IS NOT NULL "
					"AND NOT EXISTS (SELECT FROM elt.snapshot_chunks c WHERE c.source_id = $1 AND c.relation = $2 "
					"AND c.filenode <> ALL (string_to_array($3, ' ')))", 3, types, values, NULL) > 0;
	if (exact)
		exact = elt_spi_int64(0, 1) == elt_pass_schema_version(source->source_id, relation, taken->lsn);
	if (exact)
	{
		values[2] = CStringGetTextDatum(taken->snapshot);
		elt_spi_run("SELECT format('SELECT count(*) <= %s AND NOT coalesce(bool_or(unchanged IS NOT NULL), false) FROM elt_raw.%I "
					"WHERE change_id >= %s AND xid <> 0 AND elt.xid_is_visible(xid, %L)', "
					CppAsString2(ELT_PASS_MAX_CHANGED) ", c.relname, p.end_leaf * s.partition_changes, $3) "
					"FROM elt.source_tables t JOIN elt.snapshot_passes p USING (source_id) JOIN elt.sources s USING (source_id) "
					"JOIN pg_catalog.pg_class c ON c.oid = t.raw WHERE t.source_id = $1 AND t.relation = $2",
					3, types, values, NULL);
		elt_spi_execute(elt_spi_text(&spi, 0, 1));
		exact = elt_spi_bool(0, 1);
	}
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return exact;
}

/* The capture worker writes versions too, at any time. */
int
elt_pass_schema_version(int64 source_id, const EltRelation *relation, XLogRecPtr lsn)
{
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_execute("LOCK TABLE elt.schema_versions IN SHARE ROW EXCLUSIVE MODE");
	elt_spi_end(&spi);
	return elt_schema_version(source_id, relation, lsn);
}

/* Until the capture worker has staged all up to a position. */
static void
wait_for_stream(const EltSource *source, XLogRecPtr lsn)
{
	for (;;)
	{
		int			index = elt_registry_find(ELT_WORKER_CAPTURE, MyDatabaseId, source->source_id);
		EltWorkerSlot slot;

		if (index >= 0 && elt_registry_read(index, &slot) && slot.object_id == source->source_id &&
			pg_atomic_read_u64(&slot.staged_lsn) >= lsn)
			break;
		nap_or_leave(WAIT_MS);
	}
}

/* ---- end ---- */

bool
elt_pass_seal(const EltSource *source)
{
	static TimestampTz told_at;
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	bool		sealed;
	bool		ended;
	EltSpi		spi;

	elt_worker_begin_work("finishing copies");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT FROM elt.snapshot_passes WHERE source_id = $1 FOR UPDATE", 1, types, values, NULL);
	sealed = elt_pass_seal_tables(source);

	/*
	 * What the capture worker has to complete first, it is told again and
	 * again: it may be busy, or done with one table when there is the next.
	 */
	if (TimestampDifferenceExceeds(told_at, elt_clock_now(), TELL_MS) &&
		elt_spi_run("SELECT FROM elt.snapshot_tables c JOIN elt.source_tables t USING (source_id, relation) "
					"WHERE c.source_id = $1 AND t.state = 'pending' AND t.lacking AND NOT EXISTS "
					"(SELECT FROM elt.snapshot_chunks k WHERE k.source_id = $1 AND k.relation = c.relation) LIMIT 1",
					1, types, values, NULL) > 0)
	{
		told_at = elt_clock_now();
		elt_config_changed();
	}
	ended = elt_spi_run("DELETE FROM elt.snapshot_passes p WHERE source_id = $1 AND phase = 'copying' "
						"AND NOT EXISTS (SELECT FROM elt.snapshot_tables c WHERE c.source_id = $1)",
						1, types, values, NULL) > 0;
	elt_spi_end(&spi);
	if (ended)
		elt_config_changed();
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	if (sealed)
		elt_registry_wake_transform(MyDatabaseId);
	return ended;
}

/*
 * Who stages a row that lacks a value has locked its table's row: that table
 * is left for the next time.
 */
bool
elt_pass_seal_tables(const EltSource *source)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id)};
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("WITH whole AS (SELECT h.table_id FROM elt.source_tables h JOIN elt.snapshot_tables c USING (source_id, relation) "
					   "WHERE h.source_id = $1 AND h.state = 'pending' AND NOT h.lacking AND NOT EXISTS "
					   "(SELECT FROM elt.snapshot_chunks k WHERE k.source_id = $1 AND k.relation = h.relation) "
					   "FOR NO KEY UPDATE OF h SKIP LOCKED) "
					   "UPDATE elt.source_tables t SET state = 'ready', horizon = NULL, resync = false, "
					   "sync_lsn = p.lsn, sync_snapshot = p.snapshot, rows_copied = c.done "
					   "FROM elt.snapshot_tables c JOIN elt.snapshot_passes p USING (source_id) "
					   "WHERE c.source_id = $1 AND p.phase = 'copying' AND t.source_id = $1 AND t.relation = c.relation "
					   "AND t.state = 'pending' AND NOT t.lacking AND t.table_id IN (SELECT table_id FROM whole) "
					   "RETURNING t.relation, c.done",
					   1, types, values, NULL);
	for (uint64 row = 0; row < rows; row++)
		ereport(LOG,
				(errmsg("elt source \"%s\": copied table %s, " INT64_FORMAT " rows",
						source->name, elt_spi_text(&spi, row, 1), elt_spi_int64(row, 2))));
	if (rows > 0)
	{
		elt_spi_run("UPDATE elt.sources SET changes_staged = changes_staged + "
					"(SELECT sum(c.done) FROM elt.snapshot_tables c JOIN elt.source_tables t USING (source_id, relation) "
					"WHERE c.source_id = $1 AND t.state = 'ready') WHERE source_id = $1", 1, types, values, NULL);
		elt_spi_run("DELETE FROM elt.snapshot_tables c USING elt.source_tables t "
					"WHERE c.source_id = $1 AND t.source_id = $1 AND t.relation = c.relation AND t.state = 'ready'",
					1, types, values, NULL);
		elt_spi_run("SELECT elt.close_gaps($1)", 1, types, values, NULL);
	}
	elt_spi_end(&spi);
	return rows > 0;
}

void
elt_pass_discard(int64 source_id)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(source_id)};
	EltSpi		spi;

	elt_worker_begin_work("giving copies up");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	elt_spi_run("SELECT FROM elt.snapshot_passes WHERE source_id = $1 FOR UPDATE", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_copy_cancel(source_id, NULL);
	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.snapshot_passes WHERE source_id = $1", 1, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

void
elt_pass_give_back(int64 source_id, const char *relation, const char *error)
{
	MemoryContext context = CurrentMemoryContext;

	note_error(source_id, relation, error, REFUSED_RETRY_MS);
	elt_worker_begin_work("giving a copy up");
	MemoryContextSwitchTo(context);
	elt_copy_cancel(source_id, relation);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
}

static void
nap_or_leave(long ms)
{
	if (!elt_worker_nap(ms))
		elt_registry_finish();
}

/* 0 where it is null. */
static int64
result_int64(PGresult *result, int row, int column)
{
	return strtoll(elt_stream_value(result, row, column), NULL, 10);
}
