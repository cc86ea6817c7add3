/*
 * autoscale.c
 *	  How many workers a load wants: arithmetic, and nothing else.
 *
 * No clock, no catalog, no shared memory: measurements, limits and the time
 * come in, a number and a reason come out, so that elt.simulate_autoscale()
 * runs the very code that scales a pool.
 *
 * The need is a rate: what arrives, at no more than UTILISATION of capacity
 * (queues grow without bound as that approaches one: Kleinrock, Queueing
 * Systems I), and what drains the backlog within the catch-up target.  What
 * one worker can do is measured by the time that workers were busy, not by
 * the time that passed, so that an idle worker does not look slow (the "true
 * rate" of Kalavri et al., Three steps is all you need, OSDI 2018, as in
 * Flink's autoscaler).  What several do together is measured while a backlog
 * keeps them all busy, and where it was measured it goes before any estimate:
 * workers share disks and locks.
 *
 * The fewest workers that meet the need are wanted.  Up: when the backlog is
 * above its lower bound (below it they keep up: changes that trickle in make
 * small batches, in which a worker looks slower than it is), at most doubled
 * per step, and not again before the step was measured, so that the number
 * from which on nothing is gained is seen (the ceiling) and not overshot.
 * Above the upper bound, all that are allowed.  Down: to the highest number
 * that was wanted within the window (the stabilisation window of Kubernetes'
 * and KEDA's autoscalers), and not while a backlog drains.  Where workers
 * mostly wait for locks or WAL, more of them would only wait too: no step up.
 *
 * Measurements are noisy where others use the machine too.  So a ceiling takes
 * several measurements in a row, is found once in a backlog, and is kept while
 * that drains: the pool does not go down step by step, nor up and down.
 */
#include "postgres.h"

#include <math.h>

#include "control/autoscale.h"

#define UTILISATION		0.8
#define MIN_GAIN		0.1		/* per added worker, of what there was */
#define WAITING_SHARE	0.4		/* of workers, from which on they hold: two
								 * that take turns are at 0.5 */
#define MEMORY_S		300		/* how long measured totals and the ceiling
								 * are believed */
#define SAMPLE_S		1		/* how long a total is measured before the
								 * next step */
#define SAMPLE_LUMPS	1		/* batches may take longer than that */
#define CEILING_S		5		/* and before it is called a ceiling */
#define CEILING_LUMPS	4
#define CEILING_VOTES	3		/* seconds in a row that say so */
#define CEILING_HOLD_S	120		/* before anything but its age ends it */
#define SAMPLE_DECAY_S	20
#define RATE_DECAY_S	10
#define ARRIVAL_DECAY_S	5
#define WAITING_DECAY_S	2
#define RATE_CHANGE		0.3		/* of the total at the ceiling: it is another
								 * load now */
#define NEVER			(-1e18)

static void observe(EltScaleState *state, const EltScaleMeasure *measure, double now);
static void observe_ceiling(EltScaleState *state, int running, double now);
static bool is_sampled(const EltScaleState *state, int workers, double now);
static bool is_well_sampled(const EltScaleState *state, int workers, double now);
static double sampled_rate(const EltScaleState *state, int workers);
static double total_rate(const EltScaleState *state, int workers, double now);
static int	wants(EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
				  double now, EltScaleReason *reason);
static int	step_up(const EltScaleState *state, const EltScaleMeasure *measure,
					const EltScaleLimits *limits, int want, double now, EltScaleReason *reason);
static int	step_down(const EltScaleState *state, const EltScaleMeasure *measure,
					  const EltScaleLimits *limits, int want, double now, EltScaleReason *reason);
static int	bound(const EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
				  int wanted, EltScaleReason *reason);

