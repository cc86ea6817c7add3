/*
 * simulate.c
 *	  elt.simulate_autoscale(): the autoscaler on a load that is described.
 *
 * Second by second, with the controller that scales the real pool and a model
 * of workers that is as simple as it can be: each does worker_rate changes per
 * second, all together at most max_rate (a shared disk or processor), or
 * lock_bound, where they are seen waiting for each other.  With noise they are
 * faster or slower by up to that share, anew each second, as on a machine that
 * is not theirs alone.  Nothing is random: the same profile gives the same rows.
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "compat.h"
#include "control/autoscale.h"
#include "elt.h"
#include "funcapi.h"
#include "guc.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#define MAX_SECONDS		86400
#define MAX_STEPS		1000

PG_FUNCTION_INFO_V1(elt_simulate_autoscale);

typedef struct Profile
{
	double		seconds;
	double		worker_rate;
	double		max_rate;		/* 0: no limit; as the next */
	double		lock_bound;
	double		start_backlog;
	double		noise;			/* share of the rate, 0 to 0.9 */
	double		processes;		/* that the server can start for the pool */
	double		min_workers;
	double		max_workers;
	EltScaleLimits limits;
	int			nsteps;			/* arrival rates, each from its second on */
	double		step_at[MAX_STEPS];
	double		step_rate[MAX_STEPS];
} Profile;

static void read_profile(Jsonb *json, Profile *profile);
static double read_number(const char *name, const JsonbValue *value, double min, double max);
static void read_arrival(const JsonbValue *value, Profile *profile);
static void bad_arrival(void) pg_attribute_noreturn();
static double arrival_at(const Profile *profile, int second);
static double capacity_of(const Profile *profile, int workers);
static double noise_at(const Profile *profile, int second);

