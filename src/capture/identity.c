/*
 * identity.c
 *	  Whether a source is still the one that its slot was made in.
 *
 * A position in WAL means something on one server and one timeline only.  A
 * server that was restored to the past, or a standby that was promoted before
 * it had everything, gives the same positions to other changes; streaming on
 * from ours would leave those out as if they were staged already.  So each
 * connection compares, before it streams:
 *
 *	other_system	 the system identifier is another one
 *	other_timeline	 the server left our timeline before our position
 *	source_behind	 its WAL ends before our position
 *	slot_missing	 no slot (dropped; or a promoted standby, a restored backup)
 *	slot_foreign	 a slot of our name, of another plugin or database
 *	slot_invalidated the server removed WAL that the slot needs
 *	slot_ahead		 somebody confirmed more to the slot than we have staged:
 *					 another consumer, or this database was restored to the past
 *
 * A server in recovery is not judged for a slot that it lacks: it may be a
 * standby that the connection came to while the primary was away.
 *
 * The last one relies on the origin's position being on disk before anything
 * up to it is confirmed (see capture.c).
 *
 * A server that was restored to the past and has since written more than it
 * had then, on the same timeline and with its slot, looks like itself: file
 * system snapshots that go back behind what was streamed are not detected once
 * that much was written.  Recovery to a point in time always begins a timeline.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "capture/identity.h"
#include "catalog/pg_type.h"
#include "elt.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

static bool check_timeline(EltStream *stream, const EltSource *source, XLogRecPtr position,
						   TimeLineID timeline, EltLoss *loss);
static XLogRecPtr timeline_end(EltStream *stream, TimeLineID of, TimeLineID seen_from);
static bool check_slot(EltStream *stream, const EltSource *source, XLogRecPtr position, bool in_recovery, EltLoss *loss);
static bool lost(EltLoss *loss, const char *reason, XLogRecPtr to, char *detail);
static XLogRecPtr parse_lsn(const char *text);

void
elt_identity_read(EltStream *stream, char **system_id, TimeLineID *timeline, XLogRecPtr *end)
{
	PGresult   *result = elt_stream_query(stream, "IDENTIFY_SYSTEM", PGRES_TUPLES_OK);

	*system_id = pstrdup(elt_stream_value(result, 0, 0));
	*timeline = (TimeLineID) strtoul(elt_stream_value(result, 0, 1), NULL, 10);
	*end = parse_lsn(elt_stream_value(result, 0, 2));
	PQclear(result);
}

bool
elt_identity_check(EltStream *stream, const EltSource *source, XLogRecPtr position,
				   TimeLineID *timeline, EltLoss *loss)
{
	char	   *system_id;
	XLogRecPtr	end;
	PGresult   *result;
	bool		in_recovery;

	elt_identity_read(stream, &system_id, timeline, &end);
	result = elt_stream_query(stream, "SELECT pg_catalog.pg_is_in_recovery()", PGRES_TUPLES_OK);
	in_recovery = elt_stream_value(result, 0, 0)[0] == 't';
	PQclear(result);

	loss->from = position;
	if (source->system_id != NULL && strcmp(source->system_id, system_id) != 0)
		return lost(loss, "other_system", InvalidXLogRecPtr,
					psprintf("the source is another server: its system identifier is %s, and the slot was made in %s",
							 system_id, source->system_id));
	if (source->timeline != 0 && source->timeline != *timeline &&
		!check_timeline(stream, source, position, *timeline, loss))
		return false;

	/* a standby that starts replays what it had sent before */
	if (!in_recovery && end < position)
		return lost(loss, "source_behind", end,
					psprintf("the source's WAL ends at %X/%X, and all up to %X/%X was staged: it was restored to the past",
							 LSN_FORMAT_ARGS(end), LSN_FORMAT_ARGS(position)));
	return check_slot(stream, source, position, in_recovery, loss);
}

static bool
check_timeline(EltStream *stream, const EltSource *source, XLogRecPtr position, TimeLineID timeline, EltLoss *loss)
{
	XLogRecPtr	end = timeline > source->timeline ? timeline_end(stream, source->timeline, timeline) : InvalidXLogRecPtr;

	if (end == InvalidXLogRecPtr)
		return lost(loss, "other_timeline", InvalidXLogRecPtr,
					psprintf("the source is on timeline %u, which did not come out of timeline %u",
							 timeline, source->timeline));
	if (end < position)
		return lost(loss, "other_timeline", end,
					psprintf("the source left timeline %u at %X/%X, and all up to %X/%X was staged from it",
							 source->timeline, LSN_FORMAT_ARGS(end), LSN_FORMAT_ARGS(position)));
	return true;
}

