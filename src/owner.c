/*
 * owner.c
 *	  Running SQL as the role that wrote it.
 *
 * SECURITY_LOCAL_USERID_CHANGE keeps SET ROLE from getting back, and
 * SECURITY_RESTRICTED_OPERATION refuses what would be left to run later under
 * the session's own id: deferred triggers, held cursors, temporary tables,
 * prepared statements.  (A superuser has nothing to gain, and is not
 * restricted.)
 */
#include "postgres.h"

#include "commands/async.h"
#include "commands/prepare.h"
#include "compat.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "owner.h"
#include "storage/lock.h"
#include "utils/guc.h"
#include "utils/portal.h"

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
