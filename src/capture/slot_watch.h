/*
 * slot_watch.h
 *	  Looks after slots: what they hold, heartbeats, elt.max_slot_lag.
 */
#ifndef ELT_SLOT_WATCH_H
#define ELT_SLOT_WATCH_H

/*
 * For the supervisor, in each round: looks after the slots of local sources
 * once it is time.  The worker elt_watch_main does it for remote ones.
 */
extern void elt_slot_watch_local(bool has_sources);

/* Until then, in ms. */
extern long elt_slot_watch_ms(void);

#endif							/* ELT_SLOT_WATCH_H */
