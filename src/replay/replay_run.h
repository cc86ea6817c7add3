/*
 * replay_run.h
 *	  Runs of replays: what was asked for, and how far each is.
 */
#ifndef ELT_REPLAY_RUN_H
#define ELT_REPLAY_RUN_H

#include "catalog.h"
#include "transform/log.h"

/* Which changes.  All bounds are inclusive. */
typedef struct EltReplayRange
{
	XLogRecPtr	from_lsn;		/* 0: no bound */
	XLogRecPtr	to_lsn;			/* PG_UINT64_MAX: no bound */
	TimestampTz from_time;
	TimestampTz to_time;
	int64		from_change;
	int64		to_change;
	Jsonb	  **keys;			/* sorted; NULL: any */
	int			nkeys;
	char	   *filter;			/* NULL: none */
} EltReplayRange;

typedef enum EltReplayPhase
{
	ELT_REPLAY_SCAN,			/* looks for the newest change of each key */
	ELT_REPLAY_APPLY,
	ELT_REPLAY_QUARANTINE
} EltReplayPhase;

typedef struct EltReplayCounts
{
	int64		done;			/* changes between the bounds that were looked
								 * at */
	int64		selected;		/* of these, those that the filter holds for */
	int64		applied;		/* rows of the target */
	int64		superseded;
	int64		quarantined;
	int64		skipped;		/* they, or their keys, wait in the quarantine */
} EltReplayCounts;

/* A row of elt.replay_runs. */
typedef struct EltReplayRun
{
	int64		run_id;
	int64		pipeline_id;
	char	   *pipeline;
	int			version;
	char		state;			/* 'r' running, 'd' done, 'c' cancelled, 'f'
								 * failed */
	bool		alive;			/* running, and its session is there */
	Jsonb	   *arguments;
	EltReplayRange range;
	int			rate;			/* changes per second, 0: no limit */
	bool		dry_run;
	int64		last_change;	/* of the log, when the run began */
	EltReplayPhase phase;
	int			lane_from;		/* lanes below are done */
	int			lane_end;		/* lanes from here on come later */
	int64		position;		/* of the lanes in between: done up to here;
								 * in phase quarantine a quarantine_id */
	int64		total;			/* changes between the bounds, as far as it is
								 * known */
	EltReplayCounts counts;
} EltReplayRun;

/* Reads arguments, as the row has them; memory is the current context's. */
extern void elt_replay_range_read(EltReplayRun *run);
extern bool elt_replay_range_matches_key(void *range, Datum key);
extern bool elt_replay_range_contains(const EltReplayRange *range, const EltLogRow *row);

/* Makes the row, and forgets runs of the pipeline that are long over. */
extern void elt_replay_run_create(EltReplayRun *run);

/* Raises where there is none. */
extern void elt_replay_run_read(int64 run_id, EltReplayRun *run);

/* Makes this session the one that works on the run. */
extern void elt_replay_run_start(const EltReplayRun *run);

/* Stores how far the run is; false where somebody has cancelled it, or dropped the pipeline. */
extern bool elt_replay_run_save(const EltReplayRun *run);

/* The run is over: "done", "failed" or "cancelled". */
extern void elt_replay_run_end(int64 run_id, const char *state, const char *error);

#endif							/* ELT_REPLAY_RUN_H */
