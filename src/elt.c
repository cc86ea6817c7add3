/*
 * elt.c
 *	  Start-up of the library.
 *
 * Preloaded, it reserves shared memory and registers the launcher.  Loaded
 * otherwise (by a walsender for the output plugin, or by a function call in a
 * server that does not preload it) it defines the settings and no more:
 * loading it is harmless for everybody.
 *
 * A hook watches for DROP EXTENSION elt, so that the supervisor hears of it
 * when it commits, and never when it rolls back.
 */
#include "postgres.h"

#include "catalog/dependency.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "control/registry.h"
#include "control/stats.h"
#include "control/vacate.h"
#include "elt.h"
#include "guc.h"
#include "miscadmin.h"
#include "owner.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;
static object_access_hook_type previous_object_access_hook = NULL;

static void request_shmem(void);
static void startup_shmem(void);
static void register_launcher(void);
static void notice_drop_extension(ObjectAccessType access, Oid class_id, Oid object_id,
								  int sub_id, void *arg);

void
_PG_init(void)
{
	elt_guc_define();
	elt_owner_install_hook();

	if (!process_shared_preload_libraries_in_progress)
		return;

	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_shmem;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
	previous_object_access_hook = object_access_hook;
	object_access_hook = notice_drop_extension;
	elt_vacate_install_hook();
	register_launcher();
}

static void
request_shmem(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	elt_registry_request_shmem();
	elt_stats_request_shmem();
}

static void
startup_shmem(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	elt_registry_init_shmem();
	elt_stats_init_shmem();
}

static void
register_launcher(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 5;
	strlcpy(worker.bgw_library_name, ELT_LIBRARY, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "elt_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "elt launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "elt launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

static void
notice_drop_extension(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (previous_object_access_hook)
		previous_object_access_hook(access, class_id, object_id, sub_id, arg);

	/* ALTER: to another version, perhaps */
	if ((access == OAT_DROP || access == OAT_POST_ALTER) && class_id == ExtensionRelationId)
	{
		char	   *name = get_extension_name(object_id);

		if (name != NULL && strcmp(name, "elt") == 0)
			elt_config_changed();
	}
}