const char *
elt_scale_reason(EltScaleReason reason)
{
	static const char *const names[] = {
		[ELT_SCALE_STEADY] = "steady",
		[ELT_SCALE_OFF] = "off",
		[ELT_SCALE_NO_PIPELINE] = "no_pipeline",
		[ELT_SCALE_WORK] = "work",
		[ELT_SCALE_RETRY] = "retry",
		[ELT_SCALE_ARRIVAL] = "arrival",
		[ELT_SCALE_BACKLOG] = "backlog",
		[ELT_SCALE_UPPER] = "target_backlog",
		[ELT_SCALE_MEASURING] = "measuring",
		[ELT_SCALE_DRAINING] = "draining",
		[ELT_SCALE_WINDOW] = "window",
		[ELT_SCALE_LESS] = "less_work",
		[ELT_SCALE_CEILING] = "ceiling",
		[ELT_SCALE_LOCKS] = "locks",
		[ELT_SCALE_NO_PROCESS] = "no_process",
		[ELT_SCALE_MIN] = "min_workers",
		[ELT_SCALE_MAX] = "max_workers",
		[ELT_SCALE_IDLE] = "idle",
	};

	return names[reason];
}

void
elt_autoscale_init(EltScaleState *state, double now)
{
	memset(state, 0, sizeof(EltScaleState));
	state->active_at = now;
	state->ceiling_at = NEVER;
	for (int i = 0; i <= ELT_SCALE_MAX_WORKERS; i++)
		state->samples[i].at = state->wanted_at[i] = NEVER;
}

EltScaleReason
elt_autoscale(EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits, double now)
{
	EltScaleReason reason = ELT_SCALE_STEADY;
	int			want;
	int			wanted = state->wanted;

	if (measure->backlog <= limits->lower_s * total_rate(state, Max(wanted, 1), now) &&
		now - state->ceiling_at > CEILING_HOLD_S)
		state->ceiling_kept = false;
	observe(state, measure, now);
	want = wants(state, measure, limits, now, &reason);
	state->wanted_at[want] = now;
	if (want > wanted)
		wanted = step_up(state, measure, limits, want, now, &reason);
	else if (want < wanted)
		wanted = step_down(state, measure, limits, want, now, &reason);
	else if (want > 0 && reason != ELT_SCALE_MAX)
		reason = ELT_SCALE_STEADY;
	state->wanted = bound(state, measure, limits, wanted, &reason);
	return reason;
}

EltScaleReason
elt_autoscale_demand(EltScaleState *state, const EltScaleLimits *limits, double now)
{
	state->active_at = now;
	state->wanted_at[1] = now;
	if (state->wanted == 0 && limits->max_workers > 0)
		state->wanted = Max(1, Min(limits->min_workers, limits->max_workers));
	return ELT_SCALE_WORK;
}

/* ---- what is known ---- */

static void
observe(EltScaleState *state, const EltScaleMeasure *measure, double now)
{
	double		seconds = Max(measure->seconds, 0.001);
	int			running = Min(measure->running, ELT_SCALE_MAX_WORKERS);
	double		keep = exp(-seconds / ARRIVAL_DECAY_S);

	state->arrival_rate = keep * state->arrival_rate + (1 - keep) * measure->arrived / seconds;
	if (state->arrival_rate < 0.01)
		state->arrival_rate = 0;
	if (measure->arrived > 0 || measure->completed > 0 || measure->backlog > 0 || measure->due)
		state->active_at = now;

	if (measure->busy_s > 0)
	{
		/* a batch is counted at its end: sums, since both come in lumps */
		keep = exp(-measure->busy_s / Max(running, 1) / RATE_DECAY_S);
		state->completed = keep * state->completed + measure->completed;
		state->busy_s = keep * state->busy_s + measure->busy_s;
		if (state->completed > 0)
			state->worker_rate = state->completed / state->busy_s;
	}

	keep = exp(-seconds / WAITING_DECAY_S);
	state->waiting_share = keep * state->waiting_share +
		(running > 0 ? (1 - keep) * measure->waiting / running : 0);

	/*
	 * All were busy all the time where as much again is left.  Those that
	 * were wanted at the last call were there from then on, but for the
	 * moment that a start takes.
	 */
	if (running > 0 && (running == state->last_running || running == state->wanted) &&
		state->last_backlog > 0 && measure->backlog > 0 && measure->backlog >= measure->completed)
	{
		EltScaleSample *sample = &state->samples[running];

		if (now - sample->at > MEMORY_S)
			memset(sample, 0, sizeof(EltScaleSample));
		keep = exp(-seconds / SAMPLE_DECAY_S);
		sample->completed = keep * sample->completed + measure->completed;
		sample->seconds = keep * sample->seconds + seconds;
		sample->lumps += (measure->completed > 0);
		sample->at = now;
		observe_ceiling(state, running, now);
	}
	if (running != state->last_running)
		state->no_gain = 0;
	state->last_running = running;
	state->last_backlog = measure->backlog;
	if (state->ceiling > 0 && now - state->ceiling_at > MEMORY_S)
	{
		state->ceiling = 0;
		state->ceiling_kept = false;
	}
}

