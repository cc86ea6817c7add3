
# Runs the tutorial of README.md as a reader would, statement by statement,
# and checks what the text around it claims.
use strict;
use warnings;

use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $readme = $ENV{ELT_README} || 'README.md';
open(my $file, '<', $readme) or die "could not open $readme: $!";
my $text = do { local $/; <$file> };
close($file);

my ($tutorial) = $text =~ /<!-- tutorial -->(.*)<!-- \/tutorial -->/s;
ok(defined $tutorial, 'README has a tutorial');
my @blocks = $tutorial =~ /```sql\n(.*?)```/sg;
cmp_ok(scalar(@blocks), '>=', 9, 'the tutorial has its blocks');

my $node = PostgreSQL::Test::Cluster->new('readme');
$node->init(allows_streaming => 'logical');
$node->start;

# what each block must show, by a part of its text
my %expected = (
	'LIMIT 3' => qr/^r\|public\.customers\|\{"id": 1\}\|/m,
	'sum(cents)' => qr/^10\|55000$/m,
	'SELECT credit FROM' => qr/^75\.00\n8$/m,
	'FROM elt.quarantine;' => qr/^customers\|c\|\{"id": 3\}\|.*\|23514\|.*customers_credit_check/m,
	'elt.patch_quarantine' => qr/^t\ncustomers\|23514\|customers_credit_check\|1\|\{1\}\n+replayed\|\nreplayed\|\n3\|Cyrus\|5\.00$/m,
	'SELECT city FROM' => qr/^London$/m,
	'AS topic' => qr/^checkout\|\{"cart": 17, "total": 99\.5\}$/m,
	'elt.health()' => qr/^shop\|streaming\|/m);
my %seen;

foreach my $block (@blocks)
{
	my ($out, $err);
	my ($title) = $block =~ /^(.{0,50})/;
	my $code = $node->psql('postgres', $block, stdout => \$out, stderr => \$err,
		on_error_stop => 1, extra_params => ['--quiet', '--no-align', '--tuples-only']);
	is($code, 0, "runs: $title") or diag($err);
	unlike($out, qr/^f(\||$)/m, "every wait is met: $title");
	foreach my $part (keys %expected)
	{
		next if index($block, $part) < 0;
		$seen{$part} = 1;
		like($out, $expected{$part}, "shows what it says: $part");
	}
}
is(join(',', sort keys %seen), join(',', sort keys %expected), 'every claim was checked');

# nothing stays behind
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_replication_slots"), 'the slot is gone');
ok($node->poll_query_until('postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type IN ('elt capture', 'elt transform', 'elt supervisor')"),
	'the workers are gone');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_replication_origin"), '0', 'the origin is gone');

$node->stop;
done_testing();
