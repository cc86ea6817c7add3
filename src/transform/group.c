/*
 * group.c
 *	  A step of a group of pipelines: all of them settle in one transaction.
 *
 * Pipelines with the same option "group" (of one owner and one source) go
 * through the log together.  A step reads a window of each, cuts them all at
 * the last end of a source transaction that every window reaches, applies
 * what is before it (group_apply.c tells in which order), and moves all
 * checkpoints: so nobody sees half of what a source transaction did to the
 * tables of the group, and foreign keys between the targets hold.  A source
 * transaction that is larger than a window is applied window by window, in
 * the same transaction here.
 *
 * Each member has a position of its own.  One that is behind, since it joined
 * later or went apart, catches up before the others go on.
 *
 * What is no part of a source transaction has a step of its own:
 *
 *	copied rows		when all that came before them is settled; one member
 *					after the other, parents first, whatever their change_ids.
 *					While a table of the group is being copied, no member goes
 *					beyond its horizon
 *	a truncate		is applied in its place among the changes; of several by
 *					one statement, children first
 *
 * A group is worked by one worker at a time, which leases all lanes of all
 * members, or none.  A member that is paused or blocked holds the others.
 *
 * A change that ended its worker, or overran the time limit, is looked for
 * within the group: source transactions near it are applied one at a time,
 * change by change as attempt.c asks for.  Members go apart, each in batches
 * of its own (batch.c), where lanes of one of them stand at different places,
 * and while a change is looked for that crashed the server: that takes a
 * transaction for each window, which tells what the next one tries.
 *
 * Locking: as in batch.c: lanes without waiting, then the targets, then rows
 * of elt.pipelines.
 */
#include "postgres.h"

#include "access/xact.h"
#include "capture/change.h"
#include "clock.h"
#include "control/stats.h"
#include "control/worker.h"
#include "pgstat.h"
#include "replication/origin.h"
#include "transform/attempt.h"
#include "transform/batch.h"
#include "transform/breaker.h"
#include "transform/give_up.h"
#include "transform/group.h"
#include "transform/runner.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

/* See attempt.c. */
typedef struct Announcement
{
	int64		pipeline_id;
	int64		first_change;
	int64		last_change;
} Announcement;

/* A step on its way. */
typedef struct Step
{
	EltGroup	group;			/* must be first */
	List	   *pipelines;
	bool		unannounced;	/* what it found is to be announced first */
	List	   *announcements;
	bool		failed;			/* group.at says why */
	bool		retry;			/* to be rolled back, and run again */
	EltGroupMember *apart;		/* to be worked alone */
	bool		drained;
	bool		more;
	bool		rolled_back;
	MemoryContext context;
	MemoryContext pass_context;
} Step;

static EltBatchEnd run(Step *step);
static bool prepare(Step *step);
static bool hold_targets(Step *step);
static void run_passes(Step *step);
static bool apply_truncates(Step *step, XLogRecPtr commit_lsn);
static void truncate_target(EltWork *work);
static bool pass_over(Step *step, int64 upto);
static bool announce(Step *step);
static bool may_commit(Step *step);
static void settle(Step *step);
static void roll_back(void *arg);
static void report(Step *step, EltBatchCounts *counts);

EltBatchEnd
elt_group_run(List *pipelines, int64 max_changes, EltBatchCounts *counts, bool own_transaction)
{
	volatile EltBatchEnd end = ELT_BATCH_DONE;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "elt group", ALLOCSET_DEFAULT_SIZES);
	uint16		origin = elt_worker_mark_writes(DoNotReplicateId);
	EltPipeline *first = linitial(pipelines);
	EltPipeline *apart;
	Step	   *step;

	if (own_transaction)
		elt_worker_begin_work(first->name);
	MemoryContextSwitchTo(context);
	step = palloc0(sizeof(Step));
	step->group.own_transaction = own_transaction;
	step->pipelines = pipelines;
	step->group.max_changes = max_changes;
	step->context = context;
	step->pass_context = AllocSetContextCreate(context, "elt group pass", ALLOCSET_DEFAULT_SIZES);

	elt_batch_set_at_work(true);
	PG_TRY();
	{
		end = run(step);
	}
	PG_FINALLY();
	{
		elt_batch_set_at_work(false);
		elt_worker_mark_writes(origin);
	}
	PG_END_TRY();

	report(step, counts);
	apart = step->apart ? step->apart->work.pipeline : NULL;
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	if (apart != NULL)
	{
		int64		read = counts->read;

		end = elt_batch_run(apart, apart->lanes, max_changes, counts, own_transaction);
		counts->drained = false;
		if (end == ELT_BATCH_DONE && counts->read > read)
			end = ELT_BATCH_MORE;
	}
	return end;
}

