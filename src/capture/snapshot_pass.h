/*
 * snapshot_pass.h
 *	  A pass: the tables of a source that are copied under one snapshot.
 */
#ifndef ELT_SNAPSHOT_PASS_H
#define ELT_SNAPSHOT_PASS_H

#include "access/xlogdefs.h"
#include "capture/change.h"
#include "capture/stream.h"
#include "catalog.h"
#include "datatype/timestamp.h"

typedef struct EltPass
{
	bool		exists;
	bool		copying;		/* it is aligned with the stream */
	int			run;
	XLogRecPtr	lsn;
	TimestampTz taken_at;
	char	   *exported;
	char	   *resumed;		/* what this run reads under; NULL: it is the
								 * first */
	int64		end_leaf;
	bool		chunks;			/* something is still to be copied */
} EltPass;

/* In the caller's memory context; opens a local transaction of its own. */
extern void elt_pass_read(int64 source_id, EltPass *pass);

typedef enum EltPassOutcome
{
	ELT_PASS_BEGUN,				/* a transaction is open on the connection */
	ELT_PASS_LATER,				/* what waits cannot be copied now */
	ELT_PASS_NOTHING			/* no table waits */
} EltPassOutcome;

/*
 * elt_pass_plan
 *		Begins a pass of tables that wait, where there is none.
 *
 * elt_pass_resume
 *		Goes on with a pass whose leader is gone, under a new snapshot.
 *		Tables for which that cannot be exact are given back: they wait for
 *		another pass.  False where nothing is left of it.
 *
 * elt_pass_seal
 *		Shows readers the tables that are copied in full; ends the pass after
 *		the last one.  True where it ended.
 *
 * elt_pass_discard
 *		Gives all its tables back.
 *
 * For the leader, outside a local transaction.  *stream is connected where it
 * is NULL.
 */
extern EltPassOutcome elt_pass_plan(const EltSource *source, EltStream **stream);
extern bool elt_pass_resume(const EltSource *source, EltStream **stream, EltPass *pass);
extern bool elt_pass_seal(const EltSource *source);

/*
 * The first half of elt_pass_seal, in the caller's transaction, which has
 * locked the pass: seals the tables that lack nothing.  True where there were
 * any.
 */
extern bool elt_pass_seal_tables(const EltSource *source);
extern void elt_pass_discard(int64 source_id);

/* Gives a table back that cannot be copied, whoever finds out; it waits a while. */
extern void elt_pass_give_back(int64 source_id, const char *relation, const char *error);

/* The version of a shape, made where it is missing; in a short local transaction. */
extern int	elt_pass_schema_version(int64 source_id, const EltRelation *relation, XLogRecPtr lsn);

extern void elt_pass_connect(const EltSource *source, EltStream **stream);

/* More changes than these while a copy was interrupted: it begins anew. */
#define ELT_PASS_MAX_CHANGED	1000000

#endif							/* ELT_SNAPSHOT_PASS_H */
