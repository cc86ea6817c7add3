/*
 * guc.c
 *	  The settings of elt.
 *
 * None of them needs a restart: the library is also loaded by sessions of
 * servers that do not preload it (a walsender that serves the output plugin
 * to another server), where such a setting could not be defined.
 */
#include "postgres.h"

#include <limits.h>

#include "compat.h"
#include "guc.h"
#include "libpq-fe.h"

int			elt_autoscale_mode = ELT_AUTOSCALE_ON;
int			elt_min_workers = 0;
int			elt_max_workers = 4;
int			elt_target_backlog_s = 120;
int			elt_drained_backlog_ms = 1000;
int			elt_catchup_target_s = 30;
int			elt_scale_down_window_s = 60;
int			elt_idle_timeout_s = 60;
int			elt_batch_changes = 10000;
int			elt_batch_bytes_kb = 8192;
int			elt_batch_time_ms = 500;
int			elt_raw_partition_changes = 4194304;
int			elt_snapshot_workers = 2;
int			elt_snapshot_rate_kb = 0;
int			elt_transform_time_limit_ms = 60000;
int			elt_max_parked_per_key = 10000;
int			elt_quarantine_retention_s = 30 * 86400;
int			elt_raw_retention_s = 7 * 86400;
int			elt_max_raw_size_mb = 0;
int			elt_source_timeout_ms = 60000;
int			elt_heartbeat_interval_ms = 10000;
int			elt_max_slot_lag_mb = -1;
char	   *elt_local_conninfo = "";
bool		elt_alerts = true;
char	   *elt_alert_channel = "elt_alerts";
int			elt_alert_time_limit_ms = 1000;
double		elt_alert_queue_limit = 50;
double		elt_error_rate_threshold = 0.1;

static const struct config_enum_entry autoscale_modes[] = {
	{"on", ELT_AUTOSCALE_ON, false},
	{"advise", ELT_AUTOSCALE_ADVISE, false},
	{"off", ELT_AUTOSCALE_OFF, false},
	{"true", ELT_AUTOSCALE_ON, true},
	{"yes", ELT_AUTOSCALE_ON, true},
	{"1", ELT_AUTOSCALE_ON, true},
	{"false", ELT_AUTOSCALE_OFF, true},
	{"no", ELT_AUTOSCALE_OFF, true},
	{"0", ELT_AUTOSCALE_OFF, true},
	{NULL, 0, false}
};

static bool check_local_conninfo(char **newval, void **extra, GucSource source);
static bool check_alert_channel(char **newval, void **extra, GucSource source);

