/*
 * owner.c
 *	  Running SQL as the role that wrote it.
 *
 * SECURITY_LOCAL_USERID_CHANGE keeps SET ROLE from getting back, and
 * SECURITY_RESTRICTED_OPERATION refuses what would be left to run later under
 * the session's own id: deferred triggers, held cursors, temporary tables,
 * prepared statements.  (A superuser has nothing to gain, and is not
 * restricted.)
 *
 * Copies read tables of all owners through a walsender, mostly as a superuser.
 * To run such a SELECT runs nothing of the table's owner, but to plan it does:
 * functions of constants in predicates and expressions of indexes and
 * statistics are folded.  So it is planned as the table's owner, in whichever
 * server has the library: preloaded, or loaded by the copy's session.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_class.h"
#include "commands/async.h"
#include "commands/prepare.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "owner.h"
#include "replication/walsender.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/portal.h"
#include "utils/syscache.h"

static planner_hook_type previous_planner_hook = NULL;

static PlannedStmt *plan(Query *query, const char *text, int options, ParamListInfo parameters);
static PlannedStmt *plan_as_table_owner(Query *query, const char *text, int options, ParamListInfo parameters);
static Oid	table_owner(const Query *query);

void
elt_owner_enter(Oid owner, const char *search_path, EltOwnerScope *scope)
{
	const char *path = search_path;

	GetUserIdAndSecContext(&scope->user, &scope->sec_context);
	SetUserIdAndSecContext(owner, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   (superuser_arg(owner) ? 0 : SECURITY_RESTRICTED_OPERATION));
	scope->nest_level = NewGUCNestLevel();
	/* temporary tables, which go first where they are not named, go last */
	if (strstr(path, "pg_temp") == NULL)
		path = psprintf("%s%spg_temp", path, path[0] != '\0' ? ", " : "");
	(void) set_config_option("search_path", path, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
elt_owner_leave(const EltOwnerScope *scope)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(false, scope->nest_level);
	SetUserIdAndSecContext(scope->user, scope->sec_context);
}

void
elt_owner_clean_session(void)
{
	PortalHashTableDeleteAll();
	DropAllPreparedStatements();
	Async_UnlistenAll();
	LockReleaseAll(USER_LOCKMETHOD, true);
}

/* ---- plans of walsenders ---- */

void
elt_owner_install_hook(void)
{
	previous_planner_hook = planner_hook;
	planner_hook = plan_as_table_owner;
}

static PlannedStmt *
plan_as_table_owner(Query *query, const char *text, int options, ParamListInfo parameters)
{
	Oid			owner = am_walsender ? table_owner(query) : InvalidOid;
	PlannedStmt *planned = NULL;
	Oid			user;
	int			sec_context;
	int			nest_level;

	if (!OidIsValid(owner))
		return plan(query, text, options, parameters);

	GetUserIdAndSecContext(&user, &sec_context);
	nest_level = NewGUCNestLevel();
	PG_TRY();
	{
		SetUserIdAndSecContext(owner, sec_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		planned = plan(query, text, options, parameters);
	}
	PG_FINALLY();
	{
		SetUserIdAndSecContext(user, sec_context);
	}
	PG_END_TRY();
	AtEOXact_GUC(false, nest_level);
	return planned;
}

static PlannedStmt *
plan(Query *query, const char *text, int options, ParamListInfo parameters)
{
	return previous_planner_hook ? previous_planner_hook(query, text, options, parameters) :
		standard_planner(query, text, options, parameters);
}

/* A copy reads one table beside the catalogs, if any. */
static Oid
table_owner(const Query *query)
{
	ListCell   *lc;

	foreach(lc, query->rtable)
	{
		RangeTblEntry *entry = lfirst_node(RangeTblEntry, lc);
		HeapTuple	tuple;
		Oid			owner;

		if (entry->rtekind != RTE_RELATION || entry->relid < FirstNormalObjectId)
			continue;
		tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(entry->relid));
		if (!HeapTupleIsValid(tuple))
			continue;
		owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
		ReleaseSysCache(tuple);
		return owner;
	}
	return InvalidOid;
}
