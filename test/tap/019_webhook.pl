# The webhook script of README.md, as it is there, against a receiver of our
# own: the shapes that Slack, PagerDuty and Alertmanager ask for, and that no
# alert is lost while the receiver or the server is away.
use strict;
use warnings;

use EltTest;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($script) = slurp_file($ENV{ELT_README} || 'README.md') =~ /<!-- webhook -->\n```python\n(.*?)```\n<!-- \/webhook -->/s;
ok(defined $script, 'README has the script');

my $dir = PostgreSQL::Test::Utils::tempdir();
append_to_file("$dir/elt-webhook", $script);
append_to_file("$dir/receiver", <<'EOS');
# Appends the path and the body of each POST to a file; refuses while there is a file "refuse".
import http.server, os, sys

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        refused = os.path.exists(sys.argv[1] + "/refuse")
        if not refused:
            with open(sys.argv[1] + "/received", "a") as file:
                file.write(self.path + " " + self.headers["Content-Type"] + " " + body + "\n")
        self.send_response(503 if refused else 202)
        self.end_headers()
    def log_message(self, *args):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
EOS

my $port = '';
my $receiver = IPC::Run::start([ 'python3', "$dir/receiver", $dir ], '>', \$port, IPC::Run::timeout(900));
$receiver->pump until $port =~ /\n/;
chomp $port;

my $node = elt_node('webhook', "shared_preload_libraries = 'elt'");
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION elt;
CREATE TABLE level (place text PRIMARY KEY, value float8);
INSERT INTO level VALUES ('old', 99);
SELECT elt.create_alert_rule('high', 'SELECT place, value, ''a <b> & "ü"'' AS "what ?" FROM level', 10,
	severity => 'critical', hint => 'lower it', group_interval => '0');
CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
EOS
poll_ok($node, q{SELECT count(*) = 1 FROM elt.alerts WHERE told = 'firing'}, 'an alert fired before');

my %shapes = (
	slack => '/services/T/B/x',
	pagerduty => '/v2/enqueue',
	alertmanager => '/api/v2/alerts');
my %run;
foreach my $shape (keys %shapes)
{
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'watcher',
		ROUTING_KEY => 'secret-key', http_proxy => '', no_proxy => '*');
	$run{$shape} = { err => '' };
	$run{$shape}{handle} = IPC::Run::start(
		[ 'python3', "$dir/elt-webhook", $shape, "http://127.0.0.1:$port$shapes{$shape}", "$dir/$shape" ],
		'2>', \$run{$shape}{err}, IPC::Run::timeout(900));
}
ok(poll_perl(180, sub { return 3 == grep { -s "$dir/$_" } keys %shapes }), 'all three run');

# The documents that a shape posted, which match.
sub posted
{
	my ($shape, $pattern) = @_;
	return () unless -e "$dir/received";
	return map { JSON::PP->new->utf8->decode($_) }
	  grep { $_ =~ $pattern }
	  map { m{^\Q$shapes{$shape}\E application/json (.*)$} ? $1 : () } split(/\n/, slurp_file("$dir/received"));
}

