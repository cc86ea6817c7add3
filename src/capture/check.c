/*
 * check.c
 *	  elt.check_source(): all that a source needs at its server, tested now.
 *
 * One row per check; a check that fails is a row and never an error, with a
 * hint that can be pasted.  The tests run from the caller's session over a
 * connection of the same kind as the capture worker's, because its rights
 * differ from those of an ordinary one.  A check that depends on a failed one
 * is left out.
 *
 * Whether the server can load the plugin is tried: a temporary slot is made,
 * which asks for the library, for output_plugin_libraries, for a free slot and
 * for the right, all at once, as creating the real one does.  Making a slot
 * waits for running transactions to end; it is given COMMAND_TIMEOUT_MS,
 * and nothing stays of it.  A source that streams proves it without.
 *
 * Waits can be cancelled.  The connection is closed on every way out.
 */
#include "postgres.h"

#include "argument.h"
#include "capture/source.h"
#include "capture/stream.h"
#include "elt.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#define COMMAND_TIMEOUT_MS	10000
#define MAX_LISTED			20	/* tables that a detail names */

PG_FUNCTION_INFO_V1(elt_check_source);

typedef struct Check
{
	ReturnSetInfo *rows;
	EltSource  *source;
	EltStream  *stream;
} Check;

static void add(Check *check, const char *name, bool ok, const char *detail, const char *hint);
static PGresult *ask(Check *check, const char *name, const char *command, ExecStatusType expected);
static bool check_connection(Check *check);
static void check_server(Check *check);
static void check_role(Check *check);
static void check_room(Check *check);
static void check_publication(Check *check);
static void check_tables(Check *check);
static void check_identity(Check *check);
static bool check_slot(Check *check);
static void check_plugin(Check *check);
static void check_standby_names(Check *check);

Datum
elt_check_source(PG_FUNCTION_ARGS)
{
	Check		check = {0};

	check.source = elt_source_owned(elt_argument_text(fcinfo, 0, "name"));
	InitMaterializedSRF(fcinfo, 0);
	check.rows = (ReturnSetInfo *) fcinfo->resultinfo;

	PG_TRY();
	{
		if (check_connection(&check))
		{
			check_server(&check);
			check_role(&check);
			check_room(&check);
			check_publication(&check);
			check_tables(&check);
			check_identity(&check);
			check_standby_names(&check);
			if (!check_slot(&check))
				check_plugin(&check);
		}
	}
	PG_FINALLY();
	{
		if (check.stream != NULL)
			elt_stream_close(check.stream);
	}
	PG_END_TRY();
	return (Datum) 0;
}

static void
add(Check *check, const char *name, bool ok, const char *detail, const char *hint)
{
	Datum		values[] = {CStringGetTextDatum(name), BoolGetDatum(ok),
	CStringGetTextDatum(detail), hint ? CStringGetTextDatum(hint) : (Datum) 0};
	bool		nulls[] = {false, false, false, hint == NULL};

	tuplestore_putvalues(check->rows->setResult, check->rows->setDesc, values, nulls);
}

/*
 * Runs a command; NULL, with a failed check added, where the source refuses
 * it.  A cancel is no answer of the source.  Nothing here touches the
 * database, so no subtransaction is needed to go on.
 */
static PGresult *
ask(Check *check, const char *name, const char *command, ExecStatusType expected)
{
	MemoryContext context = CurrentMemoryContext;
	PGresult   *volatile result = NULL;

	PG_TRY();
	{
		if (check->stream == NULL)
			check->stream = elt_stream_connect(check->source->conninfo, "elt check");
		else
			result = elt_stream_query(check->stream, command, expected);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED || ProcDiePending)
			PG_RE_THROW();
		FlushErrorState();
		add(check, name, false,
			error->detail ? psprintf("%s (%s)", error->message, error->detail) : error->message, error->hint);
		FreeErrorData(error);
	}
	PG_END_TRY();
	return result;
}

static bool
check_connection(Check *check)
{
	(void) ask(check, "connection", NULL, PGRES_TUPLES_OK);
	if (check->stream == NULL)
		return false;
	elt_stream_set_timeout(check->stream, COMMAND_TIMEOUT_MS);
	add(check, "connection", true, elt_stream_describe(check->stream), NULL);
	return true;
}

