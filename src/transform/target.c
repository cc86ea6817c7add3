/*
 * target.c
 *	  The table a pipeline writes to: what it must be, its key, its owner's
 *	  rights.
 *
 * The checks run when a pipeline is made and again at every batch: what was
 * granted may have been revoked since.  They look at catalogs only.
 *
 * A target is known by its OID, so it may be renamed.  One that was dropped
 * and made anew is found by its name; whose it is decides whether it is taken
 * for the same, since what its owner attaches to it will run with the rights
 * of the pipeline's owner.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "compat.h"
#include "miscadmin.h"
#include "transform/options.h"
#include "transform/statement.h"
#include "transform/target.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

static Oid	find_successor(const EltPipeline *pipeline);
static Oid	relation_owner(Oid relid);
static bool is_protected_schema(Oid schema);
static bool index_is_key(Oid index_oid, Relation target, List *key);
static int	index_position(Relation index, AttrNumber attnum);
static bool equal_names(List *a, List *b);

void
elt_target_check(const EltPipeline *pipeline)
{
	EltPipelineOptions options;
	char		kind;

	elt_options_read(pipeline->options, pipeline->append, &options);
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(pipeline->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of pipeline \"%s\" does not exist any more", pipeline->name),
				 errdetail("Its role had OID %u.", pipeline->owner),
				 errhint("Drop the pipeline and create it again.")));

	kind = get_rel_relkind(pipeline->target);
	if (kind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the target of pipeline \"%s\" does not exist any more", pipeline->name),
				 errdetail("The table had OID %u.", pipeline->target),
				 errhint("Create the table %s again, or name another one with elt.alter_pipeline(%s, target => ...); the pipeline then resumes by itself.",
						 pipeline->target_name, quote_literal_cstr(pipeline->name))));
	if (kind == RELKIND_FOREIGN_TABLE && !pipeline->append)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a foreign table", get_rel_name(pipeline->target)),
				 errdetail("No unique index of a foreign table is known here."),
				 errhint("Use mode append, or let a server that has elt capture this source by itself.")));
	if (kind == RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a view", get_rel_name(pipeline->target)),
				 errhint("Let the pipeline write to the view's table; what a trigger of the view does can be done in a transform.")));
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE && kind != RELKIND_FOREIGN_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(pipeline->target)),
				 errhint("The target of a pipeline is a table, a partitioned table, or with mode append a foreign table.")));
	if (get_rel_persistence(pipeline->target) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is a temporary table", get_rel_name(pipeline->target)),
				 errhint("Workers have sessions of their own: the target is a table that all sessions see.")));
	if (is_protected_schema(get_rel_namespace(pipeline->target)))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("a table in schema \"%s\" cannot be a target",
						get_namespace_name(get_rel_namespace(pipeline->target))),
				 errhint("Create the target in a schema of your own.")));

	if (!superuser_arg(pipeline->owner) &&
		(!OidIsValid(pipeline->raw_root) ||
		 pg_class_aclcheck(pipeline->raw_root, pipeline->owner, ACL_SELECT) != ACLCHECK_OK))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not read the changes of source \"%s\"",
						GetUserNameFromId(pipeline->owner, false), pipeline->source),
				 errhint("GRANT SELECT ON elt_raw.%s TO %s",
						 quote_identifier(pipeline->source),
						 quote_identifier(GetUserNameFromId(pipeline->owner, false)))));
	if (check_enable_rls(pipeline->raw_root, pipeline->owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security of elt_raw.%s binds role \"%s\"",
						quote_identifier(pipeline->source), GetUserNameFromId(pipeline->owner, false)),
				 errhint("Let a role that bypasses row-level security own the pipeline.")));
	elt_target_require_right(pipeline, ACL_INSERT, "INSERT");
	if (!pipeline->append)
	{
		elt_target_require_right(pipeline, ACL_SELECT, "SELECT");
		elt_target_require_right(pipeline, ACL_UPDATE, "UPDATE");
		if (options.apply_deletes && !options.soft_deletes)
			elt_target_require_right(pipeline, ACL_DELETE, "DELETE");
	}
	if (check_enable_rls(pipeline->target, pipeline->owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security of table \"%s\" binds role \"%s\"",
						get_rel_name(pipeline->target), GetUserNameFromId(pipeline->owner, false)),
				 errhint("Let a role that bypasses row-level security own the pipeline.")));
}

bool
elt_target_follow(EltPipeline *pipeline)
{
	MemoryContext old;
	char	   *name;
	Oid			owner;

	if (get_rel_relkind(pipeline->target) == '\0')
	{
		Oid			successor = find_successor(pipeline);

		if (!OidIsValid(successor))
			return false;		/* elt_target_check says so */
		pipeline->target = successor;
		return true;
	}
	name = elt_target_name(pipeline);
	owner = relation_owner(pipeline->target);
	if (strcmp(name, pipeline->target_name) == 0 && owner == pipeline->target_owner)
		return false;
	old = MemoryContextSwitchTo(GetMemoryChunkContext(pipeline));
	pipeline->target_name = pstrdup(name);
	pipeline->target_owner = owner;
	MemoryContextSwitchTo(old);
	return true;
}

static Oid
find_successor(const EltPipeline *pipeline)
{
	RangeVar   *name = makeRangeVarFromNameList(elt_qualified_name_list(pipeline->target_name));
	Oid			relid = RangeVarGetRelid(name, RowExclusiveLock, true);

	if (!OidIsValid(relid))
		return InvalidOid;
	if (relation_owner(relid) != pipeline->target_owner && relation_owner(relid) != pipeline->owner)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the target of pipeline \"%s\" does not exist any more", pipeline->name),
				 errdetail("The table that is now called %s belongs to another role.", pipeline->target_name),
				 errhint("If it is the right one: elt.alter_pipeline(%s, target => %s).",
						 quote_literal_cstr(pipeline->name), quote_literal_cstr(pipeline->target_name))));
	return relid;
}

