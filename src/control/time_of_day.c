/*
 * time_of_day.c
 *	  Notices that the time of day was set back.
 *
 * Tables hold times that are waited for: the next probe of a blocked pipeline,
 * the next try of a quarantined change, since when an alert is pending.  They
 * are times of day, because people read them and a restart has to find them
 * again.  Where the clock is set back by an hour, each of them is an hour
 * farther away than anybody meant.  So elt.pull_times() brings nearer what is
 * farther away than it can have been put: at the start of the supervisor, for
 * the clock may have been set while the server was down, and whenever the
 * time of day has lost more than TOLERANCE_US against the clock that nobody
 * sets.  A clock that is set ahead makes things due early, which is harmless.
 *
 * Failure: an error ends the supervisor, which starts again and with it this.
 */
#include "postgres.h"

#include "catalog.h"
#include "clock.h"
#include "control/time_of_day.h"
#include "control/registry.h"
#include "control/worker.h"

#define TOLERANCE_US	(1 * USECS_PER_SEC)

void
elt_time_of_day_watch(void)
{
	static bool known = false;
	static int64 offset;
	int64		before = offset;
	EltSpi		spi;

	offset = GetCurrentTimestamp() - elt_clock_now();
	if (known && offset >= before - TOLERANCE_US)
		return;
	if (known)
		ereport(LOG,
				(errmsg("the time of day was set back by %.0f s", (before - offset) / (double) USECS_PER_SEC),
				 errdetail("What waits for a time goes on as if it had not been.")));
	known = true;

	elt_worker_begin("looking for times that are too far away");
	if (elt_worker_holds_extension())
	{
		elt_spi_begin(&spi);
		elt_spi_run("SELECT elt.pull_times()", 0, NULL, NULL, NULL);
		if (elt_spi_bool(0, 1))
			elt_config_changed();
		elt_spi_end(&spi);
	}
	elt_worker_commit();
}
