/*
 * replay_run.c
 *	  Runs of replays: what was asked for, and how far each is.
 *
 * A run is a row of elt.replay_runs.  Its position and counts are stored in
 * the transaction of each batch, so that whatever ends a run, it can go on
 * from there.  A run whose session has gone is still "running" in its row;
 * pid and start of the session tell that it is not.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replay/replay_run.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

static int	compare_keys(const void *a, const void *b);
static const char *phase_name(EltReplayPhase phase);
static Datum int64_of(EltSpi *spi, int column, int64 otherwise);

/* ---- what was asked for ---- */

void
elt_replay_range_read(EltReplayRun *run)
{
	EltReplayRange *range = &run->range;
	Oid			types[] = {JSONBOID};
	Datum		values[] = {JsonbPGetDatum(run->arguments)};
	Datum		keys;
	bool		isnull;
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("SELECT a.from_lsn, a.to_lsn, a.from_time, a.to_time, a.from_change, a.to_change, "
				"CASE WHEN a.keys IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements(a.keys)) END, "
				"a.filter, a.rate::bigint, coalesce(a.dry_run, false) "
				"FROM jsonb_to_record($1) AS a (from_lsn pg_lsn, to_lsn pg_lsn, from_time timestamptz, to_time timestamptz, "
				"from_change bigint, to_change bigint, keys jsonb, filter text, rate int, dry_run boolean)",
				1, types, values, NULL);
	range->from_lsn = DatumGetLSN(int64_of(&spi, 1, 0));
	range->to_lsn = DatumGetLSN(int64_of(&spi, 2, -1));
	range->from_time = DatumGetTimestampTz(int64_of(&spi, 3, DT_NOBEGIN));
	range->to_time = DatumGetTimestampTz(int64_of(&spi, 4, DT_NOEND));
	range->from_change = DatumGetInt64(int64_of(&spi, 5, 0));
	range->to_change = DatumGetInt64(int64_of(&spi, 6, PG_INT64_MAX));
	keys = elt_spi_datum(&spi, 0, 7, &isnull);
	if (isnull)
		keys = 0;
	range->filter = elt_spi_text(&spi, 0, 8);
	run->rate = (int) elt_spi_int64(0, 9);
	run->dry_run = elt_spi_bool(0, 10);
	elt_spi_end(&spi);

	range->keys = NULL;
	range->nkeys = 0;
	if (keys != 0)
	{
		Datum	   *elements;

		deconstruct_array(DatumGetArrayTypeP(keys), JSONBOID, -1, false, TYPALIGN_INT,
						  &elements, NULL, &range->nkeys);
		range->keys = palloc(Max(range->nkeys, 1) * sizeof(Jsonb *));
		for (int i = 0; i < range->nkeys; i++)
			range->keys[i] = DatumGetJsonbP(elements[i]);
		qsort(range->keys, range->nkeys, sizeof(Jsonb *), compare_keys);
	}
}

static Datum
int64_of(EltSpi *spi, int column, int64 otherwise)
{
	bool		isnull;
	Datum		value = elt_spi_datum(spi, 0, column, &isnull);

	return isnull ? Int64GetDatum(otherwise) : value;
}

static int
compare_keys(const void *a, const void *b)
{
	return compareJsonbContainers(&(*(Jsonb *const *) a)->root, &(*(Jsonb *const *) b)->root);
}

bool
elt_replay_range_matches_key(void *arg, Datum key)
{
	EltReplayRange *range = arg;
	Jsonb	   *value;
	bool		found;

	if (range->keys == NULL)
		return true;
	if (key == 0)
		return false;
	value = DatumGetJsonbP(key);
	found = bsearch(&value, range->keys, range->nkeys, sizeof(Jsonb *), compare_keys) != NULL;
	if ((Pointer) value != DatumGetPointer(key))
		pfree(value);
	return found;
}

/* Apart from keys and filter. */
bool
elt_replay_range_contains(const EltReplayRange *range, const EltLogRow *row)
{
	return row->change_id >= range->from_change && row->change_id <= range->to_change &&
		row->commit_lsn >= range->from_lsn && row->commit_lsn <= range->to_lsn &&
		row->commit_ts >= range->from_time && row->commit_ts <= range->to_time;
}

/* ---- the row ---- */

void
elt_replay_run_create(EltReplayRun *run)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, JSONBOID, BOOLOID, INT8OID, INT8OID, INT4OID, INT4OID,
	TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(run->pipeline_id), CStringGetTextDatum(run->pipeline),
		Int32GetDatum(run->version), JsonbPGetDatum(run->arguments), BoolGetDatum(run->dry_run),
		Int64GetDatum(run->last_change), Int64GetDatum(run->position), Int32GetDatum(run->lane_end),
	Int32GetDatum(MyProcPid), TimestampTzGetDatum(MyStartTimestamp)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("DELETE FROM elt.replay_runs r WHERE r.pipeline_id = $1 AND r.state <> 'running' AND r.run_id <= "
				"(SELECT o.run_id FROM elt.replay_runs o WHERE o.pipeline_id = $1 ORDER BY o.run_id DESC OFFSET 99 LIMIT 1)",
				1, types, values, NULL);
	elt_spi_run("WITH run AS (INSERT INTO elt.replay_runs (pipeline_id, pipeline, version, arguments, dry_run, last_change, "
				"position, lane_end, pid, backend_start) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING run_id) "
				"SELECT run_id FROM run", lengthof(types), types, values, NULL);
	run->run_id = elt_spi_int64(0, 1);
	elt_spi_end(&spi);
}

