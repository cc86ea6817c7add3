/*
 * scaler.h
 *	  How many transform workers a database has: measured, decided, written down.
 */
#ifndef ELT_SCALER_H
#define ELT_SCALER_H

/*
 * All for the supervisor.  elt_scaler_configure reads pipelines and bounds
 * again, in the caller's transaction.  elt_scaler_round says how many workers
 * should run now, elt_scaler_nap_ms how long the supervisor may sleep, and
 * elt_scaler_write_log writes the decision down, if there was one.
 */
extern void elt_scaler_configure(void);
extern int	elt_scaler_round(void);
extern long elt_scaler_nap_ms(void);
extern void elt_scaler_write_log(void);

#endif							/* ELT_SCALER_H */
