/*
 * replay_batch.c
 *	  What a replay does: scan, apply.
 *
 * A change is applied only if it is the newest of its key that the pipeline
 * has settled, be that newest one selected or not; so nothing older ever gets
 * over something newer, whatever is selected, and a replay of everything gives
 * what one pass over the history would give today.  Changes that are not
 * settled yet are left to the workers.  A truncate is not applied again: what
 * came before it is superseded.
 *
 * Scan: the log is walked from the first bound to where the lanes stand, and
 * of each key that has a change between the bounds the newest change_id is
 * noted (newest.c).  Where that takes too much memory half of the lanes are
 * put off, as often as it takes, and come with a scan of their own later.
 *
 * A history keeps every version, so there all that is selected is applied,
 * and no truncate makes it moot.
 *
 * Apply: windows are read between the bounds.  In one transaction the lanes
 * are held, so that no worker can settle something newer meanwhile; what was
 * settled since the scan is noted; and what is still the newest goes through
 * isolate.c, as a live batch does.  Between batches the lanes are free.
 *
 * Keys with an unresolved quarantined change are not touched meanwhile
 * (ordering strict), nor are changes that are quarantined themselves: these
 * come at the end, see replay_retry.c.
 */
#include "postgres.h"

#include "capture/change.h"
#include "guc.h"
#include "replay/replay.h"
#include "storage/lmgr.h"
#include "transform/isolate.h"
#include "transform/runner.h"
#include "transform/target.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#define SCAN_CHANGES	500000	/* that one transaction looks at */
#define BREAKER_CHANGES	100		/* more than one in 20 of at least so many
								 * failed: it is not the records' fault */

typedef enum Fate
{
	FATE_NONE,					/* not between the bounds, or not settled */
	FATE_PASSED,				/* not selected */
	FATE_SUPERSEDED,
	FATE_SKIPPED,
	FATE_CHOSEN
} Fate;

static void scan(EltReplay *replay);
static void walk(EltReplay *replay, int64 after, int64 upto, int64 max_changes);
static bool matches(void *arg, Datum key);
static void visit(void *arg, const EltLogRow *row);
static void apply(EltReplay *replay);
static void end_group(EltReplay *replay, bool unresolved);
static void note_progress_of_lanes(EltReplay *replay, const int64 *positions);
static EltLogWindow *read_window(EltReplay *replay, int64 upto);
static void choose(EltReplay *replay, EltWork *work, Fate *fates);
static bool is_superseded(EltReplay *replay, const EltLogRow *row, bool *partial);
static void skip_unresolved(EltReplay *replay, const EltWork *work, Fate *fates);
static int	compare_int64(const void *a, const void *b);
static void forget_rows(EltWork *work);
static void count(EltReplay *replay, const EltWork *work, EltLogRow **rows, int nrows, const Fate *fates, int64 end);
static void note_truncate(EltReplay *replay, TimestampTz at);
static bool deletes_leave_image(const EltReplay *replay);

void
elt_replay_step(EltReplay *replay)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	elt_replay_load(replay);
	if (replay->run.phase == ELT_REPLAY_QUARANTINE)
		elt_replay_retry_quarantined(replay);
	else if (replay->newest == NULL || replay->run.phase == ELT_REPLAY_SCAN)
		scan(replay);
	else
		apply(replay);
	PopActiveSnapshot();
}

/* ---- scan ---- */

static void
scan(EltReplay *replay)
{
	EltReplayRun *run = &replay->run;
	MemoryContext old;

	if (replay->newest == NULL)
	{
		int			lanes = elt_checkpoint_positions(run->pipeline_id, replay->positions);

		MemoryContextReset(replay->group);
		old = MemoryContextSwitchTo(replay->group);
		replay->newest = elt_newest_create();
		replay->carried = NULL;
		MemoryContextSwitchTo(old);
		replay->truncated_at = 0;
		replay->truncates = NULL;
		replay->scanned = Max(run->range.from_change, 1) - 1;
		replay->scan_end = 0;
		for (int lane = 0; lane < lanes; lane++)
			replay->scan_end = Max(replay->scan_end, replay->positions[lane]);

		/* once for all lanes; a scan that was interrupted counts anew */
		replay->counting = run->lane_from == 0 && run->counts.done == 0;
		if (replay->counting)
			run->total = 0;
		run->phase = ELT_REPLAY_SCAN;
	}
	if (replay->scanned < replay->scan_end)
	{
		walk(replay, replay->scanned, replay->scan_end, SCAN_CHANGES);
		return;
	}

	replay->counting = false;
	replay->read_to = Max(run->range.from_change, 1) - 1;
	if (elt_newest_partials(replay->newest) == 0)
		replay->read_to = Max(replay->read_to, run->position);
	run->phase = ELT_REPLAY_APPLY;
}

