/*
 * options.h
 *	  The options of a pipeline.
 */
#ifndef ELT_OPTIONS_H
#define ELT_OPTIONS_H

#include "utils/jsonb.h"

typedef struct EltPipelineOptions
{
	int			lanes;
	int			batch_changes;	/* 0: as the setting elt.batch_changes says */
	int			max_workers;	/* at this pipeline at a time; 0: all */
	bool		apply_deletes;
	bool		apply_truncate;
	bool		allow_volatile;
	bool		unmarked_output;
} EltPipelineOptions;

/* Reads and checks them; raises 22023. */
extern void elt_options_read(Jsonb *json, bool append, EltPipelineOptions *options);

#endif							/* ELT_OPTIONS_H */