/* Where a timeline ended that another one came out of; Invalid where it did not. */
static XLogRecPtr
timeline_end(EltStream *stream, TimeLineID of, TimeLineID seen_from)
{
	XLogRecPtr	end = InvalidXLogRecPtr;
	PGresult   *result = elt_stream_query(stream, psprintf("TIMELINE_HISTORY %u", seen_from), PGRES_TUPLES_OK);
	char	   *history = pstrdup(elt_stream_value(result, 0, 1));
	char	   *rest = NULL;

	PQclear(result);
	for (char *line = strtok_r(history, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
	{
		unsigned int timeline;
		uint32		high;
		uint32		low;

		if (sscanf(line, " %u %X/%X", &timeline, &high, &low) == 3 && timeline == of)
			end = ((uint64) high << 32) | low;
	}
	pfree(history);
	return end;
}

static bool
check_slot(EltStream *stream, const EltSource *source, XLogRecPtr position, bool in_recovery, EltLoss *loss)
{
	PGresult   *result;
	XLogRecPtr	confirmed;
	bool		ours;
	char	   *whose;
	char	   *wal_status;

	result = elt_stream_query(stream,
							  psprintf("SELECT COALESCE(plugin = '%s' AND database = pg_catalog.current_database(), false), "
									   "pg_catalog.format('%%s slot of plugin %%s in database %%s', slot_type, "
									   "COALESCE(plugin, '(none)'), COALESCE(database, '(none)')), "
									   "wal_status, COALESCE(confirmed_flush_lsn, '0/0') "
									   "FROM pg_catalog.pg_replication_slots WHERE slot_name = %s",
									   ELT_LIBRARY, elt_stream_literal(source->slot_name)),
							  PGRES_TUPLES_OK);
	if (PQntuples(result) == 0)
	{
		PQclear(result);
		if (in_recovery)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the source is in recovery and has no replication slot \"%s\"", source->slot_name),
					 errhint("This is a standby, or a server that is being restored. Where the primary is elsewhere, name it in "
							 "conninfo, with target_session_attrs=read-write beside several hosts.")));
		return lost(loss, "slot_missing", InvalidXLogRecPtr,
					psprintf("replication slot \"%s\" does not exist at the source", source->slot_name));
	}
	ours = elt_stream_value(result, 0, 0)[0] == 't';
	whose = pstrdup(elt_stream_value(result, 0, 1));
	wal_status = pstrdup(elt_stream_value(result, 0, 2));
	confirmed = parse_lsn(elt_stream_value(result, 0, 3));
	PQclear(result);

	if (!ours)
		return lost(loss, "slot_foreign", InvalidXLogRecPtr,
					psprintf("replication slot \"%s\" at the source is not elt's any more: it is a %s",
							 source->slot_name, whose));
	if (strcmp(wal_status, "lost") == 0)
		return lost(loss, "slot_invalidated", InvalidXLogRecPtr,
					psprintf("replication slot \"%s\" was invalidated: the source removed WAL that it needs "
							 "(max_slot_wal_keep_size)", source->slot_name));
	if (confirmed > position)
		return lost(loss, "slot_ahead", confirmed,
					psprintf("replication slot \"%s\" was confirmed up to %X/%X, and only what came before %X/%X is staged: "
							 "another consumer used it, or this database was restored to the past",
							 source->slot_name, LSN_FORMAT_ARGS(confirmed), LSN_FORMAT_ARGS(position)));
	return true;
}

static bool
lost(EltLoss *loss, const char *reason, XLogRecPtr to, char *detail)
{
	loss->reason = reason;
	loss->detail = detail;
	loss->to = to;
	return false;
}

static XLogRecPtr
parse_lsn(const char *text)
{
	return DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(text)));
}

/* ---- what is written down ---- */

void
elt_identity_note_loss(const EltSource *source, const EltLoss *loss)
{
	Oid			types[] = {INT8OID, TEXTOID, LSNOID, LSNOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(source->source_id), CStringGetTextDatum(loss->reason),
	LSNGetDatum(loss->from), LSNGetDatum(loss->to), CStringGetTextDatum(loss->detail)};
	char		nulls[] = {' ', ' ', ' ', loss->to == InvalidXLogRecPtr ? 'n' : ' ', ' ', '\0'};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT elt.lose_source($1, $2, $3, $4, $5)", 5, types, values, nulls);
	elt_spi_end(&spi);
}

void
elt_identity_note_timeline(const EltSource *source, TimeLineID timeline)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(source->source_id), Int64GetDatum(timeline)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.sources SET timeline = $2 WHERE source_id = $1", 2, types, values, NULL);
	elt_spi_end(&spi);
}