static void
check_server(Check *check)
{
	PGresult   *result;
	int			version = elt_stream_server_version(check->stream);
	char	   *text;
	bool		ok;

	result = ask(check, "server",
				 "SELECT pg_catalog.current_setting('server_version'), pg_catalog.current_setting('server_encoding'), "
				 "pg_catalog.current_setting('wal_level'), pg_catalog.pg_is_in_recovery()", PGRES_TUPLES_OK);
	if (result == NULL)
		return;
	ok = version >= 150000;
	add(check, "server version", ok,
		psprintf("PostgreSQL %s%s", elt_stream_value(result, 0, 0),
				 elt_stream_value(result, 0, 3)[0] == 't' ? ", a standby: no heartbeat can be written there" : ""),
		ok ? NULL : "Capture needs PostgreSQL 15 or later at the source.");

	text = elt_stream_value(result, 0, 1);

	ok = strcmp(text, "SQL_ASCII") != 0 || GetDatabaseEncoding() == PG_SQL_ASCII;
	add(check, "encoding", ok,
		psprintf("%s there, %s here", text, GetDatabaseEncodingName()),
		ok ? NULL : "Text of no encoding cannot be converted: capture it into a database whose encoding is SQL_ASCII too.");

	text = elt_stream_value(result, 0, 2);

	ok = strcmp(text, "logical") == 0;
	add(check, "wal_level", ok, psprintf("wal_level is \"%s\"", text),
		ok ? NULL : "Put this line into the source's postgresql.conf and restart it: wal_level = logical");
	PQclear(result);
}

static void
check_role(Check *check)
{
	PGresult   *result = ask(check, "role",
							 "SELECT rolname, rolsuper OR rolreplication FROM pg_catalog.pg_roles "
							 "WHERE rolname = CURRENT_USER", PGRES_TUPLES_OK);
	bool		ok;

	if (result == NULL)
		return;
	ok = elt_stream_value(result, 0, 1)[0] == 't';
	add(check, "role", ok,
		psprintf("\"%s\" has %sthe right to replicate", elt_stream_value(result, 0, 0), ok ? "" : "not "),
		ok ? NULL : psprintf("At the source: ALTER ROLE %s REPLICATION", quote_identifier(elt_stream_value(result, 0, 0))));
	PQclear(result);
}

/* A first copy takes a slot of its own for a time. */
static void
check_room(Check *check)
{
	static const char *const names[] = {"max_replication_slots", "max_wal_senders"};
	PGresult   *result = ask(check, "room",
							 "SELECT pg_catalog.current_setting('max_replication_slots')::int, "
							 "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots), "
							 "pg_catalog.current_setting('max_wal_senders')::int, "
							 "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walsender')",
							 PGRES_TUPLES_OK);

	if (result == NULL)
		return;
	for (int i = 0; i < lengthof(names); i++)
	{
		int			most = atoi(elt_stream_value(result, 0, 2 * i));
		int			used = atoi(elt_stream_value(result, 0, 2 * i + 1));
		bool		ok = most > used;

		add(check, names[i], ok, psprintf("%d of %d are used", used, most),
			ok ? NULL : psprintf("Put this line into the source's postgresql.conf and restart it: %s = %d", names[i], used + 10));
	}
	PQclear(result);
}

static void
check_publication(Check *check)
{
	const char *publication = check->source->publication;
	const char *literal = elt_stream_literal(publication);
	PGresult   *result;
	bool		ok;

	result = ask(check, "publication",
				 psprintf("SELECT p.pubviaroot, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, "
						  "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_publication_tables t WHERE t.pubname = p.pubname) "
						  "FROM pg_catalog.pg_publication p WHERE p.pubname = %s", literal), PGRES_TUPLES_OK);
	if (result == NULL)
		return;
	if (PQntuples(result) == 0)
		add(check, "publication", false, psprintf("publication \"%s\" does not exist at the source", publication),
			psprintf("At the source: CREATE PUBLICATION %s FOR TABLE ... WITH (publish_via_partition_root = true)",
					 quote_identifier(publication)));
	else
	{
		ok = elt_stream_value(result, 0, 1)[0] == 't' && strcmp(elt_stream_value(result, 0, 2), "0") != 0;
		add(check, "publication", ok,
			psprintf("\"%s\" publishes %s table(s)%s, %s", publication, elt_stream_value(result, 0, 2),
					 elt_stream_value(result, 0, 1)[0] == 't' ? "" : ", but not all kinds of changes",
					 elt_stream_value(result, 0, 0)[0] == 't' ? "partitions under their root" : "partitions one by one"),
			ok ? NULL : elt_stream_value(result, 0, 1)[0] == 't' ?
			psprintf("At the source: ALTER PUBLICATION %s ADD TABLE ...", quote_identifier(publication)) :
			psprintf("At the source: ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')",
					 quote_identifier(publication)));
	}
	PQclear(result);
}

