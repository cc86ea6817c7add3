/*
 * encoding.h
 *	  Text of one encoding in another, without an error where it has no form
 *	  there.
 */
#ifndef ELT_ENCODING_H
#define ELT_ENCODING_H

typedef struct EltEncoding
{
	int			from;
	int			to;
	Oid			conversion;		/* InvalidOid: only validated */
} EltEncoding;

/* Needs the catalogs.  To and from SQL_ASCII texts are only validated. */
extern void elt_encoding_set(EltEncoding *encoding, int from, int to);

/*
 * Gives the text in the other encoding, in the current memory context or as it
 * is.  False, with the text untouched, where it is not valid or has no
 * equivalent.
 */
extern bool elt_encoding_convert(const EltEncoding *encoding, const char **text, Size *length);

/* The same of a name, in which bytes that fit nowhere become \xNN. */
extern char *elt_encoding_name(const EltEncoding *encoding, const char *name);

#endif							/* ELT_ENCODING_H */