static Oid
relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static bool
is_protected_schema(Oid schema)
{
	char	   *name = get_namespace_name(schema);

	return name == NULL || IsCatalogNamespace(schema) || IsToastNamespace(schema) ||
		strcmp(name, "information_schema") == 0 || strcmp(name, "elt") == 0 || strcmp(name, "elt_raw") == 0;
}

void
elt_target_require_right(const EltPipeline *pipeline, AclMode mode, const char *right)
{
	if (pg_class_aclcheck(pipeline->target, pipeline->owner, mode) != ACLCHECK_OK)
	{
		char	   *target = elt_target_name(pipeline);
		const char *owner = quote_identifier(GetUserNameFromId(pipeline->owner, false));

		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role %s has no %s right on target %s", owner, right, target),
				 errhint("GRANT %s ON %s TO %s", right, target, owner)));
	}
}

char *
elt_target_name(const EltPipeline *pipeline)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(pipeline->target)),
									  get_rel_name(pipeline->target));
}

/* ---- key ---- */

List *
elt_target_primary_key(Relation target)
{
	List	   *key = NIL;
	Oid			index_oid;
	Relation	index;

	(void) RelationGetIndexList(target);	/* sets rd_pkindex */
	index_oid = target->rd_pkindex;
	if (!OidIsValid(index_oid))
		return NIL;
	index = index_open(index_oid, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		key = lappend(key, get_attname(RelationGetRelid(target), index->rd_index->indkey.values[i], false));
	index_close(index, NoLock);
	return key;
}

List *
elt_target_unique_keys(Relation target)
{
	List	   *keys = NIL;
	List	   *indexes = RelationGetIndexList(target);
	List	   *primary = elt_target_primary_key(target);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		Relation	index = index_open(lfirst_oid(lc), AccessShareLock);
		List	   *key = NIL;

		for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		{
			if (index->rd_index->indkey.values[i] > 0)
				key = lappend(key, get_attname(RelationGetRelid(target), index->rd_index->indkey.values[i], false));
		}
		index_close(index, NoLock);
		if (!index_is_key(lfirst_oid(lc), target, key))
			continue;
		keys = equal_names(key, primary) ? lcons(key, keys) : lappend(keys, key);
	}
	list_free(indexes);
	return keys;
}

static bool
equal_names(List *a, List *b)
{
	ListCell   *left,
			   *right;

	if (list_length(a) != list_length(b))
		return false;
	forboth(left, a, right, b)
	{
		if (strcmp(lfirst(left), lfirst(right)) != 0)
			return false;
	}
	return true;
}

List *
elt_target_unique_columns(const EltPipeline *pipeline)
{
	if (!pipeline->history)
		return pipeline->key;
	return lappend(list_copy(pipeline->key), ELT_VALID_FROM);
}

Oid
elt_target_key_index(Relation target, List *key)
{
	Oid			found = InvalidOid;
	List	   *indexes = RelationGetIndexList(target);
	ListCell   *lc;

	foreach(lc, indexes)
	{
		if (index_is_key(lfirst_oid(lc), target, key))
			found = lfirst_oid(lc);
	}
	list_free(indexes);
	return found;
}

/*
 * Unique at once for all rows, over exactly these columns.  Whether there are
 * a predicate and expressions is read off the tuple: to build them would run
 * functions of the table's owner that are constant, as whoever is here.
 */
static bool
index_is_key(Oid index_oid, Relation target, List *key)
{
	Relation	index = index_open(index_oid, AccessShareLock);
	Form_pg_index form = index->rd_index;
	bool		matches;
	ListCell   *lc;

	matches = form->indisunique && form->indimmediate && form->indisvalid &&
		IndexRelationGetNumberOfKeyAttributes(index) == list_length(key) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
		heap_attisnull(index->rd_indextuple, Anum_pg_index_indexprs, NULL);
	foreach(lc, key)
	{
		if (index_position(index, get_attnum(RelationGetRelid(target), lfirst(lc))) < 0)
			matches = false;
	}
	index_close(index, NoLock);
	return matches;
}

static int
index_position(Relation index, AttrNumber attnum)
{
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		if (attnum != InvalidAttrNumber && index->rd_index->indkey.values[i] == attnum)
			return i;
	}
	return -1;
}

Oid
elt_target_key_equality(Relation target, List *key, const char *column)
{
	Oid			index_oid = elt_target_key_index(target, key);
	Oid			equality = InvalidOid;

	if (OidIsValid(index_oid))
	{
		Relation	index = index_open(index_oid, AccessShareLock);
		int			at = index_position(index, get_attnum(RelationGetRelid(target), column));

		equality = get_opfamily_member(index->rd_opfamily[at], index->rd_opcintype[at],
									   index->rd_opcintype[at], BTEqualStrategyNumber);
		index_close(index, NoLock);
	}
	if (!OidIsValid(equality))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("table \"%s\" has no unique index over the pipeline's key", RelationGetRelationName(target)),
				 errhint("Create one that is neither partial nor deferrable.")));
	return equality;
}

bool
elt_target_is_referenced(Oid target)
{
	Relation	relation = table_open(target, AccessShareLock);
	bool		referenced = false;

	for (int i = 0; relation->trigdesc != NULL && i < relation->trigdesc->numtriggers && !referenced; i++)
		referenced = RI_FKey_trigger_type(relation->trigdesc->triggers[i].tgfoid) == RI_TRIGGER_PK;
	table_close(relation, NoLock);
	return referenced;
}
