/*
 * owner.h
 *	  Running SQL as the role that wrote it.
 */
#ifndef ELT_OWNER_H
#define ELT_OWNER_H

/* What is put aside while the owner is at work. */
typedef struct EltOwnerScope
{
	Oid			user;
	int			sec_context;
	int			nest_level;
} EltOwnerScope;

/*
 * Switches to the owner, from whom SET ROLE cannot get back, at a GUC nest
 * level that is thrown away, with a stored search_path; connects SPI.  An
 * error leaves through the caller's subtransaction, which restores all.
 */
extern void elt_owner_enter(Oid owner, const char *search_path, EltOwnerScope *scope);
extern void elt_owner_leave(const EltOwnerScope *scope);

/*
 * Drops what the owner's code may have left in the session of a worker: no
 * abort ends session-level advisory locks.  In a transaction of its own, which
 * takes no advisory lock before.
 */
extern void elt_owner_clean_session(void);

/*
 * Lets walsenders plan as the owner of the table that is read, so that what is
 * planted on it does not run as who copies it.
 */
extern void elt_owner_install_hook(void);

#endif							/* ELT_OWNER_H */
