/*
 * wire.c
 *	  The wire form of changes.
 *
 * The wire form is written by the output plugin and read by the capture
 * worker.  A message is a version byte and then events, each a letter and what
 * belongs to it:
 *
 *	B  xid, commit_lsn, commit_ts			a transaction begins
 *	R  length, id, attributes, file, identity, name, columns	a relation from here on
 *	c, u, d, t  id, lsn, which rows, rows	a change
 *	T  id, lsn, name						a partition of it was truncated alone
 *	m  lsn, length, content					a message
 *	M  lsn, length							one that is too large to be staged
 *	C  end_lsn								the transaction committed
 *
 * Counts, ids and lengths are variable-length integers (7 bits a byte, lowest
 * first), LSNs and times 8 bytes in network order.  A row is one integer per
 * column: what kind of field it is or, from FIELD_TEXT up, the length of the
 * text that follows.  So an integer column costs one byte and its digits, and
 * what is rare (a value that was stored out of line, bytes that are no text)
 * costs nothing where it does not occur.
 *
 * The reader trusts nothing.  Every length is held against what is left of the
 * message before it is used, names must be valid in the database's encoding
 * and values that are not are bytes (as is a message's content until
 * elt_message_parse has looked at it),
 * events must come in an order that makes sense, and no memory is asked for by
 * a number that the message has not paid for in bytes.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "capture/change.h"
#include "compat.h"
#include "mb/pg_wchar.h"
#include "port/pg_bswap.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define EVENT_BEGIN		'B'
#define EVENT_RELATION	'R'
#define EVENT_COMMIT	'C'
#define EVENT_OVERSIZE	'M'

/* a field as it travels */
#define FIELD_NULL		0
#define FIELD_ABSENT	1
#define FIELD_UNCHANGED	2
#define FIELD_OVERSIZE	3		/* its size follows; was out of line */
#define FIELD_LARGE		4		/* text that was out of line; its length
								 * follows */
#define FIELD_BYTES		5		/* no valid text; its length follows */
#define FIELD_TEXT		6		/* and up: 6 + length */

#define ROW_OLD			0x01
#define ROW_NEW			0x02

/* a column of a relation */
#define COLUMN_KEY		0x01
#define COLUMN_DEFAULT	0x02
#define COLUMN_MISSING	0x04	/* its value for older rows follows */

#define VARINT_MAX		5		/* bytes of the longest */

typedef struct DecodedRelation
{
	uint32		id;				/* hash key */
	EltRelation *relation;
	MemoryContext context;		/* of all it holds */
	char	   *bytes;			/* the description it came from */
	uint32		length;
} DecodedRelation;

struct EltDecoder
{
	MemoryContext context;
	void		(*free_user_data) (void *user_data);
	HTAB	   *relations;
	const char *start;			/* the message */
	const char *cursor;
	const char *end;
	bool		in_transaction;
	EltEvent	transaction;	/* its begin */
	EltRow		old;
	EltRow		new;
};

static EltRelation *read_relation(EltDecoder *decoder);
static void read_change(EltDecoder *decoder, char op, EltChange *change);
static inline void set_text(EltDecoder *decoder, EltRow *row, int column, uint32 length);
static void read_row(EltDecoder *decoder, EltRelation *relation, EltRow *row);
static void broken(EltDecoder *decoder, const char *what) pg_attribute_noreturn();

/* ---- writing ---- */

static inline char *
put_varint(char *p, uint32 value)
{
	while (value >= 0x80)
	{
		*p++ = (char) (value | 0x80);
		value >>= 7;
	}
	*p++ = (char) value;
	return p;
}

static inline char *
put_int64(char *p, uint64 value)
{
	value = pg_hton64(value);
	memcpy(p, &value, sizeof(value));
	return p + sizeof(value);
}

/*
 * Makes room for the given number of bytes and tells where they go; the
 * caller ends with finish_put.
 */
