/*
 * resync.c
 *	  SQL functions: to begin a source anew, and to change its options.
 *
 * As all functions of sources they only record what is wanted, in the caller's
 * transaction.  The capture worker sees after the commit that the source has
 * no slot, makes one and copies the tables.
 */
#include "postgres.h"

#include "argument.h"
#include "capture/source.h"
#include "catalog/pg_type.h"
#include "control/registry.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(elt_resync_source);
PG_FUNCTION_INFO_V1(elt_alter_source);
PG_FUNCTION_INFO_V1(elt_config_changed_sql);

/*
 * elt_resync_source
 *		A slot that was found to be somebody else's, or used by somebody else,
 *		is left alone: the source gets one of another name.
 */
Datum
elt_resync_source(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "name"));
	Oid			types[] = {INT8OID, NAMEOID};
	Datum		values[] = {Int64GetDatum(source->source_id), (Datum) 0};
	char	   *reason;
	bool		leave_slot;
	EltSpi		spi;

	elt_source_require_preload();
	if (!source->at_home)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("source \"%s\" was restored from another server or database", source->name),
				 errhint("SELECT elt.resume_source(%s) begins it anew here.", quote_literal_cstr(source->name))));

	elt_spi_begin(&spi);
	elt_spi_run("SELECT lost_reason FROM elt.sources WHERE source_id = $1 FOR UPDATE", 1, types, values, NULL);
	reason = elt_spi_text(&spi, 0, 1);
	leave_slot = reason != NULL && (strcmp(reason, "slot_foreign") == 0 || strcmp(reason, "slot_ahead") == 0);
	if (leave_slot)
		values[1] = DirectFunctionCall1(namein, CStringGetDatum(elt_source_new_slot_name(source->name)));
	elt_spi_run("SELECT elt.restart_source($1, $2, 'resync_source')", 2, types, values, leave_slot ? "  " : " n");
	elt_spi_end(&spi);

	if (leave_slot)
		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("replication slot \"%s\" is left at the source, because somebody else may use it", source->slot_name),
				 errhint("Where nobody does, it must not stay, because it keeps WAL: SELECT pg_drop_replication_slot(%s)",
						 quote_literal_cstr(source->slot_name))));
	PG_RETURN_VOID();
}

Datum
elt_alter_source(PG_FUNCTION_ARGS)
{
	EltSource  *source = elt_source_owned(elt_argument_text(fcinfo, 0, "name"));
	Oid			types[] = {INT8OID, JSONBOID};
	Datum		values[2];
	Jsonb	   *options;
	EltSpi		spi;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("options must not be null")));
	options = PG_GETARG_JSONB_P(1);
	elt_source_check_options(options, source, true);

	values[0] = Int64GetDatum(source->source_id);
	values[1] = JsonbPGetDatum(options);
	elt_spi_begin(&spi);
	elt_spi_run("UPDATE elt.sources SET options = jsonb_strip_nulls(options || $2) WHERE source_id = $1",
				2, types, values, NULL);
	elt_spi_end(&spi);
	elt_config_changed();
	PG_RETURN_VOID();
}

/* For functions of elt in PL/pgSQL. */
Datum
elt_config_changed_sql(PG_FUNCTION_ARGS)
{
	elt_config_changed();
	PG_RETURN_VOID();
}
