#!/bin/sh
# The users of Redis, as lines of its configuration: what each program's scripts and commands need, and
# nothing beyond. Read by `./dev` and by the container of compose.yaml. Passwords come as
# REDIS_EDGE_PASSWORD and so on; only their SHA-256 is printed.
#
# A script runs with its caller's rights, so whoever may run reserve.lua may write what it writes; a
# selector, in parentheses, gives a command on some keys only.
set -eu

user() {
  name=$1 hash=$(printf '%s' "$2" | sha256sum | cut -d' ' -f1)
  shift 2
  printf 'user %s on #%s resetchannels -@all %s\n' "$name" "$hash" "$*"
}

session='+hello +auth +ping +echo +select +quit +reset +time +client|id +client|getname +client|setname'
# A subcommand that the server does not know would keep it from starting.
version=$(redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p')
if [ "$(printf '7.2\n%s\n' "$version" | sort -V | head -n 1)" = 7.2 ]; then
  session="$session +client|setinfo"
fi

# Nobody can log in as `default`, but Redis replays its own AOF as that user: without its rights it
# would refuse every transaction in the file and come back without what the scripts did.
echo 'user default off resetpass ~* &* +@all'

# Reads; tells that it is there; takes out of the journal what the broker has; runs reserve.lua, which
# writes the four keys of a segment.
user edge "$REDIS_EDGE_PASSWORD" "$session +subscribe +unsubscribe &sluice:sales &sluice:sale:*" \
  '%R~sluice:* +get +hget +hgetall +hmget +hexists +hscan +exists +xlen +xrange' \
  '(%W~sluice:edges +hset)' \
  '(%W~sluice:{*}:journal +xadd +xdel)' \
  '(%W~sluice:{*}:meta %W~sluice:{*}:stock %W~sluice:{*}:orders +hset)' \
  '(~sluice:{*}:meta ~sluice:{*}:stock ~sluice:{*}:orders ~sluice:{*}:journal +evalsha)'

# Its roles and the wardens; alone to load scripts: one that is gone must freeze the sale.
user worker "$REDIS_WORKER_PASSWORD" "$session +publish &sluice:sales &sluice:sale:*" \
  '~sluice:* +get +set +incr +del +unlink +exists +type +rename +expire +pexpire +persist +pttl' \
  '+hget +hgetall +hkeys +hlen +hmget +hscan +hvals +hset +hsetnx +hdel +xadd +xdel +xlen +xrange +xrevrange' \
  '+multi +exec +zadd +zrem +zscore +zrangebyscore +evalsha +script|load +script|exists +config|get +info'

# People and audits: they read, and change nothing.
user operator "$REDIS_OPERATOR_PASSWORD" "$session &* +@read -@dangerous %R~* +keys" \
  '+subscribe +unsubscribe +psubscribe +punsubscribe +info +config|get +script|exists +role +lastsave' \
  '+slowlog|get +slowlog|len +latency|latest +latency|history +memory|usage +memory|stats +client|list +client|info'

user replica "$REDIS_REPLICA_PASSWORD" '+psync +replconf +ping'