/* Runs the step to the end of its transaction, if that is its own. */
static EltBatchEnd
run(Step *step)
{
	EltGroup   *group = &step->group;
	EltPipeline *first = linitial(step->pipelines);

	if (prepare(step) && step->apart == NULL && hold_targets(step))
	{
		run_passes(step);
		if (announce(step))
		{
			elt_worker_commit();
			elt_worker_begin_work(first->name);
			MemoryContextSwitchTo(step->context);
			step->group.announced = true;
			return run(step);
		}
		if (!step->failed && !step->retry && step->apart == NULL && may_commit(step))
			settle(step);
	}
	if (step->failed)
		return elt_give_up(&group->at->work, roll_back, step);
	if (step->retry)
	{
		roll_back(step);
		return ELT_BATCH_RETRY;
	}
	if (group->own_transaction)
	{
		for (int i = 0; i < group->nmembers; i++)
		{
			if (group->members[i].work.options.unmarked_output)
				elt_worker_mark_writes(InvalidRepOriginId);
		}
		elt_worker_commit();
		MemoryContextSwitchTo(step->context);
	}
	return step->more && !step->drained ? ELT_BATCH_MORE : ELT_BATCH_DONE;
}

/* ---- lease ---- */

/* True where all lanes of all members are leased, and may be worked on. */
static bool
prepare(Step *step)
{
	EltGroup   *group = &step->group;
	bool		ready = true;
	ListCell   *lc;

	group->nmembers = list_length(step->pipelines);
	group->members = palloc0(group->nmembers * sizeof(EltGroupMember));
	group->subtransactions = 0;
	step->apart = NULL;
	group->open_commit = InvalidXLogRecPtr;
	foreach(lc, step->pipelines)
	{
		EltGroupMember *member = &group->members[foreach_current_index(lc)];
		EltPipeline *pipeline = lfirst(lc);
		int64		positions[ELT_MAX_LANES];

		member->work.pipeline = pipeline;
		member->work.own_transaction = group->own_transaction;
		member->group = group;
		elt_options_read(pipeline->options, pipeline->append, &member->work.options);
		if (!ready || elt_checkpoint_lease(pipeline->pipeline_id, pipeline->lanes, member->lanes, positions) < pipeline->lanes)
		{
			ready = false;
			continue;
		}
		member->settled = positions[0];
		member->position = positions[0];
		if (positions[pipeline->lanes - 1] != positions[0])
			step->apart = member;
	}

	/* the leases came first: what others committed for them is seen from here */
	for (int i = 0; ready && i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltWork    *work = &member->work;

		if (!elt_pipeline_status(work->pipeline, &work->status) ||
			work->status.version != work->pipeline->version ||
			(group->own_transaction && work->status.state == 'p') ||
			(group->own_transaction && work->status.state == 'b' && !work->status.due))
			ready = false;
		else if (work->status.attempts && !step->group.announced && group->own_transaction && elt_attempt_on_probation())
			step->apart = member;
	}
	if (!ready)
		step->apart = NULL;
	return ready;
}

static bool
hold_targets(Step *step)
{
	EltGroup   *group = &step->group;

	for (int i = 0; i < group->nmembers; i++)
	{
		EltWork    *work = &group->members[i].work;
		ErrorData  *error = elt_isolate_try(work, elt_batch_hold_target);

		if (error != NULL)
		{
			elt_isolate_give_up(work, error);
			group->at = &group->members[i];
			step->failed = true;
			return false;
		}
		if (work->target_changed)
			elt_pipeline_set_target(work->pipeline);
	}
	elt_group_sort(group);
	return true;
}

