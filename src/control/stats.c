/*
 * stats.c
 *	  What pipelines did lately, in shared memory: how long changes took from
 *	  their commit at the source to their commit in the target, how many were
 *	  read and how many failed, and when a failed one is to be tried again.
 *
 * One entry per pipeline.  Latencies: two histograms, the current minute and
 * the one before it, so that a quantile covers the last one to two minutes.
 * Buckets grow by the fourth root of two, which bounds the error of a quantile
 * at a tenth of its value.  Counts of changes: a ring of five minutes in slots
 * of five seconds.
 *
 * Histogram counts are atomics; the rest is under a lock, which a batch takes
 * once.  The table has a fixed size: when it is full, the pipeline that was
 * quiet for longest gives its entry up.
 */
#include "postgres.h"

#include <math.h>

#include "clock.h"
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
#define SLOT_MS				5000
#define NSLOTS				60

typedef struct Histogram
{
	pg_atomic_uint64 buckets[NBUCKETS];
} Histogram;

/* What became of the changes of SLOT_MS. */
typedef struct Outcomes
{
	int64		epoch;			/* which SLOT_MS since 2000 */
	int64		read;
	int64		failed;
} Outcomes;

typedef struct PipelineStats
{
	Oid			dboid;			/* InvalidOid: free */
	int64		pipeline_id;
	TimestampTz used_at;
	TimestampTz retry_at;		/* when a quarantined change is due; 0: none */
	Outcomes	outcomes[NSLOTS];
	TimestampTz period_start;
	int			current;		/* index into periods */
	Histogram	periods[2];
} PipelineStats;

typedef struct Stats
{
	LWLock	   *lock;
	pg_atomic_uint64 failed_batches;
	PipelineStats pipelines[MAX_PIPELINES];
} Stats;

static Stats *stats = NULL;

static PipelineStats *find_entry(int64 pipeline_id, bool create);
static PipelineStats *find_entry_locked(int64 pipeline_id, bool create);
static int64 epoch_of(TimestampTz time);
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
		pg_atomic_init_u64(&stats->failed_batches, 0);
		for (int i = 0; i < MAX_PIPELINES; i++)
			for (int period = 0; period < 2; period++)
				for (int bucket = 0; bucket < NBUCKETS; bucket++)
					pg_atomic_init_u64(&stats->pipelines[i].periods[period].buckets[bucket], 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
elt_stats_latency(int64 pipeline_id, int64 latency_us, int changes)
{
	static PipelineStats *entry = NULL; /* a batch is of one pipeline */
	TimestampTz now = elt_clock_now();

	if (stats == NULL)
		return;
	if (entry == NULL || entry->pipeline_id != pipeline_id || entry->dboid != MyDatabaseId)
		entry = find_entry(pipeline_id, true);
	if (TimestampDifferenceExceeds(entry->period_start, now, PERIOD_MS))
		rotate(entry, now);
	pg_atomic_fetch_add_u64(&entry->periods[entry->current].buckets[bucket_of(latency_us)], changes);
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
	if (TimestampDifferenceExceeds(entry->period_start, elt_clock_now(), PERIOD_MS))
		rotate(entry, elt_clock_now());

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

void
elt_stats_note_outcomes(int64 pipeline_id, int64 read, int64 failed)
{
	int64		epoch = epoch_of(elt_clock_now());
	PipelineStats *entry;
	Outcomes   *slot;

	if (stats == NULL)
		return;
	LWLockAcquire(stats->lock, LW_EXCLUSIVE);
	entry = find_entry_locked(pipeline_id, true);
	slot = &entry->outcomes[epoch % NSLOTS];
	if (slot->epoch != epoch)
	{
		slot->epoch = epoch;
		slot->read = 0;
		slot->failed = 0;
	}
	slot->read += read;
	slot->failed += failed;
	LWLockRelease(stats->lock);
	if (failed > 0)
		pg_atomic_fetch_add_u64(&stats->failed_batches, 1);
}

uint64
elt_stats_failed_batches(void)
{
	return stats ? pg_atomic_read_u64(&stats->failed_batches) : 0;
}

void
elt_stats_outcomes(int64 pipeline_id, int seconds, int64 *read, int64 *failed)
{
	int64		last = epoch_of(elt_clock_now());
	int64		first = last - Min(seconds * INT64CONST(1000) / SLOT_MS, NSLOTS) + 1;
	PipelineStats *entry;

	*read = 0;
	*failed = 0;
	if (stats == NULL)
		return;
	LWLockAcquire(stats->lock, LW_SHARED);
	entry = find_entry_locked(pipeline_id, false);
	for (int i = 0; entry != NULL && i < NSLOTS; i++)
	{
		Outcomes   *slot = &entry->outcomes[i];

		if (slot->epoch >= first && slot->epoch <= last)
		{
			*read += slot->read;
			*failed += slot->failed;
		}
	}
	LWLockRelease(stats->lock);
}

void
elt_stats_forget_outcomes(int64 pipeline_id)
{
	PipelineStats *entry;

	if (stats == NULL)
		return;
	LWLockAcquire(stats->lock, LW_EXCLUSIVE);
	entry = find_entry_locked(pipeline_id, false);
	if (entry != NULL)
		memset(entry->outcomes, 0, sizeof(entry->outcomes));
	LWLockRelease(stats->lock);
}

void
elt_stats_set_retry_at(int64 pipeline_id, TimestampTz at)
{
	if (stats == NULL)
		return;
	LWLockAcquire(stats->lock, LW_EXCLUSIVE);
	find_entry_locked(pipeline_id, true)->retry_at = at;
	LWLockRelease(stats->lock);
}

TimestampTz
elt_stats_retry_at(int64 pipeline_id)
{
	PipelineStats *entry;
	TimestampTz at = 0;

	if (stats == NULL)
		return 0;
	LWLockAcquire(stats->lock, LW_SHARED);
	entry = find_entry_locked(pipeline_id, false);
	if (entry != NULL)
		at = entry->retry_at;
	LWLockRelease(stats->lock);
	return at;
}

static PipelineStats *
find_entry(int64 pipeline_id, bool create)
{
	PipelineStats *entry;

	LWLockAcquire(stats->lock, create ? LW_EXCLUSIVE : LW_SHARED);
	entry = find_entry_locked(pipeline_id, create);
	LWLockRelease(stats->lock);
	return entry;
}

/* Never NULL with create, which wants the lock in exclusive mode. */
static PipelineStats *
find_entry_locked(int64 pipeline_id, bool create)
{
	PipelineStats *spare = &stats->pipelines[0];

	for (int i = 0; i < MAX_PIPELINES; i++)
	{
		PipelineStats *entry = &stats->pipelines[i];

		if (entry->dboid == MyDatabaseId && entry->pipeline_id == pipeline_id)
		{
			if (create)
				entry->used_at = elt_clock_now();
			return entry;
		}
		if (entry->used_at < spare->used_at)
			spare = entry;
	}
	if (!create)
		return NULL;

	for (int period = 0; period < 2; period++)
		for (int bucket = 0; bucket < NBUCKETS; bucket++)
			pg_atomic_write_u64(&spare->periods[period].buckets[bucket], 0);
	memset(spare->outcomes, 0, sizeof(spare->outcomes));
	spare->retry_at = 0;
	spare->dboid = MyDatabaseId;
	spare->pipeline_id = pipeline_id;
	spare->used_at = elt_clock_now();
	spare->period_start = spare->used_at;
	return spare;
}

static int64
epoch_of(TimestampTz time)
{
	return time / (SLOT_MS * INT64CONST(1000));
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
