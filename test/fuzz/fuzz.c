/*
 * fuzz.c
 *	  Malformed input for everything that reads what a source sent.
 *
 * A module for a backend, made of elt's own files and this one (see
 * test/fuzz/build).  The first byte of an input says which reader gets the
 * rest:
 *
 *	0	the change stream: decoder, and all that is made of a change
 *	1	a type's code
 *	2	a type's code, NUL, a value of that type
 *	3	JSON text
 *	4	a message
 *	5	the number of columns, a line of COPY
 *
 * The readers' memory, and the input's, ends at pages that nobody may touch.  A
 * sanitizer's own allocator is no way: PostgreSQL does not start with one that
 * is preloaded.
 *
 * A reader may raise an error, of those that it says it raises; all else is a
 * finding: a crash, memory that is not its own, much memory for few bytes, or
 * JSON that is not what PostgreSQL makes of the same text.
 *
 *	fuzz_inputs()					inputs that are well-formed
 *	fuzz_mutate(inputs, n, seed)	n inputs made of these by a random generator
 *									of its own: the same ones everywhere
 *	fuzz_one(input)					one input: 'ok', or the error's SQLSTATE
 *	fuzz_guided(options)			libFuzzer, where it is linked in
 */
#include "alloc.h"

#include <sys/mman.h>
#include <unistd.h>

#include "capture/change.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#undef palloc
#undef palloc0
#undef repalloc
#undef pnstrdup
#undef pstrdup
#undef pfree

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(fuzz_inputs);
PG_FUNCTION_INFO_V1(fuzz_mutate);
PG_FUNCTION_INFO_V1(fuzz_one);
PG_FUNCTION_INFO_V1(fuzz_guided);

#define READERS			6
#define INPUT_MAX		(64 * 1024)

/* memory that the code under test may take, for each byte of input and at all */
#define BYTES_PER_BYTE	1024
#define BYTES_ALWAYS	(4 * 1024 * 1024)

static void
split_line(char *line, int length, EltRow *row);
static void
#include "split_line.inc"

/* ---- memory ---- */

#define REGIONS_MAX		8192	/* the kernel bounds the number of mappings */
#define REGION_PAGES	4

typedef struct Chunk
{
	struct Chunk *next;
	Size		size;
	char	   *data;
	char	   *region;			/* NULL: from malloc */
	Size		region_size;
} Chunk;

static Chunk *chunks = NULL;
static Size allocated = 0;
static Size allowed = 0;
static char *free_regions[REGIONS_MAX];
static int	nfree = 0;
static int	nregions = 0;

/*
 * Gives memory that ends where a page begins that nobody may touch, or so near
 * to it as its alignment lets it.
 */
