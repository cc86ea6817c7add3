/*
 * guc.h
 *	  The settings of elt. All can be changed by a reload.
 */
#ifndef ELT_GUC_H
#define ELT_GUC_H

/* elt.autoscale */
typedef enum EltAutoscaleMode
{
	ELT_AUTOSCALE_OFF,
	ELT_AUTOSCALE_ADVISE,
	ELT_AUTOSCALE_ON
} EltAutoscaleMode;

extern int	elt_autoscale_mode;
extern int	elt_min_workers;	/* transform workers per database */
extern int	elt_max_workers;
extern int	elt_target_backlog_s;	/* upper bound of the backlog, in time to
									 * drain it */
extern int	elt_drained_backlog_ms; /* lower bound */
extern int	elt_catchup_target_s;
extern int	elt_scale_down_window_s;
extern int	elt_idle_timeout_s;
extern int	elt_batch_changes;	/* changes read per batch of a pipeline */
extern int	elt_batch_bytes_kb; /* kB read per batch of a pipeline */
extern int	elt_batch_time_ms;	/* that a batch should take; 0: not heeded */
extern int	elt_raw_partition_changes;	/* change_ids per leaf partition */
#define ELT_MAX_SNAPSHOT_WORKERS	16
extern int	elt_snapshot_workers;	/* per source */
extern int	elt_snapshot_rate_kb;	/* kB/s per source; 0: no limit */
extern int	elt_transform_time_limit_ms;	/* of a pipeline's SQL on one
											 * batch; 0: none */
extern int	elt_max_parked_per_key; /* read by SQL; 0: no limit */
extern int	elt_quarantine_retention_s; /* how long resolved rows are kept;
										 * -1: for ever */
extern int	elt_source_timeout_ms;	/* silence after which a connection is
									 * given up; 0: never */
extern int	elt_heartbeat_interval_ms;	/* 0: no heartbeats */
extern int	elt_max_slot_lag_mb;	/* -1: no limit */
extern int	elt_raw_retention_s;	/* -1: for ever */
extern int	elt_max_raw_size_mb;	/* 0: no limit */
extern char *elt_local_conninfo;	/* how a worker reaches its own server */
extern bool elt_alerts;			/* evaluate alert rules */
extern char *elt_alert_channel; /* of NOTIFY; empty: none */
extern int	elt_alert_time_limit_ms;	/* of a user's rule */
extern double elt_alert_queue_limit;	/* percent of the notification queue */
extern double elt_error_rate_threshold; /* percent */

extern void elt_guc_define(void);

#endif							/* ELT_GUC_H */