/* Notes what is behind "after", and how far that goes. */
static void
walk(EltReplay *replay, int64 after, int64 upto, int64 max_changes)
{
	EltLogWalk	request = {0};
	MemoryContext old;

	request.raw = elt_pipeline_raw(replay->pipeline);
	request.topic = elt_pipeline_topic(replay->pipeline);
	request.after = after;
	request.upto = upto;
	request.max_changes = max_changes;
	request.matches = replay->run.range.keys ? matches : NULL;
	request.visit = visit;
	request.arg = replay;
	PushActiveSnapshot(GetTransactionSnapshot());
	replay->scanned = elt_log_walk(&request);
	PopActiveSnapshot();

	old = MemoryContextSwitchTo(replay->group);
	while (elt_newest_is_full(replay->newest) && replay->run.lane_end - replay->run.lane_from > 1)
	{
		replay->run.lane_end -= (replay->run.lane_end - replay->run.lane_from) / 2;
		elt_newest_drop_lanes(replay->newest, replay->pipeline->lanes, replay->run.lane_end);
	}
	MemoryContextSwitchTo(old);
}

static bool
matches(void *arg, Datum key)
{
	return elt_replay_range_matches_key(&((EltReplay *) arg)->run.range, key);
}

static void
visit(void *arg, const EltLogRow *row)
{
	EltReplay  *replay = arg;
	EltReplayRun *run = &replay->run;
	int			lane = row->key_hash & (replay->pipeline->lanes - 1);
	bool		wanted = row->matches && elt_replay_range_contains(&run->range, row);

	/* a truncate is settled by all lanes at once */
	if (row->op == ELT_OP_TRUNCATE)
	{
		if (replay->options.apply_truncate && row->change_id <= replay->positions[run->lane_from])
		{
			replay->truncated_at = Max(replay->truncated_at, row->change_id);
			if (replay->pipeline->history)
				note_truncate(replay, row->commit_ts);
		}
		return;
	}
	if (row->change_id > replay->positions[lane])
		return;
	if (wanted && replay->counting)
		run->total++;
	if (lane >= run->lane_from && lane < run->lane_end && !replay->forget && !replay->pipeline->history &&
		!(row->op == ELT_OP_DELETE && deletes_leave_image(replay)))
		elt_newest_note(replay->newest, row, !wanted);
}

/* In a history it ends the versions that were present, also those that come back only now. */
static void
note_truncate(EltReplay *replay, TimestampTz at)
{
	MemoryContext old = MemoryContextSwitchTo(replay->group);
	char	   *before = replay->truncates;

	replay->truncates = psprintf("%.*s%s\"%s\"}", before ? (int) strlen(before) - 1 : 1, before ? before : "{",
								 before ? "," : "", timestamptz_to_str(at));
	MemoryContextSwitchTo(old);
}

/* A delete that is not applied, or only marks the row, leaves the image before it in the target. */
static bool
deletes_leave_image(const EltReplay *replay)
{
	return !replay->options.apply_deletes || replay->options.soft_deletes || (replay->pipeline->append && replay->pipeline->transform == NULL);
}

/* ---- apply ---- */

static void
apply(EltReplay *replay)
{
	EltReplayRun *run = &replay->run;
	EltPipeline *pipeline = replay->pipeline;
	EltWork    *work = palloc0(sizeof(EltWork));
	bool		wanted[ELT_MAX_LANES] = {false};
	bool		held[ELT_MAX_LANES];
	int64		positions[ELT_MAX_LANES] = {0};
	int64		end = 0;
	EltLogWindow *window;
	EltLogRow **rows;
	int			nrows;
	Fate	   *fates;

	for (int lane = run->lane_from; lane < run->lane_end; lane++)
		wanted[lane] = true;
	(void) elt_checkpoint_lock(pipeline->pipeline_id, wanted, true, held, positions);
	LockRelationOid(pipeline->target, RowExclusiveLock);
	elt_target_check(pipeline);
	work->pipeline = pipeline;
	work->options = replay->options;
	if (!elt_pipeline_status(pipeline, &work->status))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("pipeline \"%s\" does not exist any more", pipeline->name),
				 errhint("It was dropped while it was replayed.")));
	note_progress_of_lanes(replay, positions);
	pipeline->truncates = replay->truncates;
	for (int lane = run->lane_from; lane < run->lane_end; lane++)
		end = Max(end, positions[lane]);
	end = Min(end, run->range.to_change);
	if (replay->read_to >= end)
	{
		end_group(replay, work->status.unresolved);
		return;
	}

	window = read_window(replay, end);
	work->after = replay->read_to;
	work->window = window;
	if (window->barrier != NULL && window->position == replay->read_to)
		window->position = window->barrier->change_id;
	rows = window->rows;
	nrows = window->nrows;
	fates = palloc0(Max(nrows, 1) * sizeof(Fate));
	window->rows = palloc(Max(nrows, 1) * sizeof(EltLogRow *));
	if (nrows > 0)
		memcpy(window->rows, rows, nrows * sizeof(EltLogRow *));
	choose(replay, work, fates);

	if (replay->forget && window->nrows > 0)
	{
		ErrorData  *error = elt_isolate_try(work, forget_rows);

		if (error != NULL)
			ReThrowError(error);
	}
	if (window->nrows > 0 && !elt_isolate_apply(work))
		ReThrowError(work->error);
	end = window->position;
	if (work->settled < window->nrows)
	{
		/* what was forgotten must not stay so between two batches */
		if (replay->forget)
		{
			replay->max_changes = work->settled;
			replay->take_back = true;
			return;
		}
		end = window->rows[work->settled - 1]->change_id;
	}
	replay->max_changes = Min(2 * (int64) replay->max_changes, PG_INT32_MAX / 2);
	replay->backlog = elt_log_tail(work->status.raw) > positions[run->lane_from];
	count(replay, work, rows, nrows, fates, end);
	replay->read_to = end;
	run->position = Max(run->position, end);
}

