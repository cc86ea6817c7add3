/*
 * caution.h
 *	  Warnings about a pipeline's definition.
 */
#ifndef ELT_CAUTION_H
#define ELT_CAUTION_H

#include "catalog.h"

/* Warns of what is allowed in a definition and may not be meant. */
extern void elt_caution(const EltPipeline *pipeline, const EltSource *source);

#endif							/* ELT_CAUTION_H */