/* What the publication holds that will not be captured as one may think. */
static void
check_tables(Check *check)
{
	static const struct
	{
		const char *name;
		const char *from;		/* of t(relid, name): the tables concerned */
		const char *what;
		const char *hint;		/* of the first of them */
	}			kinds[] = {
		{"replica identity",
			"JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind = 'r' AND (c.relreplident = 'n' OR "
			"c.relreplident IN ('d', 'i') AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid "
			"AND i.indisvalid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END))",
			"have none, so that UPDATE and DELETE fail there",
		"At the source, for each: ALTER TABLE %s REPLICA IDENTITY FULL, or give it a primary key"},
		{"row filters",
			"JOIN pg_catalog.pg_publication_rel f ON f.prrelid = t.relid AND f.prqual IS NOT NULL "
			"JOIN pg_catalog.pg_publication p ON p.oid = f.prpubid AND p.pubname = t.publication",
			"have a row filter, which a first copy refuses",
		"At the source, for each: ALTER PUBLICATION ... SET TABLE %s, without WHERE; filter in the transform"},
		{"unlogged tables",
			"JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relpersistence = 'u'",
			"are unlogged, so that no change of theirs is in WAL",
		"At the source, for each: ALTER TABLE %s SET LOGGED"},
		{"right to copy",
			"WHERE NOT (pg_catalog.has_schema_privilege(t.schema, 'USAGE') AND pg_catalog.has_table_privilege(t.relid, 'SELECT'))",
			"cannot be read by this role, as a first copy has to",
		"At the source: GRANT SELECT ON %s TO this role, and USAGE on its schema"},
	};
	const char *tables = psprintf("(SELECT c.oid AS relid, n.oid AS schema, "
								  "pg_catalog.format('%%I.%%I', x.schemaname, x.tablename) AS name, x.pubname AS publication "
								  "FROM pg_catalog.pg_publication_tables x "
								  "JOIN pg_catalog.pg_namespace n ON n.nspname = x.schemaname "
								  "JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = x.tablename "
								  "WHERE x.pubname = %s) t", elt_stream_literal(check->source->publication));

	for (int i = 0; i < lengthof(kinds); i++)
	{
		PGresult   *result;
		StringInfoData detail;
		int			count;

		result = ask(check, kinds[i].name,
					 psprintf("SELECT t.name FROM %s %s ORDER BY 1", tables, kinds[i].from), PGRES_TUPLES_OK);
		if (result == NULL)
			return;
		count = PQntuples(result);
		initStringInfo(&detail);
		for (int row = 0; row < Min(count, MAX_LISTED); row++)
			appendStringInfo(&detail, "%s%s", row > 0 ? ", " : "", elt_stream_value(result, row, 0));
		if (count > MAX_LISTED)
			appendStringInfo(&detail, " and %d more", count - MAX_LISTED);
		if (count > 0)
			appendStringInfo(&detail, " %s", kinds[i].what);
		else
			appendStringInfoString(&detail, "all tables are well");
		add(check, kinds[i].name, count == 0, detail.data,
			count == 0 ? NULL : psprintf(kinds[i].hint, elt_stream_value(result, 0, 0)));
		PQclear(result);
	}
}

