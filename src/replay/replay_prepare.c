/*
 * replay_prepare.c
 *	  How a pipeline can be replayed.
 *
 * An upsert is repeatable by itself, and so is a history, whose versions are
 * told apart by their time (history.c).  An append writes every change, so a
 * replay must take back what was written before: by change_id, where target
 * and transform have such a column; else the target's key tells which row to
 * overwrite, and only the newest change of each key of the source counts.
 * Without either a replay is refused.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "replay/replay.h"
#include "transform/runner.h"
#include "transform/target.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#define PACED_PARTS		4		/* batches per second, at least, with a rate */

static bool lists_all(List *names, List *wanted);
static bool has_index_on(Oid table, AttrNumber attnum);

void
elt_replay_load(EltReplay *replay)
{
	EltPipeline *pipeline = elt_catalog_pipeline(replay->run.pipeline, false);

	if (replay->run.pipeline_id != 0 && pipeline->pipeline_id != replay->run.pipeline_id)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the pipeline of replay %lld was dropped", (long long) replay->run.run_id),
				 errhint("CALL elt.replay to replay the one that has its name now.")));
	if (replay->run.version != 0 && pipeline->version != replay->run.version)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pipeline \"%s\" was changed while it was replayed", pipeline->name),
				 errhint("CALL elt.replay to replay all with what it is now, or elt.resume_replay(%lld) for the rest only.",
						 (long long) replay->run.run_id)));
	elt_options_read(pipeline->options, pipeline->append, &replay->options);
	if (pipeline->append)
		pipeline->key = replay->key;
	pipeline->late = pipeline->history;
	replay->pipeline = pipeline;
}

void
elt_replay_prepare(EltReplay *replay)
{
	EltPipeline *pipeline = replay->pipeline;
	List	   *names = NIL;
	List	   *output;
	Relation	target;
	AttrNumber	attnum;
	MemoryContext old;
	ListCell   *lc;

	elt_target_check(pipeline);
	if (!pipeline->append)
		return;

	if (pipeline->transform == NULL)
	{
		names = elt_schema_columns(pipeline->source_id, pipeline->relation, 0);
		if (names == NIL)
			return;				/* nothing was captured yet */
	}
	pipeline->key = NIL;
	output = elt_runner_output(pipeline, names);
	attnum = get_attnum(pipeline->target, "change_id");
	if (pipeline->transform != NULL && attnum > 0 &&
		get_atttype(pipeline->target, attnum) == INT8OID && lists_all(output, list_make1("change_id")))
	{
		elt_target_require_right(pipeline, ACL_SELECT, "SELECT");
		elt_target_require_right(pipeline, ACL_DELETE, "DELETE");
		if (!has_index_on(pipeline->target, attnum))
			ereport(NOTICE,
					(errmsg("target %s has no index on change_id", elt_target_name(pipeline)),
					 errdetail("Each batch of the replay reads the whole table."),
					 errhint("CREATE INDEX ON %s (change_id)", elt_target_name(pipeline))));
		replay->forget = true;
		return;
	}

	target = table_open(pipeline->target, AccessShareLock);
	foreach(lc, elt_target_unique_keys(target))
	{
		if (pipeline->key == NIL && lists_all(output, lfirst(lc)))
			pipeline->key = lfirst(lc);
	}
	table_close(target, NoLock);
	if (pipeline->key == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a replay of pipeline \"%s\" would append its rows a second time", pipeline->name),
				 errdetail("Nothing in target %s tells which rows a change has written.", elt_target_name(pipeline)),
				 errhint("Add a column change_id (bigint) to the target and to the transform, or a primary key whose columns the pipeline writes.")));
	elt_target_require_right(pipeline, ACL_SELECT, "SELECT");
	elt_target_require_right(pipeline, ACL_UPDATE, "UPDATE");

	old = MemoryContextSwitchTo(replay->context);
	replay->key = NIL;
	foreach(lc, pipeline->key)
		replay->key = lappend(replay->key, pstrdup(lfirst(lc)));
	MemoryContextSwitchTo(old);
}

static bool
lists_all(List *names, List *wanted)
{
	ListCell   *lc,
			   *cell;

	foreach(lc, wanted)
	{
		bool		found = false;

		foreach(cell, names)
			found = found || strcmp(lfirst(cell), lfirst(lc)) == 0;
		if (!found)
			return false;
	}
	return true;
}

static bool
has_index_on(Oid table, AttrNumber attnum)
{
	Relation	relation = table_open(table, AccessShareLock);
	bool		found = false;
	ListCell   *lc;

	foreach(lc, RelationGetIndexList(relation))
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);

		found = found || index->rd_index->indkey.values[0] == attnum;
		index_close(index, NoLock);
	}
	table_close(relation, NoLock);
	return found;
}

/* With a rate, many small batches are better than a few with long waits. */
int
elt_replay_pace(const EltReplay *replay, int max_changes)
{
	if (replay->run.rate == 0)
		return max_changes;
	return Min(max_changes, Max(replay->run.rate / PACED_PARTS, 1));
}
