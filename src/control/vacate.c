/*
 * vacate.c
 *	  Making room for commands that want a database without connections.
 *
 * DROP DATABASE, CREATE DATABASE ... TEMPLATE, and ALTER DATABASE ... RENAME
 * or SET TABLESPACE fail while somebody is connected, and an active logical
 * slot makes even DROP DATABASE ... WITH (FORCE) fail.  A hook on utility
 * commands therefore ends elt's workers in that database first, for who may
 * give the command, and keeps the launcher away for some seconds.  Where the
 * command fails, they come back by themselves.
 *
 * DROP EXTENSION elt would wait for the transactions of the workers, which
 * hold the extension: that of a capture worker lasts as long as the source's.
 * They are asked to end first; where the command fails or is rolled back, they
 * come back by themselves as well.
 *
 * Slots of the database go with it; its replication origins, which belong to
 * the cluster, are dropped here after it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_replication_origin.h"
#include "clock.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "compat.h"
#include "control/registry.h"
#include "control/vacate.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#define WAIT_MS		5000
#define POLL_MS		10

static ProcessUtility_hook_type previous_hook = NULL;

static void vacate_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
						   ProcessUtilityContext context, ParamListInfo params,
						   QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion);
static const char *database_to_vacate(Node *command);
static bool drops_extension(Node *command);
static const char *option_value(List *options, const char *name);
static void vacate(Oid dboid);
static void drop_origins(Oid dboid);

void
elt_vacate_install_hook(void)
{
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = vacate_utility;
}

static void
vacate_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
			   ProcessUtilityContext context, ParamListInfo params,
			   QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	const char *name = database_to_vacate(statement->utilityStmt);
	bool		drops = IsA(statement->utilityStmt, DropdbStmt);
	Oid			dboid = name ? get_database_oid(name, true) : InvalidOid;

	if (OidIsValid(dboid) && dboid != MyDatabaseId &&
		elt_database_ownercheck(dboid, GetUserId()))
		vacate(dboid);

	if (drops_extension(statement->utilityStmt))
		elt_registry_make_way(MyDatabaseId);

	if (previous_hook)
		previous_hook(statement, query, read_only_tree, context, params, environment, dest, completion);
	else
		standard_ProcessUtility(statement, query, read_only_tree, context, params, environment, dest, completion);

	if (drops && OidIsValid(dboid))
		drop_origins(dboid);
}

/* The database that a command wants without connections, NULL: none. */
static const char *
database_to_vacate(Node *command)
{
	switch (nodeTag(command))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) command)->dbname;
		case T_CreatedbStmt:
			return option_value(((CreatedbStmt *) command)->options, "template");
		case T_AlterDatabaseStmt:
			if (option_value(((AlterDatabaseStmt *) command)->options, "tablespace") != NULL)
				return ((AlterDatabaseStmt *) command)->dbname;
			return NULL;
		case T_RenameStmt:
			if (((RenameStmt *) command)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) command)->subname;
			return NULL;
		default:
			return NULL;
	}
}

/* Whether a command drops elt, by somebody who may. */
static bool
drops_extension(Node *command)
{
	ListCell   *cell;

	if (!IsA(command, DropStmt) || ((DropStmt *) command)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(cell, ((DropStmt *) command)->objects)
	{
		if (strcmp(strVal(lfirst(cell)), "elt") == 0)
		{
			Oid			extension = get_extension_oid("elt", true);

			return OidIsValid(extension) && elt_extension_ownercheck(extension, GetUserId());
		}
	}
	return false;
}

static const char *
option_value(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst(cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/*
 * Ends the workers and waits until they, and the walsenders that serve them,
 * are gone.  The command itself says what is wrong where that takes too long.
 */
static void
vacate(Oid dboid)
{
	TimestampTz start = elt_clock_now();
	int			slots;
	int			active;

	elt_registry_vacate(dboid);
	if (elt_registry_terminate(dboid, true) == 0)
		return;
	do
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POLL_MS, elt_wait_event("EltVacate"));
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		(void) ReplicationSlotsCountDBSlots(dboid, &slots, &active);
	} while ((active > 0 || elt_registry_terminate(dboid, true) > 0) &&
			 !TimestampDifferenceExceeds(start, elt_clock_now(), WAIT_MS));
}

/* The names are elt_<database>_<source>, see elt_origin_name(). */
static void
drop_origins(Oid dboid)
{
	char	   *prefix = psprintf("elt_%u_", dboid);
	List	   *names = NIL;
	ListCell   *cell;
	Relation	origins;
	SysScanDesc scan;
	HeapTuple	tuple;

	origins = table_open(ReplicationOriginRelationId, AccessShareLock);
	scan = systable_beginscan(origins, InvalidOid, false, NULL, 0, NULL);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		bool		isnull;
		Datum		name = heap_getattr(tuple, Anum_pg_replication_origin_roname,
										RelationGetDescr(origins), &isnull);

		if (!isnull && strncmp(TextDatumGetCString(name), prefix, strlen(prefix)) == 0)
			names = lappend(names, TextDatumGetCString(name));
	}
	systable_endscan(scan);
	table_close(origins, AccessShareLock);

	/*
	 * No error may come now that the database is gone.  A worker that is on
	 * its way out is waited for.
	 */
	HOLD_INTERRUPTS();
	foreach(cell, names)
		replorigin_drop_by_name(lfirst(cell), true, false);
	RESUME_INTERRUPTS();
}
