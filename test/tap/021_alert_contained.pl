# What the code of a user's alert rule may leave in the supervisor's session, or
# do to keep the supervisor from its work: both are over soon.
use strict;
use warnings;

use EltTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = elt_node('contained', "shared_preload_libraries = 'elt'", 'elt.alert_time_limit = 300ms');
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE ROLE joe;
CREATE SCHEMA joe AUTHORIZATION joe;
GRANT EXECUTE ON FUNCTION elt.create_alert_rule TO joe;
SET ROLE joe;
CREATE FUNCTION joe.keep() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(78); RETURN 1; END $$;
CREATE FUNCTION joe.stay() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
	LOOP
		BEGIN
			PERFORM pg_sleep(600);
		EXCEPTION WHEN query_canceled THEN
		END;
	END LOOP;
END $$;
SELECT elt.create_alert_rule('keeps', 'SELECT joe.keep() AS value');
EOS
poll_ok($node, q{SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'keeps'}, 'a rule that takes a lock of the session fires');
poll_ok($node, 'SELECT pg_try_advisory_lock(78)', 'and its lock is gone afterwards');
$node->safe_psql('postgres', q{SET ROLE joe; SELECT elt.create_alert_rule('stays', 'SELECT joe.stay() AS value')});
poll_ok($node, q{SELECT NOT enabled AND last_error LIKE '57014: disabled:%' FROM elt.alert_rules WHERE rule = 'stays'},
	'a rule that does not let itself be cancelled is disabled');
poll_ok($node, q{SELECT count(*) = 1 FROM elt.workers() WHERE kind = 'supervisor' AND pid IS NOT NULL AND dboid = (SELECT oid FROM pg_database WHERE datname = 'postgres')},
	'and the supervisor is back');
$node->safe_psql('postgres', q{SELECT elt.drop_alert_rule(rule) FROM elt.alert_rules WHERE rule IN ('keeps', 'stays')});
$node->safe_psql('postgres', q{SELECT elt.create_alert_rule('works', 'SELECT 1 AS value')});
poll_ok($node, q{SELECT count(*) = 1 FROM elt.alerts WHERE rule = 'works' AND told = 'firing'}, 'which goes on with its rules');
$node->stop;
done_testing();
