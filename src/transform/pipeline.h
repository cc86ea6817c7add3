/*
 * pipeline.h
 *	  What a pipeline is made of: checked options, and the statements that
 *	  apply a batch.
 */
#ifndef ELT_PIPELINE_H
#define ELT_PIPELINE_H

#include "catalog.h"

typedef enum EltDeletes
{
	ELT_DELETES_APPLY,
	ELT_DELETES_IGNORE
} EltDeletes;

typedef struct EltPipelineOptions
{
	int			batch_changes;	/* 0: elt.batch_changes */
	EltDeletes	deletes;
	bool		truncate;		/* apply it; default true for upsert, false for append */
	bool		allow_volatile;
	bool		unmarked_output;	/* target writes may be captured again */
} EltPipelineOptions;

/* Raises 22023 naming the known options where one is unknown or wrong. */
extern void elt_pipeline_options(const Jsonb *options, bool append, int *lanes, EltPipelineOptions *result);

#endif							/* ELT_PIPELINE_H */
