/*
 * newer.h
 *	  Which quarantined changes have a newer one that was applied.
 */
#ifndef ELT_NEWER_H
#define ELT_NEWER_H

#include "catalog.h"
#include "transform/log.h"
#include "transform/options.h"

typedef struct EltNewerSearch
{
	const EltPipeline *pipeline;
	const EltPipelineOptions *options;
	Oid			raw;			/* the partition of raw staging */
	const int64 *positions;		/* of the lanes */
	int64		position;		/* the highest of them */
	bool		changes;		/* newer changes of the key are asked for */
	bool		truncates;		/* and newer truncates */
	EltLogRow **rows;			/* quarantined changes, in order of change_id */
	int			nrows;
} EltNewerSearch;

typedef struct EltNewer
{
	int64		change_id;		/* that was applied; 0: none */
	bool		truncate;
} EltNewer;

/* For each of the rows the newest such change. */
extern EltNewer *elt_newer_find(const EltNewerSearch *search);

#endif							/* ELT_NEWER_H */
