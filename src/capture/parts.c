/*
 * parts.c
 *	  Partitions that come, go or are emptied under tables that are captured
 *	  through their root.
 *
 * What is compared with what, and when it asks for a copy, is told in
 * src/sql/23_partitions.sql; here is how the source is asked.
 *
 * A look costs the source one statement on its catalogs, and those of a source
 * whose publication does not publish by roots find nothing.  Only partitions
 * that came or went are measured, for which their file must be opened: that
 * needs a lock, which the supervisor does not wait for, and the watch for
 * LOCK_TIMEOUT_MS; where it is not to be had, all is left for the next look.
 *
 * A partition is told by its OID and by the transactions that attached it and
 * what is between it and the root, so that one that was away for a moment is
 * another one.  One that was made by CREATE TABLE ... PARTITION OF is told
 * from one that was attached by its columns: they are inherited, and as old as
 * the table.  ATTACH writes the rows of pg_attribute anew.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "capture/parts.h"
#include "catalog/pg_type.h"
#include "control/worker.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"

#define LOCK_TIMEOUT_MS	200

static const char *leaves_query(const EltSource *source);
static const char *sizes_query(const char *differing);
static void look(const EltSource *source, EltStream *stream, XLogRecPtr end);
static char *note_looked(const EltSource *source, XLogRecPtr end, const char *seen, const char *measured);
static char *note(int64 source_id, XLogRecPtr end, const char *seen, const char *measured, EltSpi *spi);
static bool are_free(const char *differing);

/*
 * One value: by name, the topmost published root's OID and its leaves.  In SQL
 * and without locks on the tables.
 */
static const char *
leaves_query(const EltSource *source)
{
	return psprintf("WITH RECURSIVE roots AS ("
					"SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS name, c.relispartition "
					"FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_class c ON c.relkind = 'p' "
					"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
					"WHERE p.pubname = %s AND p.pubviaroot AND n.nspname NOT IN ('elt', 'elt_raw') AND (p.puballtables "
					"OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid) "
					"OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = n.oid))), "
					"tree (root, relid, attached) AS ("
					"SELECT r.oid, r.oid, '' FROM roots r WHERE NOT r.relispartition OR NOT EXISTS ("
					"SELECT FROM pg_catalog.pg_partition_ancestors(r.oid) a JOIN roots o ON o.oid = a.relid WHERE o.oid <> r.oid) "
					"UNION ALL SELECT t.root, i.inhrelid, t.attached || i.xmin || ' ' "
					"FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending), "
					"leaves AS (SELECT t.root, pg_catalog.json_object_agg(t.relid, pg_catalog.json_build_object("
					"'name', pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname), "
					"'file', c.relfilenode, 'attached', t.attached)) AS leaves "
					"FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'r' "
					"JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace GROUP BY t.root) "
					"SELECT COALESCE(pg_catalog.json_object_agg(r.name, pg_catalog.json_build_object("
					"'oid', r.oid, 'leaves', COALESCE(l.leaves, '{}'))), '{}') "
					"FROM tree t JOIN roots r ON r.oid = t.root LEFT JOIN leaves l ON l.root = t.root WHERE t.relid = t.root",
					elt_stream_literal(source->publication));
}

/*
 * By OID, what is to be known of partitions that came or went.  One that was
 * dropped has no size, and one whose every step up to the root was made as a
 * partition is born.
 */
static const char *
sizes_query(const char *differing)
{
	return psprintf("SELECT COALESCE(pg_catalog.json_object_agg(d.leaf, pg_catalog.json_build_object("
					"'bytes', pg_catalog.pg_relation_size(d.leaf::oid), "
					"'file', (SELECT c.relfilenode FROM pg_catalog.pg_class c WHERE c.oid = d.leaf::oid), "
					"'born', NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(d.leaf::oid) a "
					"WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(d.root::oid) b "
					"WHERE b.relid = a.relid) AND NOT EXISTS ("
					"SELECT FROM pg_catalog.pg_attribute s JOIN pg_catalog.pg_attribute u USING (attrelid) "
					"WHERE s.attrelid = a.relid AND s.attname = 'ctid' AND u.attnum > 0 AND u.attinhcount > 0 "
					"AND u.xmin = s.xmin AND u.cmin = s.cmin)))), '{}') "
					"FROM pg_catalog.json_to_recordset(%s) AS d (leaf bigint, root bigint)",
					elt_stream_literal(differing));
}

/* ---- looks ---- */

void
elt_parts_look_local(const EltSource *source)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();	/* before the statement's
												 * snapshot */
	char	   *seen;
	char	   *differing;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_execute(leaves_query(source));
	seen = elt_spi_text(&spi, 0, 1);
	if (strcmp(seen, "{}") != 0)
	{
		differing = note(source->source_id, end, seen, NULL, &spi);
		if (differing != NULL && are_free(differing))
		{
			/* should somebody come in between */
			(void) set_config_option("lock_timeout", CppAsString2(LOCK_TIMEOUT_MS), PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_SAVE, true, 0, false);
			elt_spi_execute(sizes_query(differing));
			(void) note(source->source_id, end, seen, elt_spi_text(&spi, 0, 1), &spi);
		}
	}
	elt_spi_end(&spi);
}

