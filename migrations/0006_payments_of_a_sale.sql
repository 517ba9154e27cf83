-- no-transaction
-- An order's id has the number of its sale between its dashes: what was paid for a sale is read by it,
-- whether the orders that it names exist or not.
CREATE INDEX CONCURRENTLY IF NOT EXISTS payments_of_a_sale ON payments (split_part(order_id, '-', 2), payment_id);