static void
check_identity(Check *check)
{
	const char *recorded = check->source->system_id;
	PGresult   *result = ask(check, "identity", "IDENTIFY_SYSTEM", PGRES_TUPLES_OK);
	bool		ok;

	if (result == NULL)
		return;
	ok = recorded == NULL || strcmp(recorded, elt_stream_value(result, 0, 0)) == 0;
	add(check, "identity", ok,
		psprintf("system identifier %s, timeline %s, WAL up to %s%s%s", elt_stream_value(result, 0, 0),
				 elt_stream_value(result, 0, 1), elt_stream_value(result, 0, 2),
				 ok ? "" : "; the slot was made in ", ok ? "" : recorded),
		ok ? NULL : psprintf("Where this is the right server: SELECT elt.resync_source(%s)",
							 quote_literal_cstr(check->source->name)));
	PQclear(result);
}

/* With '*' a capture worker counts as a standby that commits wait for. */
static void
check_standby_names(Check *check)
{
	PGresult   *result;
	bool		ok;

	result = ask(check, "synchronous_standby_names",
				 psprintf("SELECT s.setting, pg_catalog.strpos(s.setting, '*') = 0 AND "
						  "pg_catalog.strpos(pg_catalog.lower(s.setting), pg_catalog.lower(%s)) = 0 "
						  "FROM (SELECT pg_catalog.current_setting('synchronous_standby_names')) s(setting)",
						  elt_stream_literal(psprintf("elt %s", check->source->name))), PGRES_TUPLES_OK);
	if (result == NULL)
		return;
	ok = elt_stream_value(result, 0, 1)[0] == 't';
	add(check, "synchronous_standby_names", ok,
		psprintf("it is \"%s\"", elt_stream_value(result, 0, 0)),
		ok ? NULL : "Name the standbys one by one and reload: as it is, commits there wait for the capture worker");
	PQclear(result);
}

/* True where the source's slot is there: then the plugin needs no trial. */
static bool
check_slot(Check *check)
{
	EltSource  *source = check->source;
	PGresult   *result;
	bool		usable;
	bool		lost;

	if (source->start_lsn == InvalidXLogRecPtr)
	{
		add(check, "slot", true, "none yet: the capture worker makes it", NULL);
		return false;
	}
	result = ask(check, "slot",
				 psprintf("SELECT COALESCE(r.plugin = '%s' AND r.database = pg_catalog.current_database(), false), "
						  "r.wal_status IS NOT DISTINCT FROM 'lost', "
						  "pg_catalog.format('plugin %%s, database %%s, %%s, WAL %%s, holds %%s', r.plugin, r.database, "
						  "COALESCE('in use by process ' || r.active_pid, 'not in use'), r.wal_status, "
						  "pg_catalog.pg_size_pretty(CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN "
						  "pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), r.restart_lsn) END)) "
						  "FROM pg_catalog.pg_replication_slots r WHERE r.slot_name = %s",
						  ELT_LIBRARY, elt_stream_literal(source->slot_name)), PGRES_TUPLES_OK);
	if (result == NULL)
		return false;
	if (PQntuples(result) == 0)
	{
		add(check, "slot", false, psprintf("replication slot \"%s\" does not exist at the source", source->slot_name),
			psprintf("SELECT elt.resync_source(%s)", quote_literal_cstr(source->name)));
		PQclear(result);
		return false;
	}
	lost = elt_stream_value(result, 0, 1)[0] == 't';
	usable = elt_stream_value(result, 0, 0)[0] == 't';
	add(check, "slot", usable && !lost && !source->lost,
		psprintf("\"%s\": %s%s", source->slot_name, elt_stream_value(result, 0, 2), source->lost ? "; the source is lost" : ""),
		usable && !lost && !source->lost ? NULL :
		psprintf("SELECT elt.resync_source(%s)", quote_literal_cstr(source->name)));
	PQclear(result);
	if (usable)
		add(check, "plugin", true, "the slot was made with it", NULL);
	return usable;
}

static void
check_plugin(Check *check)
{
	PGresult   *result;

	result = ask(check, "plugin",
				 psprintf("CREATE_REPLICATION_SLOT \"elt_check_%d\" TEMPORARY LOGICAL \"%s\" (SNAPSHOT 'nothing')",
						  MyProcPid, ELT_LIBRARY), PGRES_TUPLES_OK);
	if (result == NULL)
		return;
	PQclear(result);
	add(check, "plugin", true, "a slot could be made with it", NULL);
}