/* Whether the workers that run do more than fewer did. */
static void
observe_ceiling(EltScaleState *state, int running, double now)
{
	bool		gains = true;
	int			fewer = running - 1;
	double		rate;

	if (!is_well_sampled(state, running, now))
		return;
	rate = sampled_rate(state, running);
	if (running == state->ceiling)
	{
		if (now - state->ceiling_at <= CEILING_HOLD_S || state->ceiling_rate <= 0)
			state->ceiling_rate = rate;
		else if (fabs(rate - state->ceiling_rate) > RATE_CHANGE * state->ceiling_rate)
		{
			for (int workers = running + 1; workers <= ELT_SCALE_MAX_WORKERS; workers++)
				state->samples[workers].at = NEVER;
			state->ceiling = 0;
		}
	}
	while (fewer > 0 && !is_sampled(state, fewer, now))
		fewer--;
	if (fewer > 0)
	{
		double		before = sampled_rate(state, fewer);

		gains = rate - before >= MIN_GAIN * before * (running - fewer);
	}
	state->no_gain = gains ? 0 : state->no_gain + 1;
	if (state->no_gain >= CEILING_VOTES && !state->ceiling_kept)
	{
		state->ceiling = fewer;
		state->ceiling_at = now;
		state->ceiling_rate = 0;
		state->ceiling_kept = true;
		state->no_gain = 0;
	}
}

static bool
is_sampled(const EltScaleState *state, int workers, double now)
{
	const EltScaleSample *sample = &state->samples[workers];

	return now - sample->at <= MEMORY_S &&
		sample->seconds >= SAMPLE_S * 0.9 && sample->lumps >= SAMPLE_LUMPS;
}

static bool
is_well_sampled(const EltScaleState *state, int workers, double now)
{
	const EltScaleSample *sample = &state->samples[workers];

	return is_sampled(state, workers, now) &&
		sample->seconds >= CEILING_S * 0.9 && sample->lumps >= CEILING_LUMPS;
}

static double
sampled_rate(const EltScaleState *state, int workers)
{
	return state->samples[workers].completed / state->samples[workers].seconds;
}

/* What so many workers do together, in changes per second. */
static double
total_rate(const EltScaleState *state, int workers, double now)
{
	int			below = workers;
	int			above = workers;

	while (below > 0 && !is_sampled(state, below, now))
		below--;
	while (above <= ELT_SCALE_MAX_WORKERS && !is_sampled(state, above, now))
		above++;
	if (below == workers)
		return sampled_rate(state, workers);
	if (below > 0 && above <= ELT_SCALE_MAX_WORKERS)
		return sampled_rate(state, below) + (workers - below) *
			(sampled_rate(state, above) - sampled_rate(state, below)) / (above - below);
	if (below > 0)
		return sampled_rate(state, below) * workers / below;
	if (above <= ELT_SCALE_MAX_WORKERS)
		return sampled_rate(state, above) * workers / above;
	return state->worker_rate * workers;
}

/* ---- what is wanted ---- */

