/*
 * replay_kept.c
 *	  Whether raw staging still has what a replay asks for.
 *
 * Retention drops the oldest leaves of a relation.  A replay whose lower bound
 * lies there is refused, because it would leave out what was asked for; one
 * without a lower bound replays what there is, and says from when on.  A
 * resumed one is refused where more was dropped since its last batch.
 *
 * Locking: the relation's partition, ACCESS SHARE to the end of the
 * transaction that records the run.  Retention drops under ACCESS EXCLUSIVE
 * and looks for runs there, so that one of the two sees the other.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "replay/replay.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"

void
elt_replay_check_kept(const EltReplay *replay)
{
	const EltReplayRun *run = &replay->run;
	Oid			raw = elt_pipeline_raw(replay->pipeline);
	Oid			types[] = {INT8OID, TEXTOID, LSNOID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID};
	Datum		values[7];
	bool		refused = false;
	bool		bounded = run->range.from_change > 1 || run->range.from_lsn != InvalidXLogRecPtr ||
	run->range.from_time != DT_NOBEGIN;
	char	   *since = NULL;
	EltSpi		spi;

	if (!OidIsValid(raw))
		return;
	LockRelationOid(raw, AccessShareLock);

	values[0] = Int64GetDatum(replay->pipeline->source_id);
	values[1] = CStringGetTextDatum(elt_pipeline_topic(replay->pipeline) ? "message:" : replay->pipeline->relation);
	values[2] = LSNGetDatum(run->range.from_lsn);
	values[3] = TimestampTzGetDatum(run->range.from_time);
	values[4] = Int64GetDatum(run->range.from_change);
	values[5] = Int64GetDatum(run->run_id);
	values[6] = Int64GetDatum(run->position);
	elt_spi_begin(&spi);
	if (elt_spi_run("SELECT to_char(d.upto_commit_ts, 'YYYY-MM-DD HH24:MI:SS.US TZH:TZM'), "
					"d.upto_lsn >= $3 AND d.upto_commit_ts >= $4 AND d.upto_change >= $5, "
					"coalesce((SELECT d.dropped_at > r.updated_at AND r.phase <> 'quarantine' "
					"AND (r.position < d.upto_change OR r.lane_end < p.lanes) "
					"FROM elt.replay_runs r JOIN elt.pipelines p USING (pipeline_id) WHERE r.run_id = $6), false) "
					"FROM elt.raw_dropped d WHERE d.source_id = $1 AND d.relation = $2",
					7, types, values, NULL) > 0)
	{
		bool		below = elt_spi_bool(0, 2);

		refused = run->run_id != 0 ? elt_spi_bool(0, 3) : below && bounded;
		if (below)
			since = elt_spi_text(&spi, 0, 1);
	}
	elt_spi_end(&spi);

	if (refused)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("raw staging of %s does not go back that far", replay->pipeline->relation),
				 errdetail("What was committed up to %s was dropped, see elt.raw_retention.", since ? since : "the run's bound"),
				 errhint("Replay from a later time, or leave out the lower bound to replay all that is kept; "
						 "elt.raw_staging tells what that is.")));
	if (since != NULL && run->run_id == 0)
		ereport(NOTICE,
				(errmsg("raw staging of %s is kept from after %s on", replay->pipeline->relation, since),
				 errdetail("What was committed before was dropped, see elt.raw_retention, and is not replayed.")));
}
