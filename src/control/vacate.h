/*
 * vacate.h
 *	  Making room for commands that want a database without connections.
 */
#ifndef ELT_VACATE_H
#define ELT_VACATE_H

extern void elt_vacate_install_hook(void);

#endif							/* ELT_VACATE_H */