/* These lanes are done: the next ones, or what is quarantined, or the end. */
static void
end_group(EltReplay *replay, bool unresolved)
{
	EltReplayRun *run = &replay->run;

	if (run->lane_end < replay->pipeline->lanes)
	{
		run->lane_from = run->lane_end;
		run->lane_end = replay->pipeline->lanes;
		run->position = Max(run->range.from_change, 1) - 1;
		run->phase = ELT_REPLAY_SCAN;
		replay->newest = NULL;
	}
	else if (unresolved)
	{
		run->position = 0;
		run->phase = ELT_REPLAY_QUARANTINE;
	}
	else
		replay->finished = true;
}

/* What the workers have settled since the last look is newer than what was noted. */
static void
note_progress_of_lanes(EltReplay *replay, const int64 *positions)
{
	int64		after = PG_INT64_MAX;
	int64		upto = 0;

	for (int lane = replay->run.lane_from; lane < replay->run.lane_end; lane++)
	{
		if (positions[lane] > replay->positions[lane])
		{
			after = Min(after, replay->positions[lane]);
			upto = Max(upto, positions[lane]);
			replay->positions[lane] = positions[lane];
		}
	}
	if (upto > after)
		walk(replay, after, upto, PG_INT64_MAX);
}

static EltLogWindow *
read_window(EltReplay *replay, int64 upto)
{
	EltReplayRun *run = &replay->run;
	bool		lanes[ELT_MAX_LANES] = {false};
	int			max_changes = replay->options.batch_changes ? replay->options.batch_changes : elt_batch_changes;
	EltLogRequest request = {0};
	EltLogWindow *window;

	if (replay->max_changes > 0)
		max_changes = Min(max_changes, replay->max_changes);
	for (int lane = run->lane_from; lane < run->lane_end; lane++)
		lanes[lane] = true;
	request.raw = elt_pipeline_raw(replay->pipeline);
	request.topic = elt_pipeline_topic(replay->pipeline);
	request.after = replay->read_to;
	request.upto = upto;
	request.lanes = lanes;
	request.nlanes = replay->pipeline->lanes;
	request.max_changes = elt_replay_pace(replay, max_changes);
	request.max_bytes = elt_batch_bytes_kb * (int64) 1024;
	request.one_schema_version = (replay->pipeline->transform == NULL);

	/* of what happened within a transaction, a history shows only the end */
	request.whole_commits = replay->pipeline->history;

	/* newer than the lock on the lanes */
	PushActiveSnapshot(GetTransactionSnapshot());
	window = elt_log_read(&request);
	PopActiveSnapshot();
	return window;
}