static char *
guarded(Size size, bool aligned, Chunk *chunk)
{
	Size		page = sysconf(_SC_PAGESIZE);
	Size		usable = REGION_PAGES * page;

	if (size > usable)
		usable = TYPEALIGN(page, size);
	if (usable == REGION_PAGES * page && nfree > 0)
		chunk->region = free_regions[--nfree];
	else if (nregions < REGIONS_MAX)
	{
		chunk->region = mmap(NULL, usable + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (chunk->region == MAP_FAILED || mprotect(chunk->region + usable, page, PROT_NONE) != 0)
			elog(PANIC, "no memory");
		nregions++;
	}
	else
	{
		chunk->region = NULL;
		return malloc(size + 1);
	}
	chunk->region_size = usable + page;
	return chunk->region + usable - (aligned ? MAXALIGN(size) : size);
}

static void
release(Chunk *chunk)
{
	if (chunk->region == NULL)
		free(chunk->data);
	else if (chunk->region_size == (REGION_PAGES + 1) * sysconf(_SC_PAGESIZE))
		free_regions[nfree++] = chunk->region;
	else
	{
		munmap(chunk->region, chunk->region_size);
		nregions--;
	}
}

static void *
allocate(Size size, bool aligned)
{
	Chunk	   *chunk = malloc(sizeof(Chunk));

	allocated += size;
	if (allocated > allowed)
		elog(PANIC, "%zu bytes of memory for an input that may have %zu", allocated, allowed);
	chunk->size = size;
	chunk->data = guarded(size, aligned, chunk);
	chunk->next = chunks;
	chunks = chunk;
	return chunk->data;
}

void *
fuzz_alloc(Size size, bool zero)
{
	/* what is not set must not be relied on */
	return memset(allocate(size, true), zero ? 0 : 0x7f, size);
}

void *
fuzz_realloc(void *old, Size size)
{
	for (Chunk *chunk = chunks; chunk != NULL; chunk = chunk->next)
	{
		if (chunk->data == old)
		{
			char	   *new = fuzz_alloc(size, false);

			memcpy(new, old, Min(size, chunk->size));
			return new;
		}
	}
	elog(PANIC, "memory that is not the input's");
}

char *
fuzz_strndup(const char *string, Size length)
{
	char	   *copy;

	length = strnlen(string, length);
	copy = allocate(length + 1, false);
	memcpy(copy, string, length);
	copy[length] = '\0';
	return copy;
}

static void
free_chunks(void)
{
	while (chunks != NULL)
	{
		Chunk	   *next = chunks->next;

		release(chunks);
		free(chunks);
		chunks = next;
	}
	allocated = 0;
}

/* ---- the readers ---- */

/*
 * Makes jsonb of a tree, and text of it; as text it must come back the same.
 */
static void
check_jsonb(Jsonb *jsonb)
{
	char	   *text;
	Jsonb	   *again;

	if (jsonb == NULL)
		return;
	text = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	again = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));
	if (VARSIZE(again) != VARSIZE(jsonb) || memcmp(again, jsonb, VARSIZE(jsonb)) != 0)
		elog(PANIC, "jsonb that PostgreSQL would not make: %s", text);
}

static void
read_stream(const char *data, int length)
{
	EltDecoder *decoder = elt_decoder_create(CurrentMemoryContext, NULL);
	EltEvent	event;

	elt_decoder_read(decoder, data, length);
	while (elt_decoder_next(decoder, &event))
	{
		EltChange  *change = &event.change;
		const EltRow *row = change->new != NULL ? change->new : change->old;
		StringInfoData document;

		if (event.kind != ELT_EVENT_CHANGE)
			continue;
		initStringInfo(&document);
		elt_change_document(&document, change, event.xid, event.commit_lsn, event.commit_ts);
		if (row == NULL)
			continue;
		check_jsonb(elt_row_image(change->relation, row, NULL));
		check_jsonb(elt_row_key(change->relation, row));
		(void) elt_row_key_hash(change->relation, row);
		(void) elt_change_moves_key(change);
	}
}

static void
read_value(const char *code, const char *value, int length)
{
	JsonbValue	result;
	JsonbPair	pair;
	JsonbValue	object;

	if (!pg_verify_mbstr(GetDatabaseEncoding(), value, length, true) ||
		!pg_verify_mbstr(GetDatabaseEncoding(), code, strlen(code), true))
		return;					/* the decoder lets only text through */
	elt_value_to_json(elt_type_parse(code), value, length, &result);
	pair.key.type = jbvString;
	pair.key.val.string.val = "v";
	pair.key.val.string.len = 1;
	pair.value = result;
	pair.order = 0;
	object.type = jbvObject;
	object.val.object.nPairs = 1;
	object.val.object.pairs = &pair;
	check_jsonb(JsonbValueToJsonb(&object));
}

static void
read_json(const char *data, int length)
{
	JsonbValue	value;

	if (!pg_verify_mbstr(GetDatabaseEncoding(), data, length, true))
		return;
	if (elt_json_parse(data, length, &value))
	{
		Jsonb	   *ours = JsonbValueToJsonb(&value);
		char	   *text = fuzz_strndup(data, length);
		Jsonb	   *theirs = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(text)));

		if (VARSIZE(ours) != VARSIZE(theirs) || memcmp(ours, theirs, VARSIZE(ours)) != 0)
			elog(PANIC, "jsonb that PostgreSQL would not make of %s", text);
	}
}

static void
read_message(const char *data, int length)
{
	char	   *topic;
	Jsonb	   *key;
	Jsonb	   *payload;

	elt_message_parse(data, length, &topic, &key, &payload);
	check_jsonb(key);
	check_jsonb(payload);
}