/*
 * Whether none of the partitions is locked so that to measure it would wait.
 * One after the other: there may be more than the lock table has room for.
 */
static bool
are_free(const char *differing)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(differing)};
	uint64		rows = elt_spi_run("SELECT (d->>'leaf')::bigint FROM jsonb_array_elements($1::jsonb) d ORDER BY 1",
								   1, types, values, NULL);

	for (uint64 row = 0; row < rows; row++)
	{
		Oid			leaf = (Oid) elt_spi_int64(row, 1);

		if (!ConditionalLockRelationOid(leaf, AccessShareLock))
			return false;
		UnlockRelationOid(leaf, AccessShareLock);
	}
	return true;
}

char *
elt_parts_look(const EltSource *source, EltStream *stream, XLogRecPtr end)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile refused = NULL;

	PG_TRY();
	{
		PQclear(elt_stream_query(stream, psprintf("BEGIN READ ONLY; SET LOCAL lock_timeout = %d", LOCK_TIMEOUT_MS),
								 PGRES_COMMAND_OK));
		look(source, stream, end);
		PQclear(elt_stream_query(stream, "COMMIT", PGRES_COMMAND_OK));
	}
	PG_CATCH();
	{
		ErrorData  *error;

		/* what went wrong was here, or the connection, or somebody ended us */
		if (ProcDiePending || IsTransactionState() || !elt_stream_in_error(stream))
			PG_RE_THROW();
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		refused = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	if (refused != NULL)
		PQclear(elt_stream_query(stream, "ROLLBACK", PGRES_COMMAND_OK));
	return refused;
}

/* In the transaction that is open at the source. */
static void
look(const EltSource *source, EltStream *stream, XLogRecPtr end)
{
	char	   *seen = elt_parts_read(source, stream);
	char	   *differing;
	PGresult   *result;

	if (strcmp(seen, "{}") == 0)
		return;
	differing = note_looked(source, end, seen, NULL);
	if (differing == NULL)
		return;
	result = elt_stream_query(stream, sizes_query(differing), PGRES_TUPLES_OK);
	(void) note_looked(source, end, seen, pstrdup(elt_stream_value(result, 0, 0)));
	PQclear(result);
}

static char *
note_looked(const EltSource *source, XLogRecPtr end, const char *seen, const char *measured)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *differing;
	EltSpi		spi;

	elt_worker_begin_work("noting partitions");
	MemoryContextSwitchTo(context);
	elt_spi_begin(&spi);
	differing = note(source->source_id, end, seen, measured, &spi);
	elt_spi_end(&spi);
	elt_worker_commit();
	MemoryContextSwitchTo(context);
	return differing;
}

static char *
note(int64 source_id, XLogRecPtr end, const char *seen, const char *measured, EltSpi *spi)
{
	Oid			types[] = {INT8OID, LSNOID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), LSNGetDatum(end), CStringGetTextDatum(seen),
	measured ? CStringGetTextDatum(measured) : (Datum) 0};
	char		nulls[] = {' ', ' ', ' ', measured ? ' ' : 'n', '\0'};

	elt_spi_run("SELECT elt.note_partitions($1, $2, $3::jsonb, $4::jsonb)::text", 4, types, values, nulls);
	return elt_spi_text(spi, 0, 1);
}

/* ---- copies and the stream ---- */

char *
elt_parts_read(const EltSource *source, EltStream *stream)
{
	PGresult   *result = elt_stream_query(stream, leaves_query(source), PGRES_TUPLES_OK);
	char	   *seen = pstrdup(elt_stream_value(result, 0, 0));

	PQclear(result);
	return seen;
}

void
elt_parts_base(int64 source_id, XLogRecPtr lsn, Datum names, const char *seen)
{
	Oid			types[] = {INT8OID, LSNOID, TEXTARRAYOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source_id), LSNGetDatum(lsn), names, CStringGetTextDatum(seen)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.base_partitions($1, $2, $3, $4::jsonb)", 4, types, values, NULL);
	elt_spi_end(&spi);
}

void
elt_parts_truncated(int64 source_id, const char *relation, const char *partition, XLogRecPtr commit_lsn)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, LSNOID};
	Datum		values[] = {Int64GetDatum(source_id), CStringGetTextDatum(relation), CStringGetTextDatum(partition),
	LSNGetDatum(commit_lsn)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.note_truncated_partition($1, $2, $3, $4)", 4, types, values, NULL);
	elt_spi_end(&spi);
}
