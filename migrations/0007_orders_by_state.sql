-- no-transaction
-- What the back office looks for without a sale or a buyer: a state, a time, or both.
CREATE INDEX CONCURRENTLY IF NOT EXISTS orders_by_state ON orders (state, accepted_at);
