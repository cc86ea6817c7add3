# Proxy: a TCP proxy in user space between a source and the one that reads it,
# to break what networks break.
#
#	my $proxy = Proxy->new(host => ..., port => ...);	# of the server, TCP
#	$proxy->port		to connect to
#	$proxy->set(...)	what happens from now on, also to open connections:
#		pass			bytes go through
#		cut_at => [N, 'rst' | 'fin' | 'hole']
#						in the next stream, once N bytes of CopyData came
#						from the server, in the middle of a message: reset,
#						closed, or no byte moves any more, in either direction
#		cut_at => [N, 'rst' | 'fin' | 'hole', 'copy']
#						likewise in a COPY TO STDOUT
#		inject => [HEX, N, 'close' | 'hold']
#						the next stream is these bytes N times, and then closed
#						or silent; nothing of it comes from the server
#		hole			no byte moves any more, and nothing is closed
#		dribble			one byte at a time from the server
#		delay => MS		each byte arrives so much later
#		refuse			new connections are closed at once
#	$proxy->cuts		how many streams were cut
#	$proxy->accepted	how many connections were taken
#	$proxy->stop
#
# A process of its own; orders and counts go through small files, so that no
# answer has to be waited for but that an order was read.
package Proxy;

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use Socket qw(SOL_SOCKET SO_LINGER IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time usleep);

sub new
{
	my ($class, %arguments) = @_;
	my $self = bless { %arguments, order => 0 }, $class;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1', LocalPort => 0, Listen => 20, ReuseAddr => 1) or die "listen: $!";

	$self->{port_here} = $listener->sockport;
	$self->{file} = $arguments{directory} . "/proxy." . $self->{port_here};
	$self->set('pass');
	$self->{pid} = fork() // die "fork: $!";
	if ($self->{pid} == 0)
	{
		$self->serve($listener);
		require POSIX;
		POSIX::_exit(0);
	}
	close($listener);
	return $self;
}

sub port { return $_[0]->{port_here} }

sub set
{
	my ($self, @order) = @_;
	@order = map { ref $_ ? @$_ : $_ } @order;
	$self->{order}++;
	write_file("$self->{file}.order", join(' ', $self->{order}, @order));
	return unless $self->{pid};
	for (1 .. 200)
	{
		return if (read_file("$self->{file}.state") =~ /^(\d+)/ ? $1 : 0) >= $self->{order};
		usleep(50_000);
	}
	die 'the proxy does not answer';
}

sub counts
{
	my ($self) = @_;
	return split(/ /, read_file("$self->{file}.state"));
}

sub cuts { return ($_[0]->counts)[1] || 0 }
sub accepted { return ($_[0]->counts)[2] || 0 }

sub stop
{
	my ($self) = @_;
	return unless $self->{pid};
	kill 'KILL', $self->{pid};
	waitpid($self->{pid}, 0);
	$self->{pid} = 0;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $!);
	$self->stop if $self->{pid};
}

sub write_file
{
	my ($name, $text) = @_;
	open(my $file, '>', "$name.new") or die "$name: $!";
	print $file $text;
	close($file);
	rename("$name.new", $name) or die "$name: $!";
}

sub read_file
{
	my ($name) = @_;
	open(my $file, '<', $name) or return '';
	local $/;
	my $text = <$file>;
	close($file);
	return $text // '';
}

# ---- the process ----