/* Says what is to become of each row of the window, and leaves those that are to be applied in it. */
static void
choose(EltReplay *replay, EltWork *work, Fate *fates)
{
	EltReplayRun *run = &replay->run;
	EltLogWindow *window = work->window;
	EltLogRow **rows = window->rows;
	int			nrows = window->nrows;
	EltLogRow **candidates = palloc(Max(nrows, 1) * sizeof(EltLogRow *));
	bool	   *holds = palloc0(Max(nrows, 1) * sizeof(bool));
	int			ncandidates = 0;
	int			candidate = 0;
	int			nchosen = 0;

	for (int i = 0; i < nrows; i++)
	{
		EltLogRow  *row = rows[i];

		if (row->change_id <= run->position ||
			row->change_id > replay->positions[row->key_hash & (replay->pipeline->lanes - 1)] ||
			!elt_replay_range_contains(&run->range, row) ||
			!elt_replay_range_matches_key(&run->range, row->key))
			continue;
		fates[i] = FATE_PASSED;
		candidates[ncandidates++] = row;
	}
	for (int i = 0; i < ncandidates; i++)
		holds[i] = (run->range.filter == NULL);
	if (run->range.filter != NULL && ncandidates > 0)
		elt_runner_filter(replay->pipeline, run->range.filter, window->desc, candidates, ncandidates, holds);

	for (int i = 0; i < nrows; i++)
	{
		bool		partial;
		bool		superseded = is_superseded(replay, rows[i], &partial);

		if (fates[i] == FATE_PASSED && holds[candidate++])
			fates[i] = superseded ? FATE_SUPERSEDED : FATE_CHOSEN;
		if (partial && superseded)
			elt_replay_carry(replay, rows[i]);
		else if (partial && fates[i] == FATE_CHOSEN)
			rows[i] = elt_replay_complete(replay, window->desc, rows[i]);
	}
	if (work->status.unresolved)
		skip_unresolved(replay, work, fates);

	for (int i = 0; i < nrows; i++)
	{
		if (fates[i] == FATE_CHOSEN)
			rows[nchosen++] = rows[i];
	}
	window->nrows = nchosen;
}

/* *partial: the newest change of the key lacks columns that earlier images have. */
static bool
is_superseded(EltReplay *replay, const EltLogRow *row, bool *partial)
{
	bool		later;

	*partial = false;
	if (replay->pipeline->history)
		return false;
	if (row->change_id < replay->truncated_at)
		return true;
	if (replay->forget)
		return false;
	later = elt_newest_has_later(replay->newest, row, partial);
	*partial = *partial && replay->pipeline->transform == NULL;
	return later;
}

/* Changes that are quarantined, and those of their keys, are left alone. */
static void
skip_unresolved(EltReplay *replay, const EltWork *work, Fate *fates)
{
	EltLogWindow *window = work->window;
	EltLogRow **chosen = palloc(Max(window->nrows, 1) * sizeof(EltLogRow *));
	int			nchosen = 0;
	int64	   *unresolved = NULL;
	int			nunresolved = 0;
	EltBlockedKeys *blocked = elt_blocked_keys_create();

	for (int i = 0; i < window->nrows; i++)
	{
		if (fates[i] == FATE_CHOSEN)
			chosen[nchosen++] = window->rows[i];
	}
	if (nchosen == 0)
		return;
	if (replay->pipeline->ordering == 's')
		elt_blocked_keys_load(blocked, replay->pipeline->pipeline_id, chosen, nchosen);
	else
	{
		unresolved = elt_quarantine_unresolved(replay->pipeline->pipeline_id, chosen, nchosen, &nunresolved);
		qsort(unresolved, nunresolved, sizeof(int64), compare_int64);
	}
	for (int i = 0; i < window->nrows; i++)
	{
		if (fates[i] == FATE_CHOSEN &&
			(elt_blocked_keys_contain(blocked, window->rows[i]) ||
			 (nunresolved > 0 &&
			  bsearch(&window->rows[i]->change_id, unresolved, nunresolved, sizeof(int64), compare_int64) != NULL)))
			fates[i] = FATE_SKIPPED;
	}
}

static int
compare_int64(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

static void
forget_rows(EltWork *work)
{
	elt_runner_forget(work->pipeline, work->window->desc, work->window->rows, work->window->nrows);
}

/* Adds up what became of the rows up to "end". */
static void
count(EltReplay *replay, const EltWork *work, EltLogRow **rows, int nrows, const Fate *fates, int64 end)
{
	EltReplayCounts *counts = &replay->run.counts;
	int64		selected = 0;

	replay->tried += work->settled;
	replay->failed += work->quarantined;
	if (!replay->run.dry_run && replay->tried >= BREAKER_CHANGES && replay->failed * 20 > replay->tried)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("replay %lld of pipeline \"%s\" is stopped: %lld of %lld changes failed",
						(long long) replay->run.run_id, replay->pipeline->name,
						(long long) replay->failed, (long long) replay->tried),
				 errdetail("So many do not fail for reasons of their own."),
				 errhint("See elt.quarantine, mend the transform or the target, and CALL elt.replay anew; with dry_run it only counts.")));

	for (int i = 0; i < nrows && rows[i]->change_id <= end; i++)
	{
		if (fates[i] == FATE_NONE)
			continue;
		counts->done++;
		if (fates[i] == FATE_PASSED)
			continue;
		selected++;
		if (fates[i] == FATE_SUPERSEDED)
			counts->superseded++;
		else if (fates[i] == FATE_SKIPPED)
			counts->skipped++;
	}
	counts->selected += selected;
	counts->applied += work->written;
	counts->quarantined += work->quarantined;
	counts->skipped += work->parked;
	replay->paced += selected;
}