/* ---- passes ---- */

/*
 * Mostly one pass; more where a source transaction is larger than the windows,
 * or has truncates.
 */
static void
run_passes(Step *step)
{
	EltGroup   *group = &step->group;
	bool		announces = group->own_transaction && !step->group.announced && elt_attempt_on_probation();

	for (bool first = true;; first = false)
	{
		int64		limit;
		EltGroupMember *special;
		EltLogRow  *next;
		int			done;

		CHECK_FOR_INTERRUPTS();
		MemoryContextSwitchTo(step->context);
		MemoryContextReset(step->pass_context);
		MemoryContextSwitchTo(step->pass_context);
		elt_group_read(group);
		limit = elt_group_limit(group);
		elt_group_merge(group, limit);
		special = group->nitems == 0 ? elt_group_first_special(group) : NULL;
		next = group->nitems > 0 ? group->items[0].row : special ? elt_group_next_row(special) : NULL;
		if (group->open_commit != InvalidXLogRecPtr &&
			(next == NULL || next->commit_lsn != group->open_commit || next->op == ELT_OP_SNAPSHOT))
			break;				/* it was complete */

		if (next == NULL)
		{
			step->more = pass_over(step, limit);
			step->drained = (limit == PG_INT64_MAX);
			break;
		}
		step->more = true;
		if (next->op == ELT_OP_TRUNCATE)
		{
			/* what follows it cannot be announced without it */
			if (announces && first)
			{
				step->apart = special;
				break;
			}
			group->open_commit = next->commit_lsn;
			step->failed = !apply_truncates(step, group->open_commit);
		}
		else
		{
			if (special != NULL)
				elt_group_take_copied(group, special);
			else
				group->open_commit = elt_group_cut(group);
			group->careful = elt_group_heed_attempts(group);
			if (announces && first)
			{
				step->unannounced = true;
				break;
			}
			if (step->group.announced && !elt_attempt_hold_trial(&group->members[0].work))
			{
				step->retry = true;
				break;
			}
			done = elt_group_apply(group);
			step->failed = (done < 0);
			if (done < group->nitems)
				group->open_commit = InvalidXLogRecPtr;
			else if (special == NULL)
				(void) pass_over(step, group->items[done - 1].row->change_id);
		}
		if (step->failed || group->open_commit == InvalidXLogRecPtr)
			break;
	}
	MemoryContextSwitchTo(step->context);
}

/* The truncates of a source transaction that are next: children first, as it may have named them in any order. */
static bool
apply_truncates(Step *step, XLogRecPtr commit_lsn)
{
	EltGroup   *group = &step->group;

	for (int i = group->nmembers - 1; i >= 0; i--)
	{
		EltGroupMember *member = &group->members[i];
		EltWork    *work = &member->work;
		EltLogRow  *row = elt_group_next_row(member);

		if (row == NULL || row->op != ELT_OP_TRUNCATE || row->commit_lsn != commit_lsn)
			continue;
		group->at = member;
		if (work->options.apply_truncate)
		{
			ErrorData  *error = elt_isolate_try(work, truncate_target);

			if (error != NULL)
			{
				elt_isolate_give_up(work, error);
				return false;
			}
			if (work->pipeline->ordering != 'u')
				work->superseded += elt_quarantine_supersede_before(work->pipeline, row->change_id);
		}
		else if (work->options.alert_truncate)
			elt_pipeline_note_truncate(work->pipeline->pipeline_id, row->commit_ts);
		member->read++;
		member->position = row->change_id;
	}
	return true;
}

static void
truncate_target(EltWork *work)
{
	elt_runner_truncate(work->pipeline, work->window->barrier->commit_ts);
}

/*
 * All changes of a member up to the end of its window, but not behind "upto",
 * are done with; so is what is of other topics.  True where that is news.
 */
static bool
pass_over(Step *step, int64 upto)
{
	bool		moved = false;

	for (int i = 0; i < step->group.nmembers; i++)
	{
		EltGroupMember *member = &step->group.members[i];
		int64		position = Min(member->window->position, upto);

		if (position <= member->position)
			continue;
		member->position = position;
		moved = true;
	}
	return moved;
}

