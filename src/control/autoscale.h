/*
 * autoscale.h
 *	  How many workers a load wants: arithmetic, and nothing else.
 */
#ifndef ELT_AUTOSCALE_H
#define ELT_AUTOSCALE_H

#define ELT_SCALE_MAX_WORKERS	64

/* Why the pool is as large as it is. */
typedef enum EltScaleReason
{
	ELT_SCALE_STEADY,			/* it suits the load */
	ELT_SCALE_OFF,				/* elt.autoscale is off */
	ELT_SCALE_NO_PIPELINE,		/* no pipeline runs */
	ELT_SCALE_WORK,				/* something came while nobody was there */
	ELT_SCALE_RETRY,			/* a retry or a probe is due */
	ELT_SCALE_ARRIVAL,			/* as many as the arriving changes need */
	ELT_SCALE_BACKLOG,			/* as many as drain the backlog in time */
	ELT_SCALE_UPPER,			/* the backlog is above its upper bound */
	ELT_SCALE_MEASURING,		/* what one worker does is not known yet */
	ELT_SCALE_DRAINING,			/* would be fewer, but a backlog drains */
	ELT_SCALE_WINDOW,			/* would be fewer, but more were wanted lately */
	ELT_SCALE_LESS,				/* the load has become smaller */
	ELT_SCALE_CEILING,			/* more workers gained nothing */
	ELT_SCALE_LOCKS,			/* the workers wait for locks or WAL */
	ELT_SCALE_NO_PROCESS,		/* the server has no worker process to spare */
	ELT_SCALE_MIN,				/* elt.min_workers */
	ELT_SCALE_MAX,				/* elt.max_workers */
	ELT_SCALE_IDLE				/* nothing to do for elt.idle_timeout */
} EltScaleReason;

extern const char *elt_scale_reason(EltScaleReason reason);

/* What happened since the last call, and how it stands now. */
typedef struct EltScaleMeasure
{
	double		seconds;		/* since the last call */
	double		arrived;		/* changes that came into the pipelines' logs */
	double		completed;		/* changes that workers settled */
	double		busy_s;			/* worker-seconds spent on that */
	double		backlog;		/* changes that wait; parked ones do not */
	int			running;		/* workers */
	int			waiting;		/* of them, for locks or WAL */
	int			free_processes; /* workers that the server could still start
								 * for us */
	bool		due;			/* a retry or a probe is due */
} EltScaleMeasure;

/* What the user allows. */
typedef struct EltScaleLimits
{
	int			min_workers;
	int			max_workers;
	double		upper_s;		/* backlog, in seconds of work, above which
								 * all that may help is started at once */
	double		lower_s;		/* backlog below which workers may leave */
	double		catchup_s;		/* time in which a backlog is to be drained */
	double		scale_down_s;	/* window of which the highest want counts */
	double		idle_s;			/* after which the last worker leaves */
} EltScaleLimits;

/* How fast so many workers were together. */
typedef struct EltScaleSample
{
	double		completed;		/* both decay */
	double		seconds;
	int			lumps;			/* calls that saw something completed */
	double		at;				/* when it was last added to */
} EltScaleSample;

typedef struct EltScaleState
{
	int			wanted;
	double		active_at;		/* when there was last something to do */
	double		arrival_rate;	/* changes per second */
	double		worker_rate;	/* changes per busy worker-second; 0: not
								 * known */
	double		need;			/* changes per second, as last computed */
	double		waiting_share;	/* of workers that wait for locks or WAL */
	int			ceiling;		/* no more than these gained anything; 0: not
								 * known */

	double		completed;		/* decaying, for worker_rate */
	double		busy_s;
	int			last_running;
	double		last_backlog;
	double		ceiling_at;
	double		ceiling_rate;	/* of what runs there, once measured; 0: not
								 * known */
	bool		ceiling_kept;	/* it was found in the backlog that drains */
	int			no_gain;		/* seconds in a row that saw no gain */
	EltScaleSample samples[ELT_SCALE_MAX_WORKERS + 1];	/* by number of workers */
	double		wanted_at[ELT_SCALE_MAX_WORKERS + 1];	/* when so many were
														 * last wanted */
} EltScaleState;

/*
 * elt_autoscale_init / elt_autoscale
 *		Times ("now") are seconds since any epoch, never going back.
 *		state->wanted is the answer; returned is its reason.
 */
extern void elt_autoscale_init(EltScaleState *state, double now);
extern EltScaleReason elt_autoscale(EltScaleState *state, const EltScaleMeasure *measure,
									const EltScaleLimits *limits, double now);

/*
 * elt_autoscale_demand
 *		Something came, more is not known: one worker at least.
 */
extern EltScaleReason elt_autoscale_demand(EltScaleState *state, const EltScaleLimits *limits, double now);

#endif							/* ELT_AUTOSCALE_H */
