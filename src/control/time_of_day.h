/*
 * time_of_day.h
 *	  What is done when the time of day was set back.
 */
#ifndef ELT_TIME_OF_DAY_H
#define ELT_TIME_OF_DAY_H

extern void elt_time_of_day_watch(void);

#endif