Datum
elt_simulate_autoscale(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Profile    *profile = palloc0(sizeof(Profile));
	EltScaleState state;
	double		backlog;
	double		worker_seconds = 0;

	read_profile(PG_GETARG_JSONB_P(0), profile);
	InitMaterializedSRF(fcinfo, 0);
	elt_autoscale_init(&state, 0);
	backlog = profile->start_backlog;

	for (int second = 0; second < (int) profile->seconds; second++)
	{
		EltScaleMeasure measure = {.seconds = 1};
		EltScaleReason reason;
		Datum		values[7];
		bool		nulls[7] = {0};
		double		arrival = arrival_at(profile, second);
		double		capacity;

		/* who comes while nobody is there wakes the first worker */
		if (state.wanted == 0 && arrival + backlog > 0)
			elt_autoscale_demand(&state, &profile->limits, second);
		measure.running = Min(state.wanted, (int) profile->processes);
		capacity = capacity_of(profile, measure.running) * noise_at(profile, second);
		measure.arrived = arrival;
		measure.completed = Min(backlog + arrival, capacity);
		backlog += arrival - measure.completed;
		measure.backlog = backlog;
		if (capacity > 0)
			measure.busy_s = measure.running * measure.completed / capacity;
		if (profile->lock_bound > 0 && capacity < measure.running * profile->worker_rate)
			measure.waiting = (int) rint(Max(measure.busy_s - profile->lock_bound / profile->worker_rate, 0));
		measure.free_processes = (int) profile->processes - measure.running;
		worker_seconds += measure.running;
		reason = elt_autoscale(&state, &measure, &profile->limits, second + 1);

		values[0] = Int32GetDatum(second);
		values[1] = Float8GetDatum(arrival);
		values[2] = Int64GetDatum((int64) rint(backlog));
		values[3] = Int32GetDatum(measure.running);
		values[4] = Int32GetDatum(state.wanted);
		values[5] = CStringGetTextDatum(elt_scale_reason(reason));
		values[6] = Float8GetDatum(worker_seconds);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static double
capacity_of(const Profile *profile, int workers)
{
	double		capacity = workers * profile->worker_rate;

	if (profile->max_rate > 0)
		capacity = Min(capacity, profile->max_rate);
	if (profile->lock_bound > 0)
		capacity = Min(capacity, profile->lock_bound);
	return capacity;
}

/* The factor of a second; murmur's finalizer, so that seconds are independent. */
static double
noise_at(const Profile *profile, int second)
{
	double		share = murmurhash32((uint32) second + 1) / (double) PG_UINT32_MAX;

	return 1 + profile->noise * (2 * share - 1);
}

static double
arrival_at(const Profile *profile, int second)
{
	double		rate = 0;

	for (int i = 0; i < profile->nsteps && profile->step_at[i] <= second; i++)
		rate = profile->step_rate[i];
	return rate;
}

/* ---- the profile ---- */

static void
read_profile(Jsonb *json, Profile *profile)
{
	struct
	{
		const char *name;
		double	   *number;
		double		min;
		double		max;
	}			fields[] = {
		{"seconds", &profile->seconds, 1, MAX_SECONDS},
		{"worker_rate", &profile->worker_rate, 0.001, 1e9},
		{"max_rate", &profile->max_rate, 0, 1e12},
		{"lock_bound", &profile->lock_bound, 0, 1e12},
		{"start_backlog", &profile->start_backlog, 0, 1e15},
		{"noise", &profile->noise, 0, 0.9},
		{"processes", &profile->processes, 0, ELT_SCALE_MAX_WORKERS},
		{"min", &profile->min_workers, 0, ELT_SCALE_MAX_WORKERS},
		{"max", &profile->max_workers, 0, ELT_SCALE_MAX_WORKERS},
		{"target_backlog", &profile->limits.upper_s, 1, 1e9},
		{"drained_backlog", &profile->limits.lower_s, 0, 1e9},
		{"catchup_target", &profile->limits.catchup_s, 1, 1e9},
		{"scale_down_window", &profile->limits.scale_down_s, 0, 1e9},
		{"idle_timeout", &profile->limits.idle_s, 0, 1e9},
	};
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	int			field = -1;

	profile->seconds = 600;
	profile->processes = ELT_SCALE_MAX_WORKERS;
	profile->min_workers = elt_min_workers;
	profile->max_workers = elt_max_workers;
	profile->limits.upper_s = elt_target_backlog_s;
	profile->limits.lower_s = elt_drained_backlog_ms / 1000.0;
	profile->limits.catchup_s = elt_catchup_target_s;
	profile->limits.scale_down_s = elt_scale_down_window_s;
	profile->limits.idle_s = elt_idle_timeout_s;
	if (!JB_ROOT_IS_OBJECT(json))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the load profile is not a JSON object"),
				 errhint("Pass an object such as {\"seconds\": 600, \"worker_rate\": 10000, \"arrival\": [[0, 1000], [60, 20000]]}.")));

	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			char	   *name = pnstrdup(value.val.string.val, value.val.string.len);

			for (field = 0; field < lengthof(fields) && strcmp(name, fields[field].name) != 0; field++)
				;
			if (field == lengthof(fields) && strcmp(name, "arrival") != 0)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("unknown key \"%s\" in the load profile", name),
						 errhint("The keys are seconds, worker_rate, arrival, start_backlog, max_rate, lock_bound, noise, processes, min, max, "
								 "target_backlog, drained_backlog, catchup_target, scale_down_window and idle_timeout.")));
		}
		else if (token == WJB_VALUE && field < lengthof(fields))
			*fields[field].number = read_number(fields[field].name, &value, fields[field].min, fields[field].max);
		else if (token == WJB_VALUE)
			read_arrival(&value, profile);
	}
	if (profile->worker_rate <= 0 || profile->nsteps == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the load profile lacks \"%s\"", profile->nsteps == 0 ? "arrival" : "worker_rate"),
				 errhint("It needs at least {\"worker_rate\": 10000, \"arrival\": [[0, 1000], [60, 20000]]}: "
						 "changes per second that a worker does, and that arrive from a second on.")));
	profile->limits.min_workers = (int) profile->min_workers;
	profile->limits.max_workers = (int) profile->max_workers;
}

static double
read_number(const char *name, const JsonbValue *value, double min, double max)
{
	double		number = -1;

	if (value->type == jbvNumeric)
		number = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, NumericGetDatum(value->val.numeric)));
	if (!(number >= min && number <= max))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of the load profile is not a number from %g to %g", name, min, max),
				 errhint("Times are in seconds, rates in changes per second.")));
	return number;
}

/* [[second, rate], ...] in the order of seconds */
static void
read_arrival(const JsonbValue *value, Profile *profile)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	element;
	int			depth = 0;
	int			numbers = 0;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		bad_arrival();
	iterator = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &element, false)) != WJB_DONE)
	{
		if (token == WJB_BEGIN_ARRAY)
		{
			numbers = 0;
			if (++depth > 2 || profile->nsteps == MAX_STEPS)
				bad_arrival();
		}
		else if (token == WJB_END_ARRAY)
		{
			if (depth-- == 2)
			{
				if (numbers != 2 || (profile->nsteps > 0 &&
									 profile->step_at[profile->nsteps] <= profile->step_at[profile->nsteps - 1]))
					bad_arrival();
				profile->nsteps++;
			}
		}
		else if (token == WJB_ELEM && depth == 2 && numbers < 2)
		{
			double		number = read_number("arrival", &element, 0, 1e12);

			if (numbers++ == 0)
				profile->step_at[profile->nsteps] = number;
			else
				profile->step_rate[profile->nsteps] = number;
		}
		else
			bad_arrival();
	}
}

static void
bad_arrival(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("\"arrival\" of the load profile is not an array of steps"),
			 errhint("Pass up to %d pairs of second and rate, in order, such as [[0, 1000], [60, 20000], [120, 1000]].", MAX_STEPS)));
}
