# Before each start of the server: makes the cluster if the volume is empty, gives
# both passwords the values of their Secrets and gives Keto its database.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  # Renamed when complete, because a stop in between would leave half a cluster.
  rm -rf "$PGDATA.new"
  initdb --pgdata="$PGDATA.new" --username=postgres --encoding=UTF8 --locale=C.UTF-8 \
    --data-checksums --auth-local=peer --auth-host=reject --no-instructions
  mv "$PGDATA.new" "$PGDATA"
fi
pg_ctl start --wait --options="-c hba_file=/etc/postgres/pg_hba.conf -c listen_addresses= -c unix_socket_directories=/tmp"
trap 'pg_ctl stop --mode=fast' EXIT
psql --host=/tmp --username=postgres --dbname=postgres --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
-- Whatever the server is told to log, not these.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
\set admin `cat /etc/postgres-admin/password`
\set keto `cat /etc/keto-database/password`
ALTER ROLE postgres PASSWORD :'admin';
SELECT 'CREATE ROLE keto LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keto') \gexec
ALTER ROLE keto PASSWORD :'keto';
SELECT 'CREATE DATABASE keto OWNER keto' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'keto') \gexec
-- Anybody may connect to a new database, and each role to all of these.
REVOKE ALL ON DATABASE keto, postgres, template1 FROM PUBLIC;
SQL