static void
read_line(char *data, int length)
{
	EltRow		row;

	row.ncolumns = length > 0 ? (uint8) data[0] : 0;
	row.fields = fuzz_alloc(Max(1, row.ncolumns) * sizeof(EltField), false);
	row.values = fuzz_alloc(Max(1, row.ncolumns) * sizeof(char *), false);
	row.lengths = fuzz_alloc(Max(1, row.ncolumns) * sizeof(int), false);
	if (length == 0)
		return;
	split_line(data + 1, length - 1, &row);
	for (int i = 0; i < row.ncolumns; i++)
	{
		if (row.fields[i] == ELT_FIELD_TEXT &&
			(row.values[i] < data + 1 || row.lengths[i] < 0 || row.values[i] + row.lengths[i] > data + length))
			elog(PANIC, "a column that is not in its line");
	}
}

static void
read_input(char *data, int length)
{
	switch (data[0] % READERS)
	{
		case 0:
			read_stream(data + 1, length - 1);
			break;
		case 1:
			(void) elt_type_parse(fuzz_strndup(data + 1, length - 1));
			break;
		case 2:
			{
				char	   *code = fuzz_strndup(data + 1, length - 1);
				int			skip = Min(length, 1 + (int) strlen(code) + 1);

				read_value(code, data + skip, length - skip);
				break;
			}
		case 3:
			read_json(data + 1, length - 1);
			break;
		case 4:
			read_message(data + 1, length - 1);
			break;
		default:
			read_line(data + 1, length - 1);
			break;
	}
}

/*
 * Gives an input to its reader; returns the error's SQLSTATE, 0 where there was
 * none.
 */
static int
try_input(const uint8 *data, Size length)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	volatile int sqlstate = 0;
	char	   *copy;

	if (length == 0)
		return 0;
	context = AllocSetContextCreate(caller, "fuzz input", ALLOCSET_DEFAULT_SIZES);
	allowed = BYTES_ALWAYS + length * BYTES_PER_BYTE;
	copy = allocate(length, false);
	memcpy(copy, data, length);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		read_input(copy, length);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		sqlstate = error->sqlerrcode;
		/* said in the readers' comments, or PostgreSQL's own limits */
		if (sqlstate != ERRCODE_PROTOCOL_VIOLATION && sqlstate != ERRCODE_CHARACTER_NOT_IN_REPERTOIRE &&
			sqlstate != ERRCODE_PROGRAM_LIMIT_EXCEEDED && sqlstate != ERRCODE_STATEMENT_TOO_COMPLEX)
			elog(PANIC, "reader %d: error %s: %s", data[0] % READERS, unpack_sql_state(sqlstate), error->message);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	if (MemoryContextMemAllocated(context, true) > BYTES_ALWAYS + length * BYTES_PER_BYTE)
		elog(PANIC, "reader %d: %zu bytes of memory for an input of %zu", data[0] % READERS,
			 MemoryContextMemAllocated(context, true), length);
	MemoryContextDelete(context);
	free_chunks();
	CHECK_FOR_INTERRUPTS();
	return sqlstate;
}

/* ---- well-formed inputs ---- */

static void
add_input(ArrayBuildState **inputs, char reader, const char *data, int length)
{
	bytea	   *input = palloc(VARHDRSZ + 1 + length);

	SET_VARSIZE(input, VARHDRSZ + 1 + length);
	VARDATA(input)[0] = reader;
	memcpy(VARDATA(input) + 1, data, length);
	*inputs = accumArrayResult(*inputs, PointerGetDatum(input), false, BYTEAOID, CurrentMemoryContext);
}

/*
 * A stream as the plugin writes it: two relations, each operation, a message.
 */