sub posted_ok
{
	my ($shape, $pattern, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @documents;
	ok(poll_perl(180, sub { @documents = posted($shape, $pattern); return @documents > 0 }), "$shape: $what")
	  or diag($run{$shape}{err});
	return $documents[0];
}

# ---- firing ----

$node->safe_psql('postgres', q{INSERT INTO level VALUES ('north', 11)});
my $slack = posted_ok('slack', qr/FIRING.*north/, 'firing');
is(join(',', keys %$slack), 'text', 'slack: one text');
like($slack->{text}, qr/^\[critical\] FIRING: high \(place=north, what \?=a &lt;b&gt; &amp; "\x{fc}"\), value 11\n/, 'slack: escaped as it wants it');
like($slack->{text}, qr/^hint: lower it$/m, 'slack: with the hint');

my $alert_id = $node->safe_psql('postgres', q{SELECT alert_id FROM elt.alerts WHERE labels->>'place' = 'north'});
my $pagerduty = posted_ok('pagerduty', qr/north/, 'trigger');
is_deeply([ @$pagerduty{qw(routing_key event_action dedup_key)} ], [ 'secret-key', 'trigger', "elt/postgres/$alert_id" ], 'pagerduty: an event');
is_deeply([ sort keys %{ $pagerduty->{payload} } ], [qw(custom_details severity source summary timestamp)], 'pagerduty: its payload');
is($pagerduty->{payload}{severity}, 'critical', 'pagerduty: a severity that it knows');
is($pagerduty->{payload}{custom_details}{place}, 'north', 'pagerduty: labels are details');

my $alertmanager = posted_ok('alertmanager', qr/north/, 'firing');
is(ref($alertmanager), 'ARRAY', 'alertmanager: a list of alerts');
is_deeply($alertmanager->[0]{labels},
	{ alertname => 'high', severity => 'critical', database => 'postgres', place => 'north', what__ => "a <b> & \"\x{fc}\"" },
	'alertmanager: labels with names that it takes');
like($alertmanager->[0]{annotations}{summary}, qr/^FIRING: high/, 'alertmanager: annotations');
my $now = $node->safe_psql('postgres', "SELECT '$alertmanager->[0]{startsAt}'::timestamptz <= now(), '$alertmanager->[0]{endsAt}'::timestamptz > now() + interval '1 day'");
is($now, 't|t', 'alertmanager: it has begun and not ended');

# ---- what was told before the first start is not posted ----

is(scalar(posted('slack', qr/place=old/)), 0, 'nothing of before');

# ---- the receiver is away, then the server ----

append_to_file("$dir/refuse", '');
$node->safe_psql('postgres', q{INSERT INTO level VALUES ('south', 12)});
poll_ok($node, q{SELECT told = 'firing' FROM elt.alerts WHERE labels->>'place' = 'south'}, 'told while the receiver refuses');
ok(poll_perl(180, sub { $_->{handle}->pump_nb foreach values %run; return 3 == grep { $_->{err} =~ /503.*again in 5 s/ } values %run }),
	'the scripts say so');
$node->restart;
$node->safe_psql('postgres', q{DELETE FROM level WHERE place = 'north'});
poll_ok($node, q{SELECT told = 'resolved' FROM elt.alerts WHERE labels->>'place' = 'north'}, 'resolved after a restart of the server');
unlink("$dir/refuse");
foreach my $shape (sort keys %shapes)
{
	posted_ok($shape, qr/south/, 'what the receiver missed');
}

# ---- resolved ----

like(posted_ok('slack', qr/resolved/, 'resolved')->{text}, qr/resolved: high \(place=north/, 'slack: resolved');
my $over = posted_ok('pagerduty', qr/"resolve"/, 'resolve');
is_deeply($over, { routing_key => 'secret-key', event_action => 'resolve', dedup_key => "elt/postgres/$alert_id" }, 'pagerduty: the same alert ends');
my $ended = posted_ok('alertmanager', qr/resolved: /, 'resolved');
is($node->safe_psql('postgres', "SELECT '$ended->[0]{endsAt}'::timestamptz <= now()"), 't', 'alertmanager: it has ended');
is_deeply($ended->[0]{labels}, $alertmanager->[0]{labels}, 'alertmanager: the same alert');

# ---- a script that is started again goes on where it was ----

$run{slack}{handle}->kill_kill;
my $before = posted('slack', qr/./);
$node->safe_psql('postgres', q{INSERT INTO level VALUES ('west', 13)});
poll_ok($node, q{SELECT told = 'firing' FROM elt.alerts WHERE labels->>'place' = 'west'}, 'told while the script is away');
{
	local %ENV = (%ENV, PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres', PGUSER => 'watcher', http_proxy => '', no_proxy => '*');
	$run{slack}{handle} = IPC::Run::start([ 'python3', "$dir/elt-webhook", 'slack', "http://127.0.0.1:$port$shapes{slack}", "$dir/slack" ],
		'2>', \$run{slack}{err}, IPC::Run::timeout(900));
}
posted_ok('slack', qr/west/, 'what it missed');
is(scalar(posted('slack', qr/./)), $before + 1, 'and nothing else');

$_->{handle}->kill_kill foreach values %run;
$receiver->kill_kill;
$node->stop;
done_testing();