static inline char *
start_put(StringInfo out, Size bytes)
{
	if (bytes >= MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("change is too large to be sent")));
	enlargeStringInfo(out, (int) bytes);
	return out->data + out->len;
}

static inline void
finish_put(StringInfo out, char *p)
{
	out->len = p - out->data;
	out->data[out->len] = '\0';
}

static void
put_string(StringInfo out, const char *string)
{
	int			length = strlen(string);
	char	   *p = start_put(out, VARINT_MAX + (Size) length);

	p = put_varint(p, length);
	memcpy(p, string, length);
	finish_put(out, p + length);
}

/*
 * Begins a message.
 */
void
elt_wire_start(StringInfo out)
{
	appendStringInfoCharMacro(out, ELT_WIRE_VERSION);
}

/*
 * Writes the start of a transaction.
 */
void
elt_wire_begin(StringInfo out, TransactionId xid, XLogRecPtr commit_lsn, TimestampTz commit_ts)
{
	char	   *p = start_put(out, 1 + VARINT_MAX + 16);

	*p++ = EVENT_BEGIN;
	p = put_varint(p, xid);
	p = put_int64(p, commit_lsn);
	p = put_int64(p, commit_ts);
	finish_put(out, p);
}

/*
 * Writes what a relation looks like from here on.
 */
void
elt_wire_relation(StringInfo out, const EltRelation *relation)
{
	StringInfoData body;
	char	   *p;

	initStringInfo(&body);
	p = start_put(&body, 3 * VARINT_MAX + 1);
	p = put_varint(p, relation->id);
	p = put_varint(p, relation->natts);
	p = put_varint(p, relation->filenode);
	*p++ = relation->identity;
	finish_put(&body, p);
	put_string(&body, relation->name);
	p = start_put(&body, VARINT_MAX);
	finish_put(&body, put_varint(p, relation->ncolumns));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		const EltColumn *column = &relation->columns[i];

		p = start_put(&body, 1 + 2 * VARINT_MAX);
		*p++ = (column->in_key ? COLUMN_KEY : 0) | (column->has_default ? COLUMN_DEFAULT : 0) |
			(column->missing != NULL ? COLUMN_MISSING : 0);
		p = put_varint(p, column->number);
		finish_put(&body, put_varint(p, column->touched));
		put_string(&body, column->name);
		put_string(&body, column->type_name);
		put_string(&body, column->type_code);
		if (column->missing != NULL)
			put_string(&body, column->missing);
	}

	p = start_put(out, 1 + VARINT_MAX + (Size) body.len);
	*p++ = EVENT_RELATION;
	p = put_varint(p, body.len);
	memcpy(p, body.data, body.len);
	finish_put(out, p + body.len);
	pfree(body.data);
}

static Size
row_size(const EltRow *row)
{
	Size		size = (Size) row->ncolumns * 2 * VARINT_MAX;

	for (int i = 0; i < row->ncolumns; i++)
	{
		if (row->fields[i] == ELT_FIELD_TEXT || row->fields[i] == ELT_FIELD_BYTES)
			size += row->lengths[i];
	}
	return size;
}

static char *
put_row(char *p, const EltRow *row)
{
	int			nlarge = 0;

	for (int i = 0; i < row->ncolumns; i++)
	{
		bool		large = nlarge < row->nlarge && row->large[nlarge] == i;

		nlarge += large;
		switch (row->fields[i])
		{
			case ELT_FIELD_TEXT:
				if (large)
				{
					*p++ = FIELD_LARGE;
					p = put_varint(p, row->lengths[i]);
				}
				else
					p = put_varint(p, FIELD_TEXT + (uint32) row->lengths[i]);
				memcpy(p, row->values[i], row->lengths[i]);
				p += row->lengths[i];
				break;
			case ELT_FIELD_NULL:
				*p++ = FIELD_NULL;
				break;
			case ELT_FIELD_ABSENT:
				*p++ = FIELD_ABSENT;
				break;
			case ELT_FIELD_UNCHANGED:
				*p++ = FIELD_UNCHANGED;
				break;
			case ELT_FIELD_OVERSIZE:
				*p++ = FIELD_OVERSIZE;
				p = put_varint(p, row->lengths[i]);
				break;
			case ELT_FIELD_BYTES:
				*p++ = FIELD_BYTES;
				p = put_varint(p, row->lengths[i]);
				memcpy(p, row->values[i], row->lengths[i]);
				p += row->lengths[i];
				break;
			case ELT_FIELD_STAGED:
				Assert(false);	/* the receiver's own */
				break;
		}
	}
	return p;
}

