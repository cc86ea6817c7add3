/*
 * compat.h
 *	  Differences between PostgreSQL versions: the only file that asks for
 *	  PG_VERSION_NUM.
 */
#ifndef ELT_COMPAT_H
#define ELT_COMPAT_H

#include "replication/origin.h"
#include "replication/reorderbuffer.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "elt needs PostgreSQL 15 or later"
#endif

/* 17: tuples of the reorder buffer are plain HeapTuples */
#if PG_VERSION_NUM >= 170000
#define elt_change_tuple(t)		(t)
#else
#define elt_change_tuple(t)		((t) ? &(t)->tuple : NULL)
#endif

/* 16: several processes may share an origin */
#if PG_VERSION_NUM >= 160000
#define elt_origin_setup(origin)	replorigin_session_setup((origin), 0)
#else
#define elt_origin_setup(origin)	replorigin_session_setup(origin)
#endif

/* 18: the attribute stands in front, under another name */
#ifndef pg_attribute_noreturn
#define pg_attribute_noreturn()	__attribute__((noreturn))
#endif

/* 18: room for a header before the tuple */
#if PG_VERSION_NUM >= 180000
#define elt_form_minimal_tuple(desc, values, nulls) \
	heap_form_minimal_tuple((desc), (values), (nulls), 0)
#else
#define elt_form_minimal_tuple(desc, values, nulls) \
	heap_form_minimal_tuple((desc), (values), (nulls))
#endif

/* 18: others stand between client sessions and background workers; needs storage/proc.h */
#ifdef NUM_SPECIAL_WORKER_PROCS
#define ELT_FIRST_WORKER_PROC	(MaxConnections + autovacuum_worker_slots + NUM_SPECIAL_WORKER_PROCS)
#else
#define ELT_FIRST_WORKER_PROC	(MaxConnections + autovacuum_max_workers + 1)
#endif

/* 16: one function for all classes of objects */
#if PG_VERSION_NUM >= 160000
#include "catalog/pg_namespace.h"
#define elt_namespace_aclcheck(oid, role, mode) \
	object_aclcheck(NamespaceRelationId, (oid), (role), (mode))
#define elt_database_ownercheck(oid, role) \
	object_ownercheck(DatabaseRelationId, (oid), (role))
#define elt_extension_ownercheck(oid, role) \
	object_ownercheck(ExtensionRelationId, (oid), (role))
#else
#define elt_namespace_aclcheck(oid, role, mode) \
	pg_namespace_aclcheck((oid), (role), (mode))
#define elt_database_ownercheck(oid, role)	pg_database_ownercheck((oid), (role))
#define elt_extension_ownercheck(oid, role)	pg_extension_ownercheck((oid), (role))
#endif

/* 16: parsers can report errors softly */
#if PG_VERSION_NUM >= 160000
#define elt_qualified_name_list(name)	stringToQualifiedNameList((name), NULL)
#else
#define elt_qualified_name_list(name)	stringToQualifiedNameList(name)
#endif

/* 17: a message can be flushed at once */
#if PG_VERSION_NUM >= 170000
#define elt_log_message(prefix, message, size, transactional) \
	LogLogicalMessage((prefix), (message), (size), (transactional), false)
#else
#define elt_log_message(prefix, message, size, transactional) \
	LogLogicalMessage((prefix), (message), (size), (transactional))
#endif

/* 17: a function of core does it */
#if PG_VERSION_NUM < 170000
#define elt_restrict_search_path() \
	((void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, \
							  PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false))
#else
#define elt_restrict_search_path()	RestrictSearchPath()
#endif

/* 16: the actions of the JSON parser return a code */
#if PG_VERSION_NUM >= 160000
#define ELT_JSON_ACTION			JsonParseErrorType
#define ELT_JSON_ACTION_RETURN	return JSON_SUCCESS
#else
#define ELT_JSON_ACTION			void
#define ELT_JSON_ACTION_RETURN	return
#endif

/* 17: its lexer may live in memory of the caller */
#if PG_VERSION_NUM >= 170000
#define elt_json_lexer(text, length, encoding, escapes) \
	makeJsonLexContextCstringLen(NULL, (text), (length), (encoding), (escapes))
#else
#define elt_json_lexer(text, length, encoding, escapes) \
	makeJsonLexContextCstringLen((text), (length), (encoding), (escapes))
#endif

/* 17: waits of extensions have names of their own in pg_stat_activity */
#if PG_VERSION_NUM >= 170000
#define elt_wait_event(name)	WaitEventExtensionNew(name)
#else
#define elt_wait_event(name)	PG_WAIT_EXTENSION
#endif

/* 17: the class has another name */
#if PG_VERSION_NUM >= 170000
#define ELT_WAIT_BUFFER_PIN		PG_WAIT_BUFFERPIN
#else
#define ELT_WAIT_BUFFER_PIN		PG_WAIT_BUFFER_PIN
#endif

/* 18: columns that are worked out when they are read, so are in no tuple */
#ifndef ATTRIBUTE_GENERATED_VIRTUAL
#define ATTRIBUTE_GENERATED_VIRTUAL	'v'
#endif

#endif							/* ELT_COMPAT_H */
