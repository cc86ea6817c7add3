/*
 * catalog.h
 *	  elt's own tables, as seen from C: the home of SPI query text.
 *
 * All functions run as the extension's owner with a pinned search_path,
 * whoever calls.  They need a transaction; SPI is connected and finished
 * inside; results are allocated in the caller's memory context.
 */
#ifndef ELT_CATALOG_H
#define ELT_CATALOG_H

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/tuplestore.h"

/*
 * elt_spi_begin / elt_spi_end
 *		Switch to the extension's owner, pin search_path, connect SPI, and back.
 */
typedef struct EltSpi
{
	Oid			save_user;
	int			save_sec_context;
	int			save_nest_level;
	MemoryContext caller_context;
} EltSpi;

extern void elt_spi_begin(EltSpi *spi);
extern void elt_spi_end(EltSpi *spi);

/*
 * elt_spi_run
 *		Runs a statement with parameters; returns the number of rows.  nulls
 *		may be NULL.  The plan is kept for the session under the address of
 *		the query text, so this must be a string literal.
 *
 * elt_spi_use_indexes
 *		The statements that follow, until elt_spi_end, are planned without
 *		sequential scans.  For those that look rows up one by one: their plans
 *		are kept while a table grows from a page to millions of rows.
 *
 * elt_spi_show
 *		Shows rows to the statements that follow, until elt_spi_end, as a
 *		relation of that name.
 *
 * elt_spi_execute
 *		Runs statements that are built at run time (DDL), without parameters.
 */
extern uint64 elt_spi_run(const char *query, int nargs, const Oid *types, Datum *values, const char *nulls);
extern void elt_spi_use_indexes(void);
extern void elt_spi_show(const char *name, TupleDesc desc, Tuplestorestate *rows, int nrows);
extern void elt_spi_execute(const char *statements);

/* Column of a result row, copied into the caller's context. NULL / 0 / false where null. */
extern char *elt_spi_text(EltSpi *spi, uint64 row, int column);
extern int64 elt_spi_int64(uint64 row, int column);
extern bool elt_spi_bool(uint64 row, int column);
extern Datum elt_spi_datum(EltSpi *spi, uint64 row, int column, bool *isnull);

typedef struct EltSource
{
	int64		source_id;
	char	   *name;
	Oid			owner;
	char	   *conninfo;		/* NULL: this database */
	char	   *publication;
	bool		own_publication;
	char	   *slot_name;
	bool		snapshot;		/* initial copy wanted */
	bool		enabled;
	bool		at_home;		/* false: this row was restored from another
								 * cluster or database */
	int			partition_changes;	/* change_ids per leaf of its raw staging */
	bool		failover;		/* the slot is to be kept on standbys too */
	XLogRecPtr	start_lsn;		/* Invalid: the slot is not made yet */
	int			copy_work;		/* how many snapshot workers have something to
								 * do; 0: no table waits for a copy */
	char	   *system_id;		/* of the server it was made in; NULL: not
								 * known */
	TimeLineID	timeline;		/* likewise; 0 */
	bool		lost;			/* its slot has not what comes next */
} EltSource;

extern EltSource *elt_catalog_source(const char *name, bool missing_ok);
extern EltSource *elt_catalog_source_by_id(int64 source_id);
extern List *elt_catalog_sources(void);

/* Whether a table of the source waits for its first copy. */
extern bool elt_catalog_has_pending_copies(int64 source_id);

/* A source that was dropped, whose slot is still to be removed. */
typedef struct EltDroppedSource
{
	int64		source_id;
	char	   *name;
	char	   *conninfo;
	char	   *slot_name;
} EltDroppedSource;

extern List *elt_catalog_dropped_sources(void);

/*
 * Only one of them at a time: a source's capture and snapshot workers, for the
 * life of their sessions, and a transaction that drops the source (exclusive),
 * to its end.  The latter does not wait: false where a worker is there.
 */
extern bool elt_catalog_lock_source(int64 source_id, bool exclusive);
extern void elt_catalog_forget_dropped(int64 source_id);
extern void elt_catalog_note_capture_end(int64 source_id, int64 changes, TimestampTz last_commit_ts,
										 const char *error, TimestampTz error_at);

typedef struct EltPipeline
{
	int64		pipeline_id;
	char	   *name;
	int64		source_id;
	char	   *source;
	char	   *relation;
	Oid			raw;			/* the relation's partition of raw staging;
								 * InvalidOid: none yet */
	Oid			raw_root;		/* elt_raw.<source>, for the owner's SELECT
								 * right */
	Oid			target;
	char	   *target_name;	/* as last seen, quoted */
	Oid			target_owner;
	char	   *transform;		/* NULL: by column name */
	bool		append;			/* mode append */
	bool		history;		/* mode history; neither: upsert */
	bool		late;			/* history: what is applied may be older than
								 * what the target has */
	char	   *truncates;		/* late: when the source's table was truncated
								 * meanwhile, as a timestamptz[]; NULL: never */
	List	   *key;			/* of char *: target columns */
	char		ordering;		/* 's' strict, 'p' supersede, 'u' unordered */
	Jsonb	   *options;
	int			lanes;
	Oid			owner;
	char	   *search_path;
	int			version;
	char		state;			/* 'r' running, 'p' paused, 'b' blocked */
	TimestampTz next_probe_at;	/* blocked: when the next attempt is due */
	int			probes;
	int			retries;		/* in a row, by this process */
	int			batch_size;		/* changes that this process reads at once; 0:
								 * as configured */
} EltPipeline;

extern EltPipeline *elt_catalog_pipeline(const char *name, bool missing_ok);
extern List *elt_catalog_pipelines(void);

/* What elt.set_worker_bounds() set; -1: not set. */
extern void elt_catalog_worker_bounds(int *min_workers, int *max_workers);

#endif							/* ELT_CATALOG_H */