sub serve
{
	my ($self, $listener) = @_;
	my ($seen, $mode, @arguments) = (0, 'pass');
	my ($cuts, $accepted) = (0, 0);
	my @pairs;
	my $parent = getppid();

	$SIG{PIPE} = 'IGNORE';
	$SIG{$_} = 'DEFAULT' foreach qw(INT TERM);
	while (getppid() == $parent)
	{
		my ($order, @words) = split(/ /, read_file("$self->{file}.order"));
		if ($order != $seen)
		{
			($seen, $mode, @arguments) = ($order, @words);
			write_file("$self->{file}.state", "$seen $cuts $accepted");
		}

		my $select = IO::Select->new($listener);
		my $moving = $mode ne 'hole';
		foreach my $pair (@pairs)
		{
			next unless $moving && !$pair->{hole};
			foreach my $side (qw(client server))
			{
				$select->add($pair->{$side}) if length($pair->{"to_" . other($side)}) < 65536;
			}
		}
		my $pause = $moving && grep({ !$_->{hole} && (length($_->{to_client}) || length($_->{to_server})) } @pairs) ? 0 :
		  grep({ @{ $_->{queue} } } @pairs) ? 0.002 : 0.02;
		foreach my $socket ($select->can_read($pause))
		{
			if ($socket == $listener)
			{
				my $client = $listener->accept or next;
				$accepted++;
				write_file("$self->{file}.state", "$seen $cuts $accepted");
				next if $mode eq 'refuse';	# closed as it goes out of scope
				my $server = IO::Socket::INET->new(PeerAddr => $self->{host}, PeerPort => $self->{port}) or next;
				foreach my $end ($client, $server)
				{
					$end->blocking(0);
					setsockopt($end, IPPROTO_TCP, TCP_NODELAY, 1);
				}
				push @pairs, { client => $client, server => $server, to_client => '', to_server => '',
					queue => [], stream => '', copied => 0 };
				next;
			}
			foreach my $pair (@pairs)
			{
				my $side = $socket == $pair->{client} ? 'client' : $socket == $pair->{server} ? 'server' : next;
				my $read = sysread($socket, my $bytes, 16384);
				if (!$read)
				{
					$pair->{closed} = 1 unless !defined $read && $!{EAGAIN};
				}
				elsif ($side eq 'client')
				{
					$pair->{to_server} .= $bytes;
				}
				else
				{
					push @{ $pair->{queue} }, [ time() + ($mode eq 'delay' ? $arguments[0] / 1000 : 0), $bytes ];
				}
			}
		}
		foreach my $pair (@pairs)
		{
			while ($moving && @{ $pair->{queue} } && $pair->{queue}[0][0] <= time() && !$pair->{hole})
			{
				my $bytes = shift(@{ $pair->{queue} })->[1];
				my $keep = count_copied($pair, $bytes, $mode eq 'cut_at' ? $arguments[0] : undef, $arguments[2] // 'stream');
				# of a stream that begins now
				my $begin = $mode eq 'inject' && !$pair->{evil} ? index($bytes, "W\0\0\0\x07\0\0\0") : -1;
				if ($begin >= 0)
				{
					$pair->{to_client} .= substr($bytes, 0, $begin + 8) . pack('H*', $arguments[0]) x $arguments[1];
					$pair->{evil} = 1;
					$pair->{closed} = 1 if $arguments[2] eq 'close';
					$mode = 'spent';
					$cuts++;
					write_file("$self->{file}.state", "$seen $cuts $accepted");
					next;
				}
				next if $pair->{evil};
				if (!defined $keep)
				{
					$pair->{to_client} .= $bytes;
					next;
				}
				$pair->{to_client} .= substr($bytes, 0, $keep);
				push_out($pair, 'client', 65536);
				setsockopt($pair->{client}, SOL_SOCKET, SO_LINGER, pack('II', 1, 0)) if $arguments[1] eq 'rst';
				if ($arguments[1] eq 'hole')
				{
					$pair->{hole} = 1;
				}
				else
				{
					$pair->{closed} = 2;
				}
				$mode = 'pass';
				$cuts++;
				write_file("$self->{file}.state", "$seen $cuts $accepted");
			}
			next if !$moving || $pair->{hole};
			push_out($pair, 'client', $mode eq 'dribble' ? 1 : 65536);
			push_out($pair, 'server', 65536);
		}
		@pairs = grep { !$_->{closed} || $_->{closed} == 1 && $moving && !$_->{hole} && (length($_->{to_client}) || length($_->{to_server}) || @{ $_->{queue} }) && !$_->{broken} } @pairs;
	}
}

sub other { return $_[0] eq 'client' ? 'server' : 'client' }

sub push_out
{
	my ($pair, $side, $most) = @_;
	return unless length($pair->{"to_$side"});
	my $written = syswrite($pair->{$side}, $pair->{"to_$side"}, $most);
	if (defined $written)
	{
		substr($pair->{"to_$side"}, 0, $written, '');
	}
	elsif (!$!{EAGAIN})
	{
		$pair->{closed} = 1;
		$pair->{broken} = 1;
	}
}

# Follows the messages of the server; how many bytes of these are to be passed
# on, once enough CopyData came from a stream or a copy, undef before.
sub count_copied
{
	my ($pair, $bytes, $limit, $what) = @_;
	for (my $at = 0; $at < length($bytes);)
	{
		if ($pair->{left})
		{
			my $take = $pair->{left} < length($bytes) - $at ? $pair->{left} : length($bytes) - $at;
			if ($pair->{type} eq 'd' && ($pair->{sends} // '') eq $what)
			{
				return $at + $limit - $pair->{copied} if defined $limit && $pair->{copied} + $take > $limit;
				$pair->{copied} = defined $limit ? $pair->{copied} + $take : 0;
			}
			$pair->{left} -= $take;
			$at += $take;
			next;
		}
		$pair->{head} .= substr($bytes, $at++, 1);
		next if length($pair->{head}) < 5;
		($pair->{type}, my $length) = unpack('aN', $pair->{head});
		$pair->{head} = '';
		$pair->{left} = $length - 4;
		$pair->{sends} = 'stream' if $pair->{type} eq 'W';	# CopyBothResponse
		$pair->{sends} = 'copy' if $pair->{type} eq 'H';	# CopyOutResponse
	}
	return undef;
}

1;
