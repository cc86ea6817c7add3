/*
 * group_window.c
 *	  What a group of pipelines applies next: a window of the log of each, merged
 *	  in the order of the source and cut where a source transaction ends.
 *
 * All windows are read under one snapshot, and the log's writer commits in the
 * order of change_id; so up to the lowest change_id at which a window ends,
 * all changes of the source are known.  Windows end where they are full, at a
 * truncate, at copied rows, at another schema version and at the horizon of a
 * copy; these ends are in change_ids, which are common to the relations of a
 * source.  The last source transaction is left out if there may be more of it,
 * unless it is the only one.
 *
 * See group.c for what happens to it.
 */
#include "postgres.h"

#include "capture/change.h"
#include "guc.h"
#include "transform/attempt.h"
#include "transform/breaker.h"
#include "transform/collapse.h"
#include "transform/group.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

static void read_window(EltGroup *group, EltGroupMember *member);
static bool has_more(const EltGroupMember *member, XLogRecPtr commit_lsn);

/* All under one snapshot: what one of them sees of a source transaction, all see. */
void
elt_group_read(EltGroup *group)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	for (int i = 0; i < group->nmembers; i++)
		read_window(group, &group->members[i]);
	PopActiveSnapshot();
}

static void
read_window(EltGroup *group, EltGroupMember *member)
{
	EltWork    *work = &member->work;
	bool		lanes[ELT_MAX_LANES];
	EltLogRequest request = {0};
	int64		max_changes = work->options.batch_changes ? work->options.batch_changes : elt_batch_changes;

	if (work->pipeline->batch_size > 0)
		max_changes = Min(max_changes, work->pipeline->batch_size);
	if (group->max_changes > 0)
		max_changes = Min(max_changes, group->max_changes);
	if (elt_breaker_is_probe(work))
		max_changes = Min(max_changes, ELT_BREAKER_PROBE_CHANGES);
	memset(lanes, true, sizeof(lanes));
	request.raw = work->status.raw;
	request.topic = elt_pipeline_topic(work->pipeline);
	request.after = member->position;
	request.upto = PG_INT64_MAX;
	request.lanes = lanes;
	request.nlanes = work->pipeline->lanes;
	request.max_changes = (int) max_changes;
	request.max_bytes = Max(elt_batch_bytes_kb / group->nmembers, 64) * (int64) 1024;
	request.whole_commits = true;
	member->window = elt_log_read(&request);
	member->next = 0;
	member->horizon = elt_log_horizon(work->status.raw);
	work->window = member->window;

	/* those of the pass before are gone */
	memset(work->last_passed, 0, sizeof(work->last_passed));
	work->class = NULL;
	work->failures.desc = NULL;
	if (work->pipeline->history)
		elt_collapse_transactions(member->window->desc, member->window->rows, member->window->nrows);
}

/* The change_id up to which all windows tell all, and can be applied in the same way. */
int64
elt_group_limit(EltGroup *group)
{
	int64		limit = PG_INT64_MAX;

	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltLogWindow *window = member->window;

		if (member->horizon < PG_INT64_MAX)
			limit = Min(limit, member->horizon - 1);
		if (window->barrier != NULL)
			limit = Min(limit, window->barrier->change_id - 1);
		else if (!window->at_end)
			limit = Min(limit, window->position);
		for (int row = 0; row < window->nrows; row++)
		{
			bool		differs = member->work.pipeline->transform == NULL &&
			window->rows[row]->schema_version != window->rows[0]->schema_version;

			if (window->rows[row]->op != ELT_OP_SNAPSHOT && !differs)
				continue;
			limit = Min(limit, window->rows[row]->change_id - 1);
			break;
		}
	}
	return limit;
}

/* The group's items: all changes up to the limit, in the order of the source. */
void
elt_group_merge(EltGroup *group, int64 limit)
{
	Size		size = 1;

	for (int i = 0; i < group->nmembers; i++)
	{
		size += group->members[i].window->nrows;
		group->members[i].merged = 0;
	}
	group->items = MemoryContextAllocHuge(CurrentMemoryContext, size * sizeof(EltGroupItem));
	group->nitems = 0;
	for (;;)
	{
		EltGroupMember *first = NULL;
		EltLogRow  *row = NULL;

		for (int i = 0; i < group->nmembers; i++)
		{
			EltLogRow  *next = elt_group_next_row(&group->members[i]);

			if (next != NULL && next->op != ELT_OP_TRUNCATE && next->change_id <= limit &&
				(row == NULL || next->change_id < row->change_id))
			{
				first = &group->members[i];
				row = next;
			}
		}
		if (first == NULL)
			break;
		first->merged++;
		group->items[group->nitems].member = first;
		group->items[group->nitems++].row = row;
	}
}

