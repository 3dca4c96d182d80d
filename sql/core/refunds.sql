-- @stage      incremental key(refund_id)
-- @owner      finance
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
    core.orders.customer_id as customer_id,
    latest.refund_id as refund_id,
    latest.payment_id as payment_id,
    latest.order_id as order_id,
    latest.requested_at as requested_at,
    latest.promised_at as promised_at,
    latest.refunded_at as refunded_at,
    upper(coalesce(trim(latest.currency), 'CNY')) as currency,
    latest.amount as amount,
    lower(trim(latest.reason)) as reason
from latest
left join core.orders on core.orders.order_id = latest.order_id