void
elt_replay_run_read(int64 run_id, EltReplayRun *run)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(run_id)};
	bool		found;
	bool		isnull;
	EltSpi		spi;

	memset(run, 0, sizeof(EltReplayRun));
	run->run_id = run_id;
	elt_spi_begin(&spi);
	found = elt_spi_run("SELECT r.pipeline_id, r.pipeline, r.version, r.state, elt.session_is_alive(r.pid, r.backend_start), "
						"r.arguments, r.last_change, r.phase, r.lane_from, r.lane_end, r.position, r.total, "
						"r.done, r.selected, r.applied, r.superseded, r.quarantined, r.skipped "
						"FROM elt.replay_runs r WHERE r.run_id = $1 FOR UPDATE", 1, types, values, NULL) > 0;
	if (found)
	{
		char	   *phase = elt_spi_text(&spi, 0, 8);

		run->pipeline_id = elt_spi_int64(0, 1);
		run->pipeline = elt_spi_text(&spi, 0, 2);
		run->version = (int) elt_spi_int64(0, 3);
		run->state = elt_spi_text(&spi, 0, 4)[0];
		run->alive = run->state == 'r' && elt_spi_bool(0, 5);
		run->arguments = DatumGetJsonbP(elt_spi_datum(&spi, 0, 6, &isnull));
		run->last_change = elt_spi_int64(0, 7);
		run->phase = strcmp(phase, "quarantine") == 0 ? ELT_REPLAY_QUARANTINE :
			strcmp(phase, "apply") == 0 ? ELT_REPLAY_APPLY : ELT_REPLAY_SCAN;
		run->lane_from = (int) elt_spi_int64(0, 9);
		run->lane_end = (int) elt_spi_int64(0, 10);
		run->position = elt_spi_int64(0, 11);
		run->total = elt_spi_int64(0, 12);
		run->counts.done = elt_spi_int64(0, 13);
		run->counts.selected = elt_spi_int64(0, 14);
		run->counts.applied = elt_spi_int64(0, 15);
		run->counts.superseded = elt_spi_int64(0, 16);
		run->counts.quarantined = elt_spi_int64(0, 17);
		run->counts.skipped = elt_spi_int64(0, 18);
	}
	elt_spi_end(&spi);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("replay %lld does not exist", (long long) run_id),
				 errhint("SELECT run_id, pipeline, state FROM elt.progress_replay lists the runs.")));
	elt_replay_range_read(run);
}

void
elt_replay_run_start(const EltReplayRun *run)
{
	Oid			types[] = {INT8OID, INT4OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(run->run_id), Int32GetDatum(run->version), Int32GetDatum(MyProcPid),
	TimestampTzGetDatum(MyStartTimestamp)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.replay_runs SET state = 'running', version = $2, pid = $3, backend_start = $4, "
				"resumed_at = clock_timestamp(), resumed_done = done, updated_at = clock_timestamp(), "
				"finished_at = NULL, last_error = NULL "
				"WHERE run_id = $1", lengthof(types), types, values, NULL);
	elt_spi_end(&spi);
}

bool
elt_replay_run_save(const EltReplayRun *run)
{
	Oid			types[] = {INT8OID, TEXTOID, INT4OID, INT4OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID,
	INT8OID, INT8OID, INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(run->run_id), CStringGetTextDatum(phase_name(run->phase)),
		Int32GetDatum(run->lane_from), Int32GetDatum(run->lane_end), Int64GetDatum(run->position),
		Int64GetDatum(run->total), Int64GetDatum(run->counts.done), Int64GetDatum(run->counts.selected),
		Int64GetDatum(run->counts.applied), Int64GetDatum(run->counts.superseded),
		Int64GetDatum(run->counts.quarantined), Int64GetDatum(run->counts.skipped), Int32GetDatum(MyProcPid),
	TimestampTzGetDatum(MyStartTimestamp)};
	uint64		rows;
	EltSpi		spi;

	elt_spi_begin(&spi);
	rows = elt_spi_run("UPDATE elt.replay_runs SET phase = $2, lane_from = $3, lane_end = $4, position = $5, total = $6, "
					   "done = $7, selected = $8, applied = $9, superseded = $10, quarantined = $11, skipped = $12, "
					   "updated_at = clock_timestamp() "
					   "WHERE run_id = $1 AND state = 'running' AND pid = $13 AND backend_start = $14",
					   lengthof(types), types, values, NULL);
	elt_spi_end(&spi);
	return rows > 0;
}

void
elt_replay_run_end(int64 run_id, const char *state, const char *error)
{
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID, INT4OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(run_id), CStringGetTextDatum(state),
		error ? CStringGetTextDatum(error) : (Datum) 0, Int32GetDatum(MyProcPid),
	TimestampTzGetDatum(MyStartTimestamp)};
	EltSpi		spi;

	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.replay_runs SET state = $2, last_error = $3, updated_at = clock_timestamp(), "
				"finished_at = clock_timestamp() "
				"WHERE run_id = $1 AND state = 'running' AND pid = $4 AND backend_start = $5",
				lengthof(types), types, values, error ? NULL : "  n  ");
	elt_spi_end(&spi);
}

static const char *
phase_name(EltReplayPhase phase)
{
	switch (phase)
	{
		case ELT_REPLAY_SCAN:
			return "scan";
		case ELT_REPLAY_APPLY:
			return "apply";
		case ELT_REPLAY_QUARANTINE:
			return "quarantine";
	}
	return NULL;
}