/* ---- settle or give up ---- */

/*
 * Right after the start of the server: writes down what is about to be tried.
 * True where that is to be committed first.
 */
static bool
announce(Step *step)
{
	EltGroup   *group = &step->group;

	if (!step->unannounced)
		return false;
	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		Announcement *announcement;

		if (member->merged == 0)
			continue;
		member->window->nrows = member->merged;
		elt_attempt_announce(&member->work);
		announcement = MemoryContextAlloc(step->context, sizeof(Announcement));
		announcement->pipeline_id = member->work.pipeline->pipeline_id;
		announcement->first_change = member->window->rows[0]->change_id;
		announcement->last_change = member->window->rows[member->merged - 1]->change_id;
		step->announcements = lappend(step->announcements, announcement);
	}
	step->unannounced = false;
	return true;
}

/* As in batch.c, for each member. */
static bool
may_commit(Step *step)
{
	EltGroup   *group = &step->group;

	for (int i = 0; i < group->nmembers && group->own_transaction; i++)
	{
		EltWork    *work = &group->members[i].work;

		if (work->quarantined == 0)
			continue;
		if (elt_breaker_trips(work, true))
		{
			group->at = &group->members[i];
			step->failed = true;
			return false;
		}
		if (work->status.state != 'b' && !elt_pipeline_hold_unblocked(work->pipeline->pipeline_id))
		{
			step->retry = true;
			return false;
		}
	}
	return true;
}

static void
settle(Step *step)
{
	EltGroup   *group = &step->group;

	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltWork    *work = &member->work;
		int64		pipeline_id = work->pipeline->pipeline_id;

		if (member->position > member->settled)
			elt_checkpoint_settle(pipeline_id, member->lanes, work->pipeline->lanes, member->position,
								  member->settled_lsn, member->read, work->written);
		if (work->status.attempts || step->group.announced)
			elt_attempt_forget(pipeline_id);
		if (work->status.state != 'b' || (work->status.breaker && !group->own_transaction) ||
			(!step->drained && member->read <= work->parked))
			continue;
		elt_pipeline_set_running(pipeline_id);
		if (work->status.breaker)
			elt_breaker_release(pipeline_id);
		member->unblocked = true;
	}
}

static void
roll_back(void *arg)
{
	Step	   *step = arg;
	EltGroup   *group = &step->group;

	AbortCurrentTransaction();
	pgstat_report_activity(STATE_IDLE, NULL);
	MemoryContextSwitchTo(step->context);
	step->rolled_back = true;
	if (!step->group.announced)
		return;
	elt_worker_begin_work(group->members[0].work.pipeline->name);
	MemoryContextSwitchTo(step->context);
	for (ListCell *lc = list_head(step->announcements); lc != NULL; lc = lnext(step->announcements, lc))
	{
		Announcement *announcement = lfirst(lc);

		elt_attempt_withdraw(announcement->pipeline_id, announcement->first_change, announcement->last_change);
	}
	elt_worker_commit();
	MemoryContextSwitchTo(step->context);
}

/* After the end of the transaction. */
static void
report(Step *step, EltBatchCounts *counts)
{
	EltGroup   *group = &step->group;

	counts->drained = false;
	for (int i = 0; i < group->nmembers && !step->rolled_back; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltWork    *work = &member->work;
		int64		pipeline_id = work->pipeline->pipeline_id;

		counts->read += member->read;
		counts->written += work->written;
		counts->quarantined += work->quarantined;
		counts->parked += work->parked;
		counts->superseded += work->superseded;
		counts->position = Max(counts->position, member->position);
		if (!group->own_transaction)
			continue;
		work->pipeline->retries = 0;
		if (member->read > 0)
			elt_stats_note_outcomes(pipeline_id, member->read, work->quarantined);
		if (member->unblocked && work->status.breaker)
		{
			elt_stats_forget_outcomes(pipeline_id);
			elt_stats_set_retry_at(pipeline_id, elt_clock_now());
		}
		if (member->next > 0)
			elt_batch_note_latency(pipeline_id, member->window->rows, member->next);
	}
	counts->drained = step->drained && !step->rolled_back;
}
