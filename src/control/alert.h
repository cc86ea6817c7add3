/*
 * alert.h
 *	  Evaluation of alert rules by the supervisor.
 */
#ifndef ELT_ALERT_H
#define ELT_ALERT_H

#include "control/registry.h"
#include "utils/jsonb.h"

/*
 * elt_alert_round
 *		Evaluates the rules that are due and sends what is to be told, in
 *		transactions of its own.  An error is logged and tried again later; it
 *		does not leave this function.
 */
extern void elt_alert_round(void);

/* What only the supervisor sees: a worker that failed; more workers wanted than the server can start. */
extern void elt_alert_note_failure(EltWorkerKind kind, const char *name);
extern void elt_alert_note_no_room(void);

/*
 * elt_alert_rule_query
 *		Runs the query of a user's rule as its owner, read-only; returns its
 *		rows as a jsonb array.  Raises the errors of the query.
 */
extern Jsonb *elt_alert_rule_query(const char *query, Oid owner, const char *search_path);

#endif							/* ELT_ALERT_H */
