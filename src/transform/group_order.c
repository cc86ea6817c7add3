/*
 * group_order.c
 *	  Who is in a group of pipelines, and in which order their targets are
 *	  written to.
 *
 * A target comes behind those that its foreign keys refer to.  Where they
 * refer to one another in a circle, no order serves all of them: what fails
 * for that waits in quarantine, and is tried again when what it refers to is
 * there.
 */
#include "postgres.h"

#include "access/table.h"
#include "transform/group.h"
#include "utils/acl.h"
#include "utils/rel.h"
#include "utils/relcache.h"

static const char *name_of(const EltPipeline *pipeline);
static int	compare_ranks(const void *a, const void *b);

/* ---- who ---- */

List *
elt_group_of(const EltPipeline *pipeline)
{
	List	   *members = NIL;
	ListCell   *lc;

	if (name_of(pipeline) == NULL)
		return NIL;
	foreach(lc, elt_catalog_pipelines())
	{
		if (elt_group_is_same(pipeline, lfirst(lc)))
			members = lappend(members, lfirst(lc));
	}
	return members;
}

bool
elt_group_is_same(const EltPipeline *a, const EltPipeline *b)
{
	const char *left = name_of(a);
	const char *right = name_of(b);

	return left != NULL && right != NULL && strcmp(left, right) == 0 &&
		a->source_id == b->source_id && a->owner == b->owner;
}

void
elt_group_check(const EltPipeline *pipeline)
{
	const char *name = name_of(pipeline);
	ListCell   *lc;

	if (name == NULL)
		return;
	foreach(lc, elt_catalog_pipelines())
	{
		EltPipeline *other = lfirst(lc);
		const char *others = name_of(other);

		if (others == NULL || strcmp(name, others) != 0 || other->pipeline_id == pipeline->pipeline_id ||
			elt_group_is_same(pipeline, other))
			continue;
		if (other->source_id != pipeline->source_id)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("group \"%s\" is of another source", name),
					 errdetail("Its pipeline \"%s\" reads from source \"%s\"; only changes of one source have a common order.",
							   other->name, other->source),
					 errhint("Choose another name for the group.")));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("group \"%s\" is of another owner", name),
				 errdetail("Its pipeline \"%s\" belongs to another role than pipeline \"%s\".", other->name, pipeline->name),
				 errhint("Choose another name for the group, or make all of its pipelines as the same role.")));
	}
}

static const char *
name_of(const EltPipeline *pipeline)
{
	EltPipelineOptions options;

	elt_options_read(pipeline->options, pipeline->append, &options);
	return options.group;
}

/* ---- in which order ---- */

void
elt_group_sort(EltGroup *group)
{
	bool		changed = true;

	for (int i = 0; i < group->nmembers; i++)
		group->members[i].rank = 0;

	/* a circle ends with the number of rounds */
	for (int round = 0; changed && round < group->nmembers; round++)
	{
		changed = false;
		for (int i = 0; i < group->nmembers; i++)
		{
			EltGroupMember *child = &group->members[i];
			Relation	target = table_open(child->work.pipeline->target, AccessShareLock);
			ListCell   *lc;

			foreach(lc, RelationGetFKeyList(target))
			{
				ForeignKeyCacheInfo *key = lfirst(lc);

				for (int j = 0; j < group->nmembers; j++)
				{
					EltGroupMember *parent = &group->members[j];

					if (j == i || parent->work.pipeline->target != key->confrelid || child->rank > parent->rank)
						continue;
					child->rank = parent->rank + 1;
					changed = true;
				}
			}
			table_close(target, NoLock);
		}
	}
	qsort(group->members, group->nmembers, sizeof(EltGroupMember), compare_ranks);
}

static int
compare_ranks(const void *a, const void *b)
{
	const EltGroupMember *left = a;
	const EltGroupMember *right = b;

	if (left->rank != right->rank)
		return left->rank - right->rank;
	return (left->work.pipeline->pipeline_id > right->work.pipeline->pipeline_id) -
		(left->work.pipeline->pipeline_id < right->work.pipeline->pipeline_id);
}