/*
 * Writes a change.  Its relation must have been described before.
 */
void
elt_wire_change(StringInfo out, const EltChange *change)
{
	Size		size = 2 + 2 * VARINT_MAX + 8;
	char	   *p;

	if (change->op == ELT_OP_MESSAGE && change->message != NULL)
		size += change->message_length;
	if (change->old != NULL)
		size += row_size(change->old);
	if (change->new != NULL)
		size += row_size(change->new);

	p = start_put(out, size);
	*p++ = change->op == ELT_OP_MESSAGE && change->message == NULL ? EVENT_OVERSIZE : change->op;
	if (change->op == ELT_OP_MESSAGE)
	{
		p = put_int64(p, change->lsn);
		p = put_varint(p, change->message_length);
		if (change->message != NULL)
		{
			memcpy(p, change->message, change->message_length);
			p += change->message_length;
		}
	}
	else
	{
		p = put_varint(p, change->relation->id);
		p = put_int64(p, change->lsn);
		if (change->op == ELT_OP_TRUNCATE_PART)
		{
			finish_put(out, p);
			put_string(out, change->partition);
			return;
		}
		*p++ = (change->old != NULL ? ROW_OLD : 0) | (change->new != NULL ? ROW_NEW : 0);
		if (change->old != NULL)
			p = put_row(p, change->old);
		if (change->new != NULL)
			p = put_row(p, change->new);
	}
	finish_put(out, p);
}

/*
 * Writes the end of a transaction.
 */
void
elt_wire_commit(StringInfo out, XLogRecPtr end_lsn)
{
	char	   *p = start_put(out, 1 + 8);

	*p++ = EVENT_COMMIT;
	finish_put(out, put_int64(p, end_lsn));
}

/* ---- reading ---- */

static void
broken(EltDecoder *decoder, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("invalid change stream: %s", what),
			 errdetail("At byte %d of a message of %d bytes.",
					   (int) (decoder->cursor - decoder->start),
					   (int) (decoder->end - decoder->start))));
}

static inline uint32
get_varint(EltDecoder *decoder)
{
	const char *p = decoder->cursor;
	const char *end = decoder->end;
	uint32		value = 0;

	/* nearly all are one byte */
	if (likely(p < end) && likely((*p & 0x80) == 0))
	{
		decoder->cursor = p + 1;
		return (uint8) *p;
	}

	for (int shift = 0; shift < 35; shift += 7)
	{
		uint8		byte;

		if (p >= end)
			broken(decoder, "it ends inside a number");
		byte = (uint8) *p++;
		if (shift == 28 && byte > 0x0f)
			break;
		value |= (uint32) (byte & 0x7f) << shift;
		if ((byte & 0x80) == 0)
		{
			decoder->cursor = p;
			return value;
		}
	}
	broken(decoder, "number out of range");
}

static inline uint64
get_int64(EltDecoder *decoder)
{
	uint64		value;

	if (decoder->end - decoder->cursor < (ptrdiff_t) sizeof(value))
		broken(decoder, "it ends inside a number");
	memcpy(&value, decoder->cursor, sizeof(value));
	decoder->cursor += sizeof(value);
	return pg_ntoh64(value);
}

static inline uint8
get_byte(EltDecoder *decoder)
{
	if (decoder->cursor >= decoder->end)
		broken(decoder, "it ends inside an event");
	return (uint8) *decoder->cursor++;
}

