/* elt 1.0: made from src/sql/ by "make sql"; edit the parts, not the whole */

-- complain if the script is run by psql rather than by CREATE EXTENSION
\echo Use "CREATE EXTENSION elt" to load this file. \quit