static int
wants(EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
	  double now, EltScaleReason *reason)
{
	double		arriving = state->arrival_rate / UTILISATION;
	double		draining = measure->backlog / Max(limits->catchup_s, 0.001);
	int			most = Min(limits->max_workers, ELT_SCALE_MAX_WORKERS);
	int			want = 1;

	state->need = arriving + draining;
	if (most == 0)
	{
		*reason = ELT_SCALE_MAX;
		return 0;
	}
	if (measure->backlog <= 0 && measure->completed <= 0 && measure->arrived <= 0 && !measure->due)
	{
		*reason = ELT_SCALE_IDLE;
		if (state->wanted == 0 || now - state->active_at >= limits->idle_s)
			return 0;
	}
	if (state->worker_rate <= 0)
	{
		*reason = ELT_SCALE_MEASURING;
		return Max(1, Min(state->wanted, most));
	}
	if (measure->backlog > limits->upper_s * total_rate(state, Max(state->wanted, 1), now) &&
		is_sampled(state, state->wanted, now))
	{
		*reason = ELT_SCALE_UPPER;
		return most;
	}
	while (want < most && total_rate(state, want, now) < state->need)
		want++;
	*reason = draining > arriving ? ELT_SCALE_BACKLOG : arriving > 0 ? ELT_SCALE_ARRIVAL :
		measure->due ? ELT_SCALE_RETRY : ELT_SCALE_STEADY;
	if (want == most && state->wanted == most && total_rate(state, most, now) < state->need)
		*reason = ELT_SCALE_MAX;
	return want;
}

static int
step_up(const EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
		int want, double now, EltScaleReason *reason)
{
	if (state->wanted == 0)
	{
		*reason = measure->due && measure->backlog <= 0 ? ELT_SCALE_RETRY : ELT_SCALE_WORK;
		return 1;
	}
	if (measure->backlog <= limits->lower_s * total_rate(state, state->wanted, now))
	{
		*reason = ELT_SCALE_STEADY; /* they keep up */
		return state->wanted;
	}
	if (state->waiting_share >= WAITING_SHARE && measure->running >= state->wanted)
	{
		*reason = ELT_SCALE_LOCKS;
		return state->wanted;
	}
	if (state->ceiling > 0 && state->wanted >= state->ceiling)
	{
		*reason = ELT_SCALE_CEILING;
		return state->wanted;
	}
	if (*reason == ELT_SCALE_UPPER)
		return want;
	if (measure->running < state->wanted || !is_sampled(state, state->wanted, now))
	{
		*reason = ELT_SCALE_MEASURING;
		return state->wanted;
	}
	return Min(want, 2 * state->wanted);
}

static int
step_down(const EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
		  int want, double now, EltScaleReason *reason)
{
	if (want == 0)
		return 0;				/* nothing came for longer than any of the
								 * below */
	if (measure->backlog > limits->lower_s * total_rate(state, state->wanted, now))
	{
		*reason = ELT_SCALE_DRAINING;
		return state->wanted;
	}
	for (int workers = state->wanted; workers > want; workers--)
	{
		if (now - state->wanted_at[workers] <= limits->scale_down_s)
		{
			*reason = workers == state->wanted ? ELT_SCALE_WINDOW : ELT_SCALE_LESS;
			return workers;
		}
	}
	*reason = ELT_SCALE_LESS;
	return want;
}

/* The ceiling, what the server can start, and what the user allows. */
static int
bound(const EltScaleState *state, const EltScaleMeasure *measure, const EltScaleLimits *limits,
	  int wanted, EltScaleReason *reason)
{
	int			startable = measure->running + Max(measure->free_processes, 0);
	int			most = Min(limits->max_workers, ELT_SCALE_MAX_WORKERS);
	int			least = Min(limits->min_workers, most);

	if (state->ceiling > 0 && wanted > state->ceiling)
	{
		wanted = state->ceiling;
		*reason = ELT_SCALE_CEILING;
	}
	if (wanted > most)
	{
		wanted = most;
		*reason = ELT_SCALE_MAX;
	}
	if (wanted < least)
	{
		wanted = least;
		*reason = ELT_SCALE_MIN;
	}
	if (wanted > startable)
	{
		wanted = startable;
		*reason = ELT_SCALE_NO_PROCESS;
	}
	return wanted;
}
