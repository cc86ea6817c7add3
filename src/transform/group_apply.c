/*
 * group_apply.c
 *	  Applies the changes of a group of pipelines.
 *
 * All of them are tried at once, in one subtransaction: first the deletes,
 * children before their parents, then what is written, parents before their
 * children.  Where that fails, the change that was at work is the suspect, as
 * in isolate.c: the source transactions before its own are applied, then its
 * own alone.  That one is tried in two orders, since a child may move away
 * from a parent that is deleted: deletes first, then writes first.  If both
 * fail, its changes are applied one by one in the order of the source, which
 * has seen them without an error, and what fails is quarantined by isolate.c.
 *
 * So no change is quarantined for the order in which a group applies it, but
 * where foreign keys of the targets refer to one another in a circle, or the
 * source has checked its own only at the end.  Then the change waits, and is
 * applied once what it refers to is there.
 *
 * Where it is not known who is to blame, the source transactions are halved.
 */
#include "postgres.h"

#include "control/worker.h"
#include "replication/origin.h"
#include "transform/attempt.h"
#include "transform/group.h"
#include "transform/runner.h"

#define MAX_SUBTRANSACTIONS	60

static bool try_range(EltGroup *group, bool writes_first);
static bool stops(EltGroup *group);
static void apply_range(EltWork *work);
static void apply_rows(EltGroupMember *member, const EltIsolateParts *parts, bool deletes);
static void pass_range(EltGroup *group);
static int	show_range(EltGroup *group, EltGroupMember *member);
static bool apply_in_order(EltGroup *group);
static int	heed_attempts(EltWork *work);
static void advance(EltGroupMember *member, int nrows);
static int	commit_start(const EltGroup *group, int item);
static int	commit_end(const EltGroup *group, int item);
static int	suspect_item(const EltGroup *group);

int
elt_group_apply(EltGroup *group)
{
	int			next = 0;		/* where the range after this one ends; 0: at
								 * the end */

	group->low = 0;
	group->high = group->nitems;
	if (group->careful)
		return apply_in_order(group) ? group->nitems : -1;
	while (group->low < group->nitems)
	{
		int			first_end = commit_end(group, group->low);

		if (group->subtransactions >= MAX_SUBTRANSACTIONS && group->low > 0)
			return group->low;
		if (!try_range(group, false))
		{
			if (stops(group))
				return -1;
			if (group->high > first_end)
			{
				int			suspect = suspect_item(group);

				if (suspect >= first_end)
				{
					next = commit_end(group, suspect);
					group->high = commit_start(group, suspect);
				}
				else if (suspect >= 0)
					group->high = first_end;
				else
					group->high = Max(commit_start(group, (group->low + group->high) / 2), first_end);
				continue;
			}
			if (!try_range(group, true) && (stops(group) || !apply_in_order(group)))
				return -1;
		}
		group->low = group->high;
		group->high = next > group->low ? next : group->nitems;
		next = 0;
	}
	return group->nitems;
}

/* True where what failed is not for single changes. */
static bool
stops(EltGroup *group)
{
	EltWork    *work = &group->at->work;

	if (!elt_isolate_stops(work, group->error))
		return false;
	if (strcmp(work->error_class, "overrun") != 0)
		return true;
	work->error = NULL;			/* fewer may be in time */
	return false;
}

/* ---- at once ---- */

/* True where the range was applied. */
static bool
try_range(EltGroup *group, bool writes_first)
{
	group->parts = palloc(group->nmembers * sizeof(EltIsolateParts *));
	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];

		(void) show_range(group, member);
		group->parts[i] = elt_isolate_divide(&member->work);
		member->tried_written = 0;
	}
	group->writes_first = writes_first;
	group->at = &group->members[0];
	group->error = elt_isolate_try(&group->members[0].work, apply_range);
	if (group->error != NULL)
		return false;
	group->subtransactions++;
	pass_range(group);
	return true;
}

/* The member's rows of the range, as a window; returns how many. */
static int
show_range(EltGroup *group, EltGroupMember *member)
{
	EltLogWindow *slice = palloc0(sizeof(EltLogWindow));

	*slice = *member->window;
	slice->rows = member->window->rows + member->next;
	slice->nrows = 0;
	for (int i = group->low; i < group->high; i++)
		slice->nrows += (group->items[i].member == member);
	if (slice->nrows > 0)
		slice->position = slice->rows[slice->nrows - 1]->change_id;
	member->work.window = slice;
	member->work.settled = 0;
	return slice->nrows;
}