static void
add_stream(ArrayBuildState **inputs)
{
	static const char *const codes[] = {"i", "s", "n", "f", "b", "t", "j", "J", "a,i", "c(\"x\"i\"Y z\"a,s)", "a;c(\"a\"\"b\"t)"};
	static const char *const texts[] = {"-42", "it's", "1.50", "-0", "t", "2024-02-29 12:00:00", "{\"a\": 1, \"a\": 2}", "{\"b\": [1, null]}",
	"{1,NULL,{2}}", "(1,\"{a,\"\"b c\"\"}\")", "{(2024-01-01 00:00:00);\"(\\\"x y\\\")\"}"};
	StringInfoData out;
	EltColumn	columns[lengthof(codes)];
	EltRelation relation = {.id = 16384,.name = "public.t",.natts = lengthof(codes),.filenode = 16385,.identity = 'd',
	.ncolumns = lengthof(codes),.columns = columns};
	EltField	fields[lengthof(codes)];
	const char *values[lengthof(codes)];
	int			lengths[lengthof(codes)];
	int			large[] = {1, 7};
	EltRow		row = {.ncolumns = lengthof(codes),.fields = fields,.values = values,.lengths = lengths,
	.nlarge = lengthof(large),.large = large};
	EltField	old_fields[lengthof(codes)];
	EltRow		old = {lengthof(codes), old_fields, values, lengths};
	EltChange	change = {.relation = &relation,.lsn = 0x1000028};

	for (int i = 0; i < lengthof(codes); i++)
	{
		columns[i] = (EltColumn)
		{
			.name = psprintf("c%d", i),.type_name = "text",.type_code = (char *) codes[i],.in_key = (i == 0),
				.number = i + 1,.touched = 740 + i,.has_default = (i == 1),.missing = i == 2 ? "7.50" : NULL
		};
		fields[i] = ELT_FIELD_TEXT;
		old_fields[i] = i == 0 ? ELT_FIELD_TEXT : ELT_FIELD_ABSENT;
		values[i] = texts[i];
		lengths[i] = strlen(texts[i]);
	}
	initStringInfo(&out);
	elt_wire_start(&out);
	elt_wire_begin(&out, 750, 0x1000100, 762345678000000);
	elt_wire_relation(&out, &relation);
	change.op = ELT_OP_INSERT;
	change.new = &row;
	elt_wire_change(&out, &change);
	fields[1] = ELT_FIELD_UNCHANGED;
	fields[2] = ELT_FIELD_NULL;
	fields[3] = ELT_FIELD_OVERSIZE;
	change.op = ELT_OP_UPDATE;
	change.old = &old;
	elt_wire_change(&out, &change);
	change.op = ELT_OP_DELETE;
	change.new = NULL;
	elt_wire_change(&out, &change);
	change.op = ELT_OP_TRUNCATE;
	change.old = NULL;
	elt_wire_change(&out, &change);
	change.op = ELT_OP_TRUNCATE_PART;
	change.partition = "s.\"a part\"";
	elt_wire_change(&out, &change);
	change.op = ELT_OP_MESSAGE;
	change.message = "{\"topic\": \"a\", \"payload\": [1]}";
	change.message_length = strlen(change.message);
	elt_wire_change(&out, &change);
	elt_wire_commit(&out, 0x1000200);
	add_input(inputs, 0, out.data, out.len);
}

Datum
fuzz_inputs(PG_FUNCTION_ARGS)
{
	static const char *const others[] = {
		"\1" "c(\"a\"i\"b \"\"\"a,c(\"x\"s\"y\"t))",
		"\1" "a,a;a,n",
		"\2" "a,n\0" "{{1.10,NaN},{\"-0\",NULL}}",
		"\2" "c(\"a\"i\"b\"s)\0" "(1,\"x\"\"y\\\\z\")",
		"\2" "a,c(\"a\"j)\0" "{\"(\\\"{\\\\\\\"k\\\\\\\": 1}\\\")\"}",
		"\2" "t\0" "2024-02-29 12:34:56.789+05:30",
		"\2" "n\0" "-12345678901234567890.123456789e-10",
		"\2" "i\0" "-9223372036854775808",
		"\3" "{\"a\": [1, 2.50e3, true, null, \"\\u00e9\\n\"], \"b\": {\"\": {}}, \"a\": -0}",
		"\3" "[[[[\"\\ud834\\udd1e\"]]], 1e-400, 0.10]",
		"\4" "{\"topic\": \"t\", \"key\": {\"id\": 1}, \"payload\": {\"a\": \"\\u0001\"}}",
		"\4" "\xff\xfe no text",
		"\5" "\4" "1\t\\N\ta\\tb\\\\\\n\tend\n",
	};
	ArrayBuildState *inputs = NULL;

	add_stream(&inputs);
	for (int i = 0; i < lengthof(others); i++)
	{
		const char *data = others[i] + 1;
		int			length = strlen(data);

		if (others[i][0] == 2)	/* a code, NUL, and a value */
			length += 1 + strlen(data + length + 1);
		add_input(&inputs, others[i][0], data, length);
	}
	PG_RETURN_DATUM(makeArrayResult(inputs, CurrentMemoryContext));
}

