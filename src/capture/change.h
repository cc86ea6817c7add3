/*
 * change.h
 *	  One change as a value, and its wire form.
 */
#ifndef ELT_CHANGE_H
#define ELT_CHANGE_H

#include "access/xlogdefs.h"
#include "capture/value.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "utils/array.h"
#include "utils/jsonb.h"

#define ELT_WIRE_VERSION	2

/* The operations of raw staging's column "op". */
#define ELT_OP_SNAPSHOT	'r'
#define ELT_OP_INSERT	'c'
#define ELT_OP_UPDATE	'u'
#define ELT_OP_DELETE	'd'
#define ELT_OP_TRUNCATE	't'
#define ELT_OP_MESSAGE	'm'

/* Of the stream alone: a partition was truncated, and the table it appears under was not. */
#define ELT_OP_TRUNCATE_PART	'T'

typedef struct EltColumn
{
	char	   *name;
	int			name_length;	/* set by elt_relation_finish */
	char	   *type_name;		/* as format_type gives it, for
								 * schema_versions */
	char	   *type_code;		/* see value.h */
	EltType    *type;			/* parsed from type_code */
	bool		in_key;			/* of the replica identity index or the
								 * primary key */
	int			large_from;		/* copies: a text of that many bytes may have
								 * been stored out of line; 0: never */

	/* for schema_versions */
	uint32		number;			/* as pg_attribute has it: a renamed column
								 * keeps it */
	uint32		touched;		/* the transaction that last changed its
								 * definition */
	bool		has_default;	/* or is computed from others */
	char	   *missing;		/* the value of rows from before it was added;
								 * NULL: none is known */
} EltColumn;

/* The shape of a relation at one moment of the source's history. */
typedef struct EltRelation
{
	uint32		id;				/* its OID at the source */
	char	   *name;			/* schema.table, each part quoted where SQL
								 * asks for it */
	int			ncolumns;
	EltColumn  *columns;
	int			nkeys;			/* columns with in_key; 0: no key */
	int		   *order;			/* columns in the order jsonb stores its keys */
	char		identity;		/* its replica identity, as pg_class has it */
	uint32		natts;			/* columns that it ever had, published or not */
	uint32		filenode;		/* another one after a rewrite; 0: it has no
								 * file of its own */
	void	   *user_data;		/* the receiver's own; NULL in a new relation */
} EltRelation;

/* What WAL says of one column of one row. */
typedef enum EltField
{
	ELT_FIELD_ABSENT,			/* not in this image (old row of which only
								 * the key is known) */
	ELT_FIELD_NULL,
	ELT_FIELD_TEXT,				/* the type's text output, in "value" */
	ELT_FIELD_UNCHANGED,		/* out-of-line value that the update did not
								 * touch */
	ELT_FIELD_OVERSIZE,			/* too large to be staged; "length" holds its
								 * size in bytes */
	ELT_FIELD_BYTES,			/* its text is not valid in the encoding, or
								 * has no equivalent in the reader's: the
								 * bytes as they are, in "value" */
	ELT_FIELD_STAGED			/* was unchanged: in "staged", as it was
								 * staged before */
} EltField;

/*
 * The columns in "large" were stored out of line: an update that leaves them
 * alone will not carry them.
 */
typedef struct EltRow
{
	int			ncolumns;
	EltField   *fields;
	const char **values;		/* not NUL-terminated */
	int		   *lengths;
	int			nunchanged;		/* fields that are unchanged */
	int			noversize;		/* and oversize */
	int			nlarge;
	int		   *large;			/* columns, in order */
	JsonbValue *staged;			/* by column, no jbvBinary; NULL where there
								 * is none */
} EltRow;

typedef struct EltChange
{
	char		op;
	EltRelation *relation;		/* NULL for messages */
	XLogRecPtr	lsn;
	EltRow	   *old;			/* NULL where WAL has none */
	EltRow	   *new;
	const char *message;		/* op m: content, message_length bytes; NULL:
								 * too large to be staged */
	int			message_length;
	const char *partition;		/* op T: its name */
} EltChange;

/* ---- wire form: the plugin writes, the capture worker reads ---- */

