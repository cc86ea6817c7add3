/*
 * guc.c
 *	  The settings of elt.
 *
 * None of them needs a restart: the library is also loaded by sessions of
 * servers that do not preload it (a walsender that serves the output plugin
 * to another server), where such a setting could not be defined.
 */
#include "postgres.h"

#include "compat.h"
#include "guc.h"
#include "libpq-fe.h"

int			elt_max_workers = 4;
int			elt_batch_changes = 10000;
int			elt_batch_bytes_kb = 8192;
int			elt_raw_partition_changes = 4194304;
int			elt_quarantine_retention_s = 30 * 86400;
char	   *elt_local_conninfo = "";

static bool check_local_conninfo(char **newval, void **extra, GucSource source);

void
elt_guc_define(void)
{
	DefineCustomIntVariable("elt.max_workers",
							"Transform workers per database.",
							"0 stops all pipelines; elt.transform() still works.",
							&elt_max_workers,
							4, 0, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.batch_changes",
							"Changes that a pipeline reads per batch.",
							"A pipeline's option batch_changes goes before it.",
							&elt_batch_changes,
							10000, 1, 1000000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.batch_bytes",
							"Raw bytes that a pipeline reads per batch.",
							NULL,
							&elt_batch_bytes_kb,
							8192, 64, 262144,
							PGC_SIGHUP, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.raw_partition_changes",
							"Change ids that one leaf partition of raw staging covers.",
							"Takes effect for partitions that are made afterwards, in sources created afterwards.",
							&elt_raw_partition_changes,
							4194304, 1024, 1073741824,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.quarantine_retention",
							"How long resolved rows of elt.quarantine are kept.",
							"-1 keeps them for ever. Rows that are not resolved are always kept.",
							&elt_quarantine_retention_s,
							30 * 86400, -1, PG_INT32_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomStringVariable("elt.local_conninfo",
							   "How capture workers connect to their own server.",
							   "Empty: through the first Unix socket directory, as the superuser that initialised the cluster. "
							   "The database is always the worker's own.",
							   &elt_local_conninfo,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_local_conninfo, NULL, NULL);
	MarkGUCPrefixReserved("elt");
}

static bool
check_local_conninfo(char **newval, void **extra, GucSource source)
{
	PQconninfoOption *options;
	char	   *error = NULL;

	options = PQconninfoParse(*newval, &error);
	if (options == NULL)
	{
		GUC_check_errdetail("%s", error ? error : "out of memory");
		PQfreemem(error);
		return false;
	}
	PQconninfoFree(options);
	return true;
}
