/*
 * options.h
 *	  The options of a pipeline.
 */
#ifndef ELT_OPTIONS_H
#define ELT_OPTIONS_H

#include "catalog.h"
#include "utils/jsonb.h"

typedef struct EltPipelineOptions
{
	int			lanes;
	int			batch_changes;	/* 0: as the setting elt.batch_changes says */
	int			max_workers;	/* at this pipeline at a time; 0: all */
	int			weight;			/* of its share of a worker's time */
	const char *group;			/* of pipelines that settle together; NULL:
								 * none */
	bool		apply_deletes;	/* or mark the rows, see soft_deletes */
	bool		soft_deletes;
	bool		apply_truncate;
	bool		alert_truncate; /* tell of a truncate that is not applied */
	bool		allow_volatile;
	bool		unmarked_output;
	bool		breaker;		/* a flood of failures blocks the pipeline */
	int			time_limit_ms;	/* of one statement on a batch; 0: none; -1:
								 * as the setting elt.transform_time_limit
								 * says */
} EltPipelineOptions;

extern bool elt_pipeline_deletes_softly(const EltPipeline *pipeline);

/* Reads and checks them; raises 22023. */
extern void elt_options_read(Jsonb *json, bool append, EltPipelineOptions *options);

/*
 * The options with "changes" to them, where a null takes one back to its
 * default.  Only names are checked: read the result.
 */
extern Jsonb *elt_options_merge(Jsonb *options, Jsonb *changes);

#endif							/* ELT_OPTIONS_H */