static void
apply_range(EltWork *work)
{
	EltGroup   *group = ((EltGroupMember *) work)->group;

	for (int step = 0; step < 2; step++)
	{
		bool		deletes = (step == 0) != group->writes_first;

		for (int i = 0; i < group->nmembers; i++)
		{
			int			at = deletes ? group->nmembers - 1 - i : i;

			apply_rows(&group->members[at], group->parts[at], deletes);
		}
	}
}

static void
apply_rows(EltGroupMember *member, const EltIsolateParts *part, bool deletes)
{
	EltWork    *work = &member->work;
	EltGroup   *group = member->group;
	int			nrows = deletes ? part->ndeletes : part->nwrites;

	if (nrows == 0)
		return;
	group->at = member;
	work->tried = nrows;
	elt_worker_mark_writes(work->options.unmarked_output ? InvalidRepOriginId : DoNotReplicateId);
	member->tried_written += elt_runner_apply(work->pipeline, work->window->desc,
											  deletes ? part->deletes : part->writes, nrows,
											  !deletes && part->in_order);
}

static void
pass_range(EltGroup *group)
{
	for (int i = 0; i < group->nmembers; i++)
	{
		EltGroupMember *member = &group->members[i];

		member->work.written += member->tried_written;
		elt_isolate_passed(&member->work, group->parts[i]);
		advance(member, member->work.window->nrows);
	}
}

/* So many more of the member's rows are done with. */
static void
advance(EltGroupMember *member, int nrows)
{
	if (nrows == 0)
		return;
	member->next += nrows;
	member->read += nrows;
	member->position = member->window->rows[member->next - 1]->change_id;
	member->settled_lsn = member->window->rows[member->next - 1]->commit_lsn;
}

/* ---- one by one ---- */

/* In the order of the source; what fails is quarantined. */
static bool
apply_in_order(EltGroup *group)
{
	int			high = group->high;

	while (group->low < high)
	{
		EltGroupMember *member = group->items[group->low].member;
		EltWork    *work = &member->work;
		int			nrows;

		group->high = group->low + 1;
		while (group->high < high && group->items[group->high].member == member)
			group->high++;
		nrows = show_range(group, member);
		if (work->status.attempts)
			nrows = heed_attempts(work);
		group->at = member;
		work->subtransactions = 0;
		if (!elt_isolate_apply(work))
			return false;
		group->subtransactions += work->subtransactions;

		/* it leaves the rest to another turn where that is much */
		work->status.unresolved |= work->quarantined > 0;
		nrows = Min(nrows, work->settled);
		advance(member, nrows);
		group->low += nrows;
	}
	group->high = high;
	return true;
}

/* Where the next change has ended its worker before, or took too long, the window becomes shorter. */
static int
heed_attempts(EltWork *work)
{
	EltLogWindow *window = work->window;
	EltLogRequest request = {0};

	request.after = window->rows[0]->change_id - 1;
	request.upto = PG_INT64_MAX;
	request.max_changes = window->nrows;
	work->doomed = 0;
	elt_attempt_limit(work, &request);
	window->nrows = request.max_changes;
	while (window->nrows > 1 && window->rows[window->nrows - 1]->change_id > request.upto)
		window->nrows--;
	return window->nrows;
}

/* ---- source transactions ---- */

static int
commit_start(const EltGroup *group, int item)
{
	while (item > group->low && group->items[item - 1].row->commit_lsn == group->items[item].row->commit_lsn)
		item--;
	return item;
}

static int
commit_end(const EltGroup *group, int item)
{
	XLogRecPtr	commit_lsn = group->items[item].row->commit_lsn;

	while (item < group->nitems && group->items[item].row->commit_lsn == commit_lsn)
		item++;
	return item;
}

/* The item that was at work when the range failed; -1: not known. */
static int
suspect_item(const EltGroup *group)
{
	int64		change_id = elt_runner_last_change();

	for (int i = group->low; i < group->high; i++)
	{
		if (group->items[i].member == group->at && group->items[i].row->change_id == change_id)
			return i;
	}
	return -1;
}
