#!/bin/sh
# Run once by the postgres image when its volume is new: the reading operator.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$SLUICE_DATABASE_READER_PASSWORD" -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'SQL'
CREATE ROLE sluice_reader LOGIN PASSWORD :'password';
GRANT pg_read_all_data TO sluice_reader;
SQL