/*
 * Gives the next name, which must be valid text.
 */
static char *
get_string(EltDecoder *decoder)
{
	uint32		length = get_varint(decoder);
	const char *text = decoder->cursor;

	if (length > (uint64) (decoder->end - text))
		broken(decoder, "it ends inside a name");
	if (!pg_verify_mbstr(GetDatabaseEncoding(), text, length, true))
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("a name in the change stream is not valid in encoding \"%s\"",
						GetDatabaseEncodingName()),
				 errhint("Give the source's tables, columns and types names that this encoding has.")));
	decoder->cursor += length;
	return pnstrdup(text, length);
}

static void
create_row(EltRow *row)
{
	row->fields = palloc(sizeof(EltField) * MaxTupleAttributeNumber);
	row->values = palloc(sizeof(char *) * MaxTupleAttributeNumber);
	row->lengths = palloc(sizeof(int) * MaxTupleAttributeNumber);
	row->large = palloc(sizeof(int) * MaxTupleAttributeNumber);
	row->staged = NULL;
}

/*
 * Makes a decoder in the given memory context, for one stream.
 */
EltDecoder *
elt_decoder_create(MemoryContext context, void (*free_user_data) (void *user_data))
{
	MemoryContext caller = MemoryContextSwitchTo(context);
	EltDecoder *decoder = palloc0(sizeof(EltDecoder));
	HASHCTL		control = {
		.keysize = sizeof(uint32),
		.entrysize = sizeof(DecodedRelation),
		.hcxt = context
	};

	decoder->context = context;
	decoder->free_user_data = free_user_data;
	decoder->relations = hash_create("elt relations of a stream", 128, &control,
									 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	create_row(&decoder->old);
	create_row(&decoder->new);
	MemoryContextSwitchTo(caller);
	return decoder;
}

/*
 * Starts on a message, which must stay where it is until its last event has
 * been used.
 */
void
elt_decoder_read(EltDecoder *decoder, const char *data, int length)
{
	decoder->start = data;
	decoder->cursor = data;
	decoder->end = data + length;
	if (get_byte(decoder) != ELT_WIRE_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("change stream of another version"),
				 errhint("Install the same version of elt at the source and here.")));
}

/*
 * Gives the next event of the message; false at its end.
 */
bool
elt_decoder_next(EltDecoder *decoder, EltEvent *event)
{
	while (decoder->cursor < decoder->end)
	{
		char		letter = (char) get_byte(decoder);

		if (letter == EVENT_RELATION)
		{
			EltRelation *relation = read_relation(decoder);

			if (relation == NULL || !decoder->in_transaction)
				continue;
			*event = decoder->transaction;
			event->kind = ELT_EVENT_RELATION;
			event->change.relation = relation;
			return true;
		}

		if ((letter == EVENT_BEGIN) == decoder->in_transaction)
			broken(decoder, decoder->in_transaction ?
				   "transaction inside a transaction" : "event outside a transaction");

		if (letter == EVENT_BEGIN)
		{
			EltEvent   *transaction = &decoder->transaction;

			memset(transaction, 0, sizeof(*transaction));
			transaction->xid = get_varint(decoder);
			transaction->commit_lsn = get_int64(decoder);
			transaction->commit_ts = (TimestampTz) get_int64(decoder);
			if (!IS_VALID_TIMESTAMP(transaction->commit_ts))
				broken(decoder, "commit time out of range");
			decoder->in_transaction = true;
		}
		*event = decoder->transaction;

		switch (letter)
		{
			case EVENT_BEGIN:
				event->kind = ELT_EVENT_BEGIN;
				break;
			case EVENT_COMMIT:
				event->kind = ELT_EVENT_COMMIT;
				event->end_lsn = get_int64(decoder);
				decoder->in_transaction = false;
				break;
			default:
				event->kind = ELT_EVENT_CHANGE;
				read_change(decoder, letter, &event->change);
				break;
		}
		return true;
	}
	return false;
}