/* ---- mutations ---- */

static uint64 random_state;

static uint32
next_random(uint32 limit)
{
	random_state = random_state * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
	return (uint32) (random_state >> 33) % limit;
}

/*
 * Changes some of an input: bits, bytes, numbers; takes some out, doubles some.
 */
static int
mutate(uint8 *data, int length)
{
	static const uint8 interesting[] = {0, 1, 2, 3, 4, 5, 0x7f, 0x80, 0xff, 0x0f, '"', '\\', '{', '}', '(', ')', ',', 'a', 'c', 'R', 'B', 'C', 'u', '\t'};

	for (int n = 1 + next_random(6); n > 0 && length > 1; n--)
	{
		int			at = 1 + next_random(length - 1);
		int			count = 1 + next_random(Min(length - at, 40));

		switch (next_random(6))
		{
			case 0:
				data[at] ^= 1 << next_random(8);
				break;
			case 1:
				data[at] = interesting[next_random(lengthof(interesting))];
				break;
			case 2:
				data[at] = next_random(256);
				break;
			case 3:
				memmove(data + at, data + at + count, length - at - count);
				length -= count;
				break;
			case 4:
				for (int times = 1 + next_random(8); times > 0 && length + count <= INPUT_MAX; times--)
				{
					memmove(data + at + count, data + at, length - at);
					length += count;
				}
				break;
			default:
				length = at;
				break;
		}
	}
	return length;
}

Datum
fuzz_mutate(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	int			count = PG_GETARG_INT32(1);
	Datum	   *inputs;
	int			n;
	int			refused = 0;
	uint8	   *data = palloc(INPUT_MAX);

	random_state = PG_GETARG_INT32(2);
	deconstruct_array(array, BYTEAOID, -1, false, TYPALIGN_INT, &inputs, NULL, &n);
	for (int i = 0; i < count; i++)
	{
		bytea	   *input = DatumGetByteaPP(inputs[next_random(n)]);
		int			length = Min((int) VARSIZE_ANY_EXHDR(input), INPUT_MAX);

		memcpy(data, VARDATA_ANY(input), length);
		length = mutate(data, length);
		if (try_input(data, length) != 0)
			refused++;
	}
	PG_RETURN_INT32(refused);
}

Datum
fuzz_one(PG_FUNCTION_ARGS)
{
	bytea	   *input = PG_GETARG_BYTEA_PP(0);
	int			sqlstate = try_input((uint8 *) VARDATA_ANY(input), VARSIZE_ANY_EXHDR(input));

	PG_RETURN_TEXT_P(cstring_to_text(sqlstate == 0 ? "ok" : unpack_sql_state(sqlstate)));
}

/* ---- libFuzzer ---- */

#ifdef FUZZ_GUIDED
extern int	LLVMFuzzerRunDriver(int *argc, char ***argv, int (*test) (const uint8 *data, size_t size));

static int
test_input(const uint8 *data, size_t size)
{
	(void) try_input(data, size);
	return 0;
}

/*
 * Ends the process: libFuzzer does.
 */
Datum
fuzz_guided(PG_FUNCTION_ARGS)
{
	Datum	   *options;
	int			argc = 1;
	int			n;
	char	  **argv;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), TEXTOID, -1, false, TYPALIGN_INT, &options, NULL, &n);
	argv = palloc0(sizeof(char *) * (n + 2));
	argv[0] = "fuzz";
	for (int i = 0; i < n; i++)
		argv[argc++] = TextDatumGetCString(options[i]);
	PG_RETURN_INT32(LLVMFuzzerRunDriver(&argc, &argv, test_input));
}
#else
Datum
fuzz_guided(PG_FUNCTION_ARGS)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("this module is built without libFuzzer")));
}
#endif
