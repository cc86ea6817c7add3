# What a user made of elt.error_classes goes through a dump: changed rows, added
# ones, and those of a pipeline; what came with elt is there once.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('error_classes', 'elt.max_workers = 0');
my $all = "SELECT sqlstate_prefix, error_class, pipeline, shipped FROM elt.error_classes ORDER BY sqlstate_prefix, pipeline";

$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE target (id int PRIMARY KEY, v text);
SELECT elt.create_source('s', ARRAY['t']);
SELECT elt.create_pipeline('p', 's', 't', 'target');
INSERT INTO elt.error_classes VALUES ('22', 'dependency', 'p'), ('23503', 'data', NULL), ('ELT02', 'data', NULL);
UPDATE elt.error_classes SET error_class = 'data' WHERE sqlstate_prefix = '0A000';
CREATE DATABASE copy;
EOS
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'a database with elt is dumped');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ], 'and restored');
is($node->safe_psql('copy', $all), $node->safe_psql('postgres', $all), 'the copy has the same error classes');
is($node->safe_psql('copy', "SELECT count(*) FROM elt.error_classes WHERE NOT shipped"), '4', 'four of them are the user\'s');
is($node->safe_psql('copy', 'SELECT target, target_name, target_owner FROM elt.pipelines'), 'target|public.target|postgres',
	'and the pipeline knows its target');
$node->safe_psql('copy', "UPDATE elt.pipelines SET name = 'renamed'");
is($node->safe_psql('copy', "SELECT error_class FROM elt.error_classes WHERE pipeline = 'renamed'"), 'dependency', 'a class follows the pipeline\'s name');
$node->stop;
done_testing();