void
elt_guc_define(void)
{
	DefineCustomEnumVariable("elt.autoscale",
							 "Whether the number of transform workers follows the load.",
							 "off: always elt.max_workers while pipelines run. advise: as off, but decisions are written to elt.scaling_log.",
							 &elt_autoscale_mode,
							 ELT_AUTOSCALE_ON, autoscale_modes,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomIntVariable("elt.min_workers",
							"Least transform workers per database.",
							"Above elt.max_workers it counts as that.",
							&elt_min_workers,
							0, 0, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.max_workers",
							"Most transform workers per database.",
							"0 stops all pipelines; elt.transform() still works.",
							&elt_max_workers,
							4, 0, 64,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.target_backlog",
							"Upper bound of the backlog, in time to drain it: above, as many workers as may help are started at once.",
							NULL,
							&elt_target_backlog_s,
							120, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.drained_backlog",
							"Lower bound of the backlog, in time to drain it: workers are taken away only below.",
							NULL,
							&elt_drained_backlog_ms,
							1000, 0, 86400000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.catchup_target",
							"Time in which a backlog is to be drained.",
							NULL,
							&elt_catchup_target_s,
							30, 1, 86400,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.scale_down_window",
							"Workers are taken away when none of them was wanted for so long.",
							NULL,
							&elt_scale_down_window_s,
							60, 0, 86400,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.idle_timeout",
							"The last worker leaves when there was nothing to do for so long.",
							NULL,
							&elt_idle_timeout_s,
							60, 0, 86400,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.batch_changes",
							"Most changes that a pipeline reads per batch.",
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
	DefineCustomIntVariable("elt.batch_time",
							"How long a batch should take: workers read so many changes, up to elt.batch_changes.",
							"0: always elt.batch_changes.",
							&elt_batch_time_ms,
							500, 0, 3600000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.raw_partition_changes",
							"Change ids that one leaf partition of raw staging covers.",
							"Takes effect for partitions that are made afterwards, in sources created afterwards.",
							&elt_raw_partition_changes,
							4194304, 1024, 1073741824,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.snapshot_workers",
							"Most workers that copy tables of one source at a time.",
							"Each takes a background worker here and a wal sender at the source.",
							&elt_snapshot_workers,
							2, 1, ELT_MAX_SNAPSHOT_WORKERS,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.snapshot_rate",
							"How much the copies of one source read from it per second.",
							"0 sets no limit.",
							&elt_snapshot_rate_kb,
							0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_KB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.transform_time_limit",
							"How long a worker lets the SQL of a pipeline run on one batch.",
							"A single change that takes longer is quarantined; 0 sets no limit. A pipeline's option time_limit goes before it.",
							&elt_transform_time_limit_ms,
							60000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.max_parked_per_key",
							"Parked changes of one key whose excess raises the alert parked_overflow.",
							"They are parked all the same, or the rest would have to stop. 0 sets no limit.",
							&elt_max_parked_per_key,
							10000, 0, INT_MAX,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.quarantine_retention",
							"How long resolved rows of elt.quarantine are kept.",
							"-1 keeps them for ever. Rows that are not resolved are always kept.",
							&elt_quarantine_retention_s,
							30 * 86400, -1, PG_INT32_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.raw_retention",
							"How long raw staging is kept.",
							"-1 keeps it for ever. What a pipeline, the quarantine or a replay needs is always kept. "
							"A source's option raw_retention goes before it.",
							&elt_raw_retention_s,
							7 * 86400, -1, PG_INT32_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.max_raw_size",
							"Size of a database's raw staging whose excess raises the alert raw_size.",
							"0 sets no limit.",
							&elt_max_raw_size_mb,
							0, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.source_timeout",
							"How long a source may be silent before its connection is given up and made anew.",
							"After half of it the source is asked for a sign of life. 0 waits for ever.",
							&elt_source_timeout_ms,
							60000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.heartbeat_interval",
							"How often a message is written at a source of which nothing was staged while its WAL grew.",
							"0 writes none.",
							&elt_heartbeat_interval_ms,
							10000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("elt.max_slot_lag",
							"How much WAL the slot of a source may hold: beyond it the source's slot_policy applies.",
							"-1 sets no limit.",
							&elt_max_slot_lag_mb,
							-1, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MB,
							NULL, NULL, NULL);
	DefineCustomStringVariable("elt.local_conninfo",
							   "How capture workers connect to their own server.",
							   "Empty: through the first Unix socket directory, as the superuser that initialised the cluster. "
							   "The database is always the worker's own.",
							   &elt_local_conninfo,
							   "",
							   PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   check_local_conninfo, NULL, NULL);
	DefineCustomBoolVariable("elt.alerts",
							 "Evaluates alert rules.",
							 NULL,
							 &elt_alerts,
							 true,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("elt.alert_channel",
							   "Channel on which alerts are told by NOTIFY.",
							   "Empty: they are only recorded in elt.alerts.",
							   &elt_alert_channel,
							   "elt_alerts",
							   PGC_SIGHUP, 0,
							   check_alert_channel, NULL, NULL);
	DefineCustomIntVariable("elt.alert_time_limit",
							"How long the query of a user's alert rule may take.",
							NULL,
							&elt_alert_time_limit_ms,
							1000, 10, 60000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomRealVariable("elt.alert_queue_limit",
							 "How full the server's notification queue may be for alerts to be told, in percent.",
							 "Above it they wait in elt.alerts.",
							 &elt_alert_queue_limit,
							 50, 0.0001, 100,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
	DefineCustomRealVariable("elt.error_rate_threshold",
							 "Percent of a pipeline's changes of five minutes whose failure raises the alert error_rate.",
							 NULL,
							 &elt_error_rate_threshold,
							 0.1, 0, 100,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
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

static bool
check_alert_channel(char **newval, void **extra, GucSource source)
{
	if (strlen(*newval) >= NAMEDATALEN)
	{
		GUC_check_errdetail("A channel's name has less than %d bytes.", NAMEDATALEN);
		return false;
	}
	return true;
}