typedef enum EltEventKind
{
	ELT_EVENT_BEGIN,			/* xid, commit_lsn, commit_ts */
	ELT_EVENT_RELATION,			/* change.relation: it looks like this from
								 * here on */
	ELT_EVENT_CHANGE,			/* change */
	ELT_EVENT_COMMIT			/* end_lsn */
} EltEventKind;

typedef struct EltEvent
{
	EltEventKind kind;
	TransactionId xid;
	XLogRecPtr	commit_lsn;		/* where the commit record starts */
	XLogRecPtr	end_lsn;		/* where it ends: the position to resume from */
	TimestampTz commit_ts;
	EltChange	change;			/* valid until the next call */
} EltEvent;

extern void elt_wire_start(StringInfo out); /* begins a message */
extern void elt_wire_begin(StringInfo out, TransactionId xid, XLogRecPtr commit_lsn, TimestampTz commit_ts);
extern void elt_wire_relation(StringInfo out, const EltRelation *relation);
extern void elt_wire_change(StringInfo out, const EltChange *change);
extern void elt_wire_commit(StringInfo out, XLogRecPtr end_lsn);

/*
 * A decoder lives as long as the stream: it keeps the relations that the
 * stream has described.  Input is not trusted: every length is checked, and
 * what does not parse raises ERRCODE_PROTOCOL_VIOLATION.
 *
 * elt_decoder_read starts on a message, elt_decoder_next gives its events one
 * by one and false at its end.  A transaction may span messages and a message
 * may hold many transactions.  A new description of a known relation gives a
 * new EltRelation (the old one is freed; free_user_data is called for it).
 */
typedef struct EltDecoder EltDecoder;

extern EltDecoder *elt_decoder_create(MemoryContext context, void (*free_user_data) (void *user_data));
extern void elt_decoder_read(EltDecoder *decoder, const char *data, int length);
extern bool elt_decoder_next(EltDecoder *decoder, EltEvent *event);

/* ---- JSON form: what raw staging and pg_logical_slot_get_changes show ---- */

/*
 * Sets name_length, type, nkeys and order from the rest, in the current
 * memory context.
 */
extern void elt_relation_finish(EltRelation *relation);

/*
 * Makes values oversize until the rest is within ELT_ROW_BYTES_MAX.  "large"
 * must have room for all columns.
 */
extern void elt_row_limit(EltRow *row);

/*
 * The image of a row as a jsonb object; an oversize column is the object
 * {"$oversize": bytes}, one whose text is not valid {"$bytes": "\\x..."}.
 * Columns that are absent or unchanged are left out, the names of the
 * unchanged ones come in *unchanged (a text[], NULL where there are none; pass
 * NULL where they are of no interest).
 */
extern Jsonb *elt_row_image(const EltRelation *relation, const EltRow *row, ArrayType **unchanged);

/* The names of columns as a text[]. */
extern ArrayType *elt_column_names(const EltRelation *relation, const int *columns, int n);

/* The key columns of a row as a jsonb object; NULL where relation has no key. */
extern Jsonb *elt_row_key(const EltRelation *relation, const EltRow *row);

/* Hash of the relation's name and the key; of the whole row where there is no key. */
extern int32 elt_row_key_hash(const EltRelation *relation, const EltRow *row);

/*
 * True where an update moved the row to another key: it is staged as a
 * delete of the old key and an insert of the new one.
 */
extern bool elt_change_moves_key(const EltChange *change);

/*
 * A message's topic, key and payload (see elt.emit).  Anybody who may write
 * can forge one: content that is not the object emit() makes comes back with
 * topic "elt" and the content as a JSON string in *payload, as \x hex where it
 * is not text, as {"$oversize": length} where it is NULL.
 */
extern void elt_message_parse(const char *content, int length,
							  char **topic, Jsonb **key, Jsonb **payload);

/* The document of one change, as pg_logical_slot_get_changes shows it. */
extern void elt_change_document(StringInfo out, const EltChange *change, TransactionId xid,
								XLogRecPtr commit_lsn, TimestampTz commit_ts);

#endif							/* ELT_CHANGE_H */
