/*
 * elt.h
 *	  Entry points that the postmaster and the server look up by name.
 */
#ifndef ELT_H
#define ELT_H

#include "fmgr.h"

#define ELT_LIBRARY	"elt"
#define ELT_VERSION	"1.0"		/* of the install script that this library
								 * fits */

/*
 * How the content of a heartbeat begins: a logical message of prefix elt that
 * is not staged.  Anybody can write one.
 */
#define ELT_HEARTBEAT	"{\"heartbeat\":"

extern PGDLLEXPORT void elt_launcher_main(Datum main_arg);
extern PGDLLEXPORT void elt_supervisor_main(Datum main_arg);
extern PGDLLEXPORT void elt_capture_main(Datum main_arg);
extern PGDLLEXPORT void elt_cleaner_main(Datum main_arg);
extern PGDLLEXPORT void elt_snapshot_main(Datum main_arg);
extern PGDLLEXPORT void elt_watch_main(Datum main_arg);
extern PGDLLEXPORT void elt_transform_main(Datum main_arg);

#endif							/* ELT_H */
