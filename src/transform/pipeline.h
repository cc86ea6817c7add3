/*
 * pipeline.h
 *	  What SQL functions of pipelines share.
 */
#ifndef ELT_PIPELINE_H
#define ELT_PIPELINE_H

#include "catalog.h"

/* Finds a pipeline that the caller may change; raises 42704 and 42501, and 55006 inside a batch. */
extern EltPipeline *elt_pipeline_own(const char *name);

/* Waits for the batches that are under way, and keeps others out until the end of the transaction. */
extern void elt_pipeline_lock(const EltPipeline *pipeline);

#endif							/* ELT_PIPELINE_H */
