-- no-transaction
-- Events are noted in the transaction of their cause and have its time: by it those of one order are found.
CREATE INDEX CONCURRENTLY IF NOT EXISTS outbox_by_time ON outbox (created_at);
