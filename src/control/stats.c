/*
 * stats.c
 *	  How long changes take from their commit at the source to their commit
 *	  in the target.
 *
 * One entry per pipeline with two histograms: the current minute and the one
 * before it, so that a quantile covers the last one to two minutes.  Buckets
 * grow by the fourth root of two, which bounds the error of a quantile at a
 * tenth of its value.  Counts are atomics; an entry is found and rotated
 * under a lock.  The table has a fixed size: pipelines beyond it have no
 * quantiles.
 */
#include "postgres.h"

#include <math.h>

#include "control/stats.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#define MAX_PIPELINES		256
#define NBUCKETS			128
#define BUCKETS_PER_DOUBLING 4
#define PERIOD_MS			60000

typedef struct Histogram
{
	pg_atomic_uint64 buckets[NBUCKETS];
} Histogram;

typedef struct PipelineStats
{
	Oid			dboid;			/* InvalidOid: free */
	int64		pipeline_id;
	TimestampTz period_start;
	int			current;		/* index into periods */
	Histogram	periods[2];
} PipelineStats;

typedef struct Stats
{
	LWLock	   *lock;
	PipelineStats pipelines[MAX_PIPELINES];
} Stats;

static Stats *stats = NULL;

static PipelineStats *find_entry(int64 pipeline_id, bool create);
static void rotate(PipelineStats *entry, TimestampTz now);
static int	bucket_of(int64 latency_us);
static double bucket_limit_ms(int bucket);

void
elt_stats_request_shmem(void)
{
	RequestAddinShmemSpace(sizeof(Stats));
	RequestNamedLWLockTranche("elt_stats", 1);
}

void
elt_stats_init_shmem(void)
{
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	stats = ShmemInitStruct("elt stats", sizeof(Stats), &found);
	if (!found)
	{
		memset(stats, 0, sizeof(Stats));
		stats->lock = &(GetNamedLWLockTranche("elt_stats"))->lock;
		for (int i = 0; i < MAX_PIPELINES; i++)
			for (int period = 0; period < 2; period++)
				for (int bucket = 0; bucket < NBUCKETS; bucket++)
					pg_atomic_init_u64(&stats->pipelines[i].periods[period].buckets[bucket], 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
elt_stats_latency(int64 pipeline_id, int64 latency_us)
{
	static PipelineStats *entry = NULL; /* a batch is of one pipeline */
	TimestampTz now = GetCurrentTimestamp();

	if (stats == NULL)
		return;
	if (entry == NULL || entry->pipeline_id != pipeline_id || entry->dboid != MyDatabaseId)
		entry = find_entry(pipeline_id, true);
	if (entry == NULL)
		return;
	if (TimestampDifferenceExceeds(entry->period_start, now, PERIOD_MS))
		rotate(entry, now);
	pg_atomic_fetch_add_u64(&entry->periods[entry->current].buckets[bucket_of(latency_us)], 1);
}

double
elt_stats_latency_quantile(int64 pipeline_id, double quantile)
{
	PipelineStats *entry;
	uint64		counts[NBUCKETS];
	uint64		total = 0;
	uint64		seen = 0;

	if (stats == NULL)
		return -1;
	entry = find_entry(pipeline_id, false);
	if (entry == NULL)
		return -1;
	if (TimestampDifferenceExceeds(entry->period_start, GetCurrentTimestamp(), PERIOD_MS))
		rotate(entry, GetCurrentTimestamp());

	for (int i = 0; i < NBUCKETS; i++)
	{
		counts[i] = pg_atomic_read_u64(&entry->periods[0].buckets[i]) +
			pg_atomic_read_u64(&entry->periods[1].buckets[i]);
		total += counts[i];
	}
	if (total == 0)
		return -1;
	for (int i = 0; i < NBUCKETS; i++)
	{
		seen += counts[i];
		if (seen >= quantile * total)
			return bucket_limit_ms(i);
	}
	return bucket_limit_ms(NBUCKETS - 1);
}

static PipelineStats *
find_entry(int64 pipeline_id, bool create)
{
	PipelineStats *entry = NULL;

	LWLockAcquire(stats->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	for (int i = 0; i < MAX_PIPELINES; i++)
	{
		PipelineStats *candidate = &stats->pipelines[i];

		if (candidate->dboid == MyDatabaseId && candidate->pipeline_id == pipeline_id)
		{
			entry = candidate;
			break;
		}
		if (candidate->dboid == InvalidOid && create)
		{
			candidate->dboid = MyDatabaseId;
			candidate->pipeline_id = pipeline_id;
			candidate->period_start = GetCurrentTimestamp();
			entry = candidate;
			break;
		}
	}
	LWLockRelease(stats->lock);
	return entry;
}

/* Forgets the older of the two periods, both where nothing came for longer. */
static void
rotate(PipelineStats *entry, TimestampTz now)
{
	LWLockAcquire(stats->lock, LW_EXCLUSIVE);
	if (TimestampDifferenceExceeds(entry->period_start, now, PERIOD_MS))
	{
		bool		both = TimestampDifferenceExceeds(entry->period_start, now, 2 * PERIOD_MS);

		for (int bucket = 0; bucket < NBUCKETS; bucket++)
		{
			pg_atomic_write_u64(&entry->periods[1 - entry->current].buckets[bucket], 0);
			if (both)
				pg_atomic_write_u64(&entry->periods[entry->current].buckets[bucket], 0);
		}
		entry->current = 1 - entry->current;
		entry->period_start = now;
	}
	LWLockRelease(stats->lock);
}

static int
bucket_of(int64 latency_us)
{
	int			bucket;

	if (latency_us <= 1)
		return 0;
	bucket = (int) (log2((double) latency_us) * BUCKETS_PER_DOUBLING);
	return Min(bucket, NBUCKETS - 1);
}

static double
bucket_limit_ms(int bucket)
{
	return exp2((double) (bucket + 1) / BUCKETS_PER_DOUBLING) / 1000.0;
}