/*
 * Reads the description of a relation, and makes it the one that changes
 * refer to; NULL where it says what is known already.
 */
static EltRelation *
read_relation(EltDecoder *decoder)
{
	uint32		length = get_varint(decoder);
	const char *body = decoder->cursor;
	const char *body_end;
	const char *message_end = decoder->end;
	DecodedRelation *entry;
	EltRelation *relation;
	MemoryContext context;
	MemoryContext caller;
	uint32		ncolumns;
	uint32		id;
	bool		found;

	if (length > (uint64) (decoder->end - body))
		broken(decoder, "it ends inside the description of a relation");
	body_end = body + length;

	id = get_varint(decoder);
	entry = hash_search(decoder->relations, &id, HASH_FIND, NULL);
	if (entry != NULL && entry->length == length &&
		memcmp(entry->bytes, body, length) == 0)
	{
		decoder->cursor = body_end;
		return NULL;
	}

	context = AllocSetContextCreate(decoder->context, "elt relation of a stream",
									ALLOCSET_SMALL_SIZES);
	caller = MemoryContextSwitchTo(context);
	decoder->end = body_end;
	relation = palloc0(sizeof(EltRelation));
	relation->id = id;
	relation->natts = get_varint(decoder);
	relation->filenode = get_varint(decoder);
	relation->identity = (char) get_byte(decoder);
	if (relation->identity == '\0' || strchr("dnfi", relation->identity) == NULL)
		broken(decoder, "unknown replica identity");
	relation->name = get_string(decoder);
	ncolumns = get_varint(decoder);
	if (ncolumns > MaxHeapAttributeNumber)
		broken(decoder, "too many columns");
	relation->ncolumns = ncolumns;
	relation->columns = palloc0(sizeof(EltColumn) * (ncolumns + 1));
	for (int i = 0; i < relation->ncolumns; i++)
	{
		EltColumn  *column = &relation->columns[i];

		uint8		flags = get_byte(decoder);

		column->in_key = (flags & COLUMN_KEY) != 0;
		column->has_default = (flags & COLUMN_DEFAULT) != 0;
		column->number = get_varint(decoder);
		column->touched = get_varint(decoder);
		column->name = get_string(decoder);
		column->type_name = get_string(decoder);
		column->type_code = get_string(decoder);
		if (flags & COLUMN_MISSING)
			column->missing = get_string(decoder);
	}
	if (decoder->cursor != body_end)
		broken(decoder, "description of a relation with a wrong length");
	decoder->end = message_end;

	elt_relation_finish(relation);
	for (int i = 1; i < relation->ncolumns; i++)
	{
		if (strcmp(relation->columns[relation->order[i - 1]].name,
				   relation->columns[relation->order[i]].name) == 0)
			broken(decoder, "two columns of one name");
	}

	entry = hash_search(decoder->relations, &id, HASH_ENTER, &found);
	if (found)
	{
		if (entry->relation->user_data != NULL && decoder->free_user_data != NULL)
			decoder->free_user_data(entry->relation->user_data);
		MemoryContextDelete(entry->context);
	}
	entry->relation = relation;
	entry->context = context;
	entry->length = length;
	entry->bytes = palloc(length);
	memcpy(entry->bytes, body, length);
	MemoryContextSwitchTo(caller);
	return relation;
}

/*
 * Reads the rest of a change.
 */