/* What of the member's comes behind the items; NULL: not known, or nothing. */
EltLogRow *
elt_group_next_row(const EltGroupMember *member)
{
	EltLogWindow *window = member->window;

	return member->merged < window->nrows ? window->rows[member->merged] : window->barrier;
}

/*
 * Leaves out the last source transaction where there is more of it behind the
 * items.  If it is the only one it stays, and is returned: the step has to go
 * on with it.
 */
XLogRecPtr
elt_group_cut(EltGroup *group)
{
	XLogRecPtr	last = group->items[group->nitems - 1].row->commit_lsn;
	int			start = group->nitems;
	bool		complete = true;

	for (int i = 0; i < group->nmembers; i++)
		complete = complete && !has_more(&group->members[i], last);
	if (complete)
		return InvalidXLogRecPtr;
	while (start > 0 && group->items[start - 1].row->commit_lsn == last)
		start--;
	if (start == 0)
		return last;
	group->nitems = start;
	return InvalidXLogRecPtr;
}

/*
 * Where a member has changes that ended their worker or overran the time
 * limit, leaves out what elt.attempts does not want to be tried together.  True
 * where even the first source transaction is too much: then it is the rest,
 * and is to be applied part by part.
 */
bool
elt_group_heed_attempts(EltGroup *group)
{
	int64		limit = PG_INT64_MAX;
	int			end = 0;

	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltLogRequest request = {0};

		if (!member->work.status.attempts || group->announced || member->merged == 0)
			continue;
		request.after = member->window->rows[0]->change_id - 1;
		request.upto = PG_INT64_MAX;
		request.max_changes = member->merged;
		elt_attempt_limit(&member->work, &request);
		limit = Min(limit, request.upto);
		if (request.max_changes < member->merged)
			limit = Min(limit, member->window->rows[request.max_changes]->change_id - 1);
		if (member->work.doomed != 0)
			limit = 0;
		member->work.doomed = 0;
	}
	while (end < group->nitems && group->items[end].row->change_id <= limit)
		end++;
	if (end == group->nitems)
		return false;
	while (end > 0 && group->items[end - 1].row->commit_lsn == group->items[end].row->commit_lsn)
		end--;
	if (end > 0)
	{
		group->nitems = end;
		group->open_commit = InvalidXLogRecPtr;
		return false;
	}
	for (end = 1; end < group->nitems && group->items[end].row->commit_lsn == group->items[0].row->commit_lsn;)
		end++;
	if (end < group->nitems)
		group->open_commit = InvalidXLogRecPtr;
	group->nitems = end;
	return true;
}

/* Whether changes of this source transaction may follow the member's items. */
static bool
has_more(const EltGroupMember *member, XLogRecPtr commit_lsn)
{
	EltLogWindow *window = member->window;
	EltLogRow  *next = elt_group_next_row(member);

	if (next != NULL)
		return next->commit_lsn == commit_lsn && next->op != ELT_OP_SNAPSHOT;
	return !window->at_end && window->settled_lsn == InvalidXLogRecPtr &&
		window->nrows > 0 && window->rows[window->nrows - 1]->commit_lsn == commit_lsn;
}

/*
 * Where there are no items: the member whose copied rows or truncate come
 * next, NULL where there is none.  Copied rows of parents come before those of
 * children.
 */
EltGroupMember *
elt_group_first_special(EltGroup *group)
{
	EltGroupMember *first = NULL;

	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];
		EltLogRow  *row = elt_group_next_row(member);

		if (row != NULL && row->change_id < member->horizon &&
			(first == NULL || row->change_id < elt_group_next_row(first)->change_id))
			first = member;
	}
	if (first == NULL || elt_group_next_row(first)->op != ELT_OP_SNAPSHOT)
		return first;
	for (int i = 0; i < group->nmembers; i++)
	{
		EltLogRow  *row = elt_group_next_row(&group->members[i]);

		if (row != NULL && row->op == ELT_OP_SNAPSHOT)
			return &group->members[i];
	}
	return first;
}

/* The member's copied rows become the items. */
void
elt_group_take_copied(EltGroup *group, EltGroupMember *member)
{
	EltLogWindow *window = member->window;

	while (member->merged < window->nrows && window->rows[member->merged]->op == ELT_OP_SNAPSHOT &&
		   (member->work.pipeline->transform != NULL ||
			window->rows[member->merged]->schema_version == window->rows[0]->schema_version))
	{
		group->items[group->nitems].member = member;
		group->items[group->nitems++].row = window->rows[member->merged++];
	}
}
