/*
 * transform_catalog.h
 *	  What the transform engine asks of elt's own tables, and writes there.
 *
 * The rules of catalog.h apply: as the extension's owner, within a transaction.
 */
#ifndef ELT_TRANSFORM_CATALOG_H
#define ELT_TRANSFORM_CATALOG_H

#include "catalog.h"

#define ELT_MAX_LANES	256

/* A pipeline as it stands now, seen after its lanes were leased. */
typedef struct EltPipelineStatus
{
	char		state;			/* as in EltPipeline */
	bool		due;			/* blocked: the next probe is due */
	int			version;
	Oid			raw;
	bool		unresolved;		/* has quarantined or parked changes */
	bool		breaker;		/* blocked by the breaker */
	bool		attempts;		/* has rows in elt.attempts */
} EltPipelineStatus;

extern bool elt_pipeline_status(EltPipeline *pipeline, EltPipelineStatus *status);

/*
 * Transitions of a pipeline's state.  A blocked one is probed after 1 s,
 * doubling to 5 min.  set_running is for what a probe has shown to be well:
 * what somebody has paused meanwhile stays so.  resume is what a user asks
 * for: what was blocked is probed at once.
 */
extern void elt_pipeline_set_blocked(int64 pipeline_id, const ErrorData *error, bool breaker, int probes);
extern void elt_pipeline_set_running(int64 pipeline_id);
extern void elt_pipeline_resume(int64 pipeline_id);
extern void elt_pipeline_probe_now(int64 pipeline_id);

/*
 * Whether a batch with failures may commit: not when the pipeline was blocked
 * since the batch began.  If so it is not blocked before the batch has ended.
 */
extern bool elt_pipeline_hold_unblocked(int64 pipeline_id);

/* Shows why a pipeline does not get on, without a change of its state. */
extern void elt_pipeline_note_error(int64 pipeline_id, const ErrorData *error);

/* Remembers a truncate of the source that was not applied, for the alert. */
extern void elt_pipeline_note_truncate(int64 pipeline_id, TimestampTz at);

/* Stores which table is the pipeline's target now, and what it is called. */
extern void elt_pipeline_set_target(const EltPipeline *pipeline);
extern Oid	elt_pipeline_raw(EltPipeline *pipeline);

/* Topics are named 'message:<topic>' as a pipeline's relation. */
extern const char *elt_pipeline_topic(const EltPipeline *pipeline);

/*
 * elt_checkpoint_lease
 *		Leases free lanes, those furthest behind first; returns how many: none
 *		while somebody waits in elt_checkpoint_lock.
 *
 * elt_checkpoint_lock
 *		Locks the lanes that are wanted until the end of the transaction, with
 *		"wait" all of them, else those that are free; "held" says which.
 *		Returns the highest of their positions, -1 where there is none.
 *
 * elt_checkpoint_shut / elt_checkpoint_take_free / elt_checkpoint_reopen
 *		For who waits for the lanes, but not forever: while shut, nobody leases
 *		any.  take_free locks those that are free until the end of the
 *		transaction, and returns how many are held.
 */
extern int	elt_checkpoint_lease(int64 pipeline_id, int max_lanes, int *lanes, int64 *positions);
extern int64 elt_checkpoint_lock(int64 pipeline_id, const bool *wanted, bool wait, bool *held, int64 *positions);
extern void elt_checkpoint_shut(int64 pipeline_id);
extern int	elt_checkpoint_take_free(int64 pipeline_id);
extern void elt_checkpoint_reopen(int64 pipeline_id);
extern void elt_checkpoint_settle(int64 pipeline_id, const int *lanes, int nlanes, int64 position,
								  XLogRecPtr settled_lsn, int64 changes_read, int64 rows_written);
extern void elt_checkpoint_create(int64 pipeline_id, int lanes);
extern int	elt_checkpoint_positions(int64 pipeline_id, int64 *positions);

/* "transient", "dependency", "data" or "systemic" */
extern char *elt_error_class(const EltPipeline *pipeline, int sqlerrcode);

/* Names of a relation's columns at a schema version (0: the newest); NIL where it is not known. */
extern List *elt_schema_columns(int64 source_id, const char *relation, int version);

#endif							/* ELT_TRANSFORM_CATALOG_H */
