-- One row a refund, at its last state, of the customer of its order. Partial refunds of an order are several rows.
-- @stage      full
-- @owner      finance
-- @expect     fail        has_refund_id:  refund_id is not null
-- @expect     fail        unique_refund:  count(*) = count(distinct refund_id)
-- @expect     quarantine  has_time:       requested_at is not null
-- @expect     quarantine  sane_amount:    amount > 0
-- @expect     quarantine  ordered_times:  refunded_at is null or refunded_at >= requested_at
with latest as (
    select *
    from raw.refunds
    where refund_id is not null
    qualify row_number() over (
        partition by refund_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    core.orders.customer_id as customer_id,                    -- Unified customer id of the order; null when nobody is known
    latest.refund_id as refund_id,                             -- The provider's key
    latest.payment_id as payment_id,                           -- Payment it gives back
    latest.order_id as order_id,                               -- Order it belongs to
    latest.requested_at as requested_at,                       -- When the customer asked
    latest.promised_at as promised_at,                         -- When it was promised
    latest.refunded_at as refunded_at,                         -- When it was paid out; null while not
    upper(coalesce(trim(latest.currency), 'CNY')) as currency, -- ISO 4217 code of the amount
    latest.amount as amount,                                   -- Amount given back
    lower(trim(latest.reason)) as reason                       -- Reason the customer gave
from latest
left join core.orders on core.orders.order_id = latest.order_id