static void
read_change(EltDecoder *decoder, char op, EltChange *change)
{
	DecodedRelation *entry;
	uint32		id;
	uint8		rows;

	change->op = op;
	if (op == ELT_OP_MESSAGE || op == EVENT_OVERSIZE)
	{
		uint32		length;

		change->op = ELT_OP_MESSAGE;
		change->lsn = get_int64(decoder);
		length = get_varint(decoder);
		change->message_length = (int) Min(length, (uint32) PG_INT32_MAX);
		if (op == EVENT_OVERSIZE)
			return;
		if (length > (uint64) (decoder->end - decoder->cursor))
			broken(decoder, "it ends inside a message");
		if (length <= ELT_MESSAGE_BYTES_MAX)
			change->message = decoder->cursor;
		decoder->cursor += length;
		return;
	}

	if (op != ELT_OP_INSERT && op != ELT_OP_UPDATE && op != ELT_OP_DELETE && op != ELT_OP_TRUNCATE &&
		op != ELT_OP_TRUNCATE_PART)
		broken(decoder, "unknown event");

	id = get_varint(decoder);
	entry = hash_search(decoder->relations, &id, HASH_FIND, NULL);
	if (entry == NULL)
		broken(decoder, "relation that was not described");
	change->relation = entry->relation;
	change->lsn = get_int64(decoder);
	if (op == ELT_OP_TRUNCATE_PART)
	{
		change->partition = get_string(decoder);
		return;
	}

	rows = get_byte(decoder);
	if (((op == ELT_OP_INSERT || op == ELT_OP_UPDATE) != ((rows & ROW_NEW) != 0)) ||
		((op == ELT_OP_INSERT || op == ELT_OP_TRUNCATE) && (rows & ROW_OLD) != 0))
		broken(decoder, "rows that do not fit the operation");
	if (rows & ROW_OLD)
	{
		change->old = &decoder->old;
		read_row(decoder, entry->relation, change->old);
	}
	if (rows & ROW_NEW)
	{
		change->new = &decoder->new;
		read_row(decoder, entry->relation, change->new);
	}
}

/*
 * Sets a field to the next length bytes.  What is not valid text is told as
 * bytes: a source may be SQL_ASCII, and is not trusted.
 */
static inline void
set_text(EltDecoder *decoder, EltRow *row, int column, uint32 length)
{
	const char *text = decoder->cursor;

	if (length > (uint64) (decoder->end - text))
		broken(decoder, "it ends inside a value");
	row->fields[column] = likely(pg_verify_mbstr(GetDatabaseEncoding(), text, length, true)) ?
		ELT_FIELD_TEXT : ELT_FIELD_BYTES;
	row->lengths[column] = (int) length;
	row->values[column] = text;

	decoder->cursor += length;
}

/*
 * Reads a row of the relation; its values stay in the message.
 */
static void
read_row(EltDecoder *decoder, EltRelation *relation, EltRow *row)
{
	const char *start = decoder->cursor;

	row->ncolumns = relation->ncolumns;
	row->nunchanged = 0;
	row->noversize = 0;
	row->nlarge = 0;
	for (int i = 0; i < row->ncolumns; i++)
	{
		uint32		field = get_varint(decoder);

		row->values[i] = NULL;
		row->lengths[i] = 0;
		switch (field)
		{
			case FIELD_NULL:
				row->fields[i] = ELT_FIELD_NULL;
				break;
			case FIELD_ABSENT:
				row->fields[i] = ELT_FIELD_ABSENT;
				break;
			case FIELD_UNCHANGED:
				row->fields[i] = ELT_FIELD_UNCHANGED;
				row->nunchanged++;
				break;
			case FIELD_OVERSIZE:
				row->fields[i] = ELT_FIELD_OVERSIZE;
				row->noversize++;
				row->large[row->nlarge++] = i;
				field = get_varint(decoder);
				row->lengths[i] = (int) Min(field, (uint32) PG_INT32_MAX);
				break;
			case FIELD_LARGE:
				row->large[row->nlarge++] = i;
				field = get_varint(decoder);
				set_text(decoder, row, i, field);
				break;
			case FIELD_BYTES:
				row->large[row->nlarge++] = i;
				field = get_varint(decoder);
				set_text(decoder, row, i, field);
				row->fields[i] = ELT_FIELD_BYTES;
				break;
			default:
				set_text(decoder, row, i, field - FIELD_TEXT);
				break;
		}
	}
	if (unlikely(decoder->cursor - start > ELT_ROW_BYTES_MAX / 2))
		elt_row_limit(row);
}
