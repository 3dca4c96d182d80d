-- One row a customer with payments or refunds: failures at the till of the online shop, and refund promises kept or
-- broken. A refund paid out after now() is still open at now(); it is late when its promise has passed.
-- @stage      incremental key(customer_id)
-- @owner      finance
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        overdue_is_open:  refunds_overdue <= refunds_open
with payments as (
    select
        customer_id,
        count(*) filter (where status = 'captured' and paid_at > now() - interval '365 days') as payments_365d,
        count(*) filter (where status = 'failed' and paid_at > now() - interval '30 days') as failed_payments_30d,
        count(*) filter (where status = 'failed' and paid_at > now() - interval '365 days') as failed_payments_365d,
        count(distinct case when paid_at > now() - interval '365 days' then method end) as payment_methods_365d
    from core.payments
    where customer_id is not null
        and paid_at <= now()
    group by customer_id
),

known_refunds as (
    select
        *,
        refunded_at is null or refunded_at > now() as is_open,
        case when refunded_at <= now() then refunded_at end as known_refunded_at
    from core.refunds
    where customer_id is not null
        and requested_at <= now()
),

refunds as (
    select
        customer_id,
        max(requested_at) as last_refund_requested_at,
        count(*) filter (where requested_at > now() - interval '90 days') as refunds_90d,
        count(*) filter (where requested_at > now() - interval '365 days') as refunds_365d,
        sum(case when currency = 'CNY' and known_refunded_at > now() - interval '365 days' then amount else 0 end) as refunded_amount_365d,
        count(*) filter (where is_open) as refunds_open,
        count(*) filter (where is_open and promised_at < now()) as refunds_overdue,
        count(*) filter (where requested_at > now() - interval '90 days' and coalesce(known_refunded_at, now()) > promised_at) as refunds_late_90d,
        count(*) filter (where requested_at > now() - interval '365 days' and coalesce(known_refunded_at, now()) > promised_at) as refunds_late_365d,
        min(promised_at) filter (where is_open and promised_at < now()) as oldest_broken_refund_promise_at,
        avg(cast(date_part('epoch', known_refunded_at) - date_part('epoch', requested_at) as bigint))
            filter (where requested_at > now() - interval '365 days') / 86400.0 as refund_days_365d
    from known_refunds
    group by customer_id
)

select
    coalesce(payments.customer_id, refunds.customer_id) as customer_id,         -- Unified customer id
    coalesce(payments.payments_365d, 0) as payments_365d,                       -- Payments captured, last 365 days
    coalesce(payments.failed_payments_30d, 0) as failed_payments_30d,           -- Payments that failed, last 30 days
    coalesce(payments.failed_payments_365d, 0) as failed_payments_365d,         -- Payments that failed, last 365 days
    coalesce(payments.payment_methods_365d, 0) as payment_methods_365d,         -- Different ways of paying, last 365 days
    refunds.last_refund_requested_at as last_refund_requested_at,               -- Last refund asked for
    coalesce(refunds.refunds_90d, 0) as refunds_90d,                            -- Refunds asked for, last 90 days
    coalesce(refunds.refunds_365d, 0) as refunds_365d,                          -- Refunds asked for, last 365 days
    'CNY' as currency,                                                          -- ISO 4217 code of all amounts in the row
    cast(coalesce(refunds.refunded_amount_365d, 0) as decimal(18, 2)) as refunded_amount_365d, -- Paid back, last 365 days
    coalesce(refunds.refunds_open, 0) as refunds_open,                          -- Refunds not paid out yet
    coalesce(refunds.refunds_overdue, 0) as refunds_overdue,                    -- Refunds not paid out though promised by now
    coalesce(refunds.refunds_late_90d, 0) as refunds_late_90d,                  -- Refunds later than promised, asked for in the last 90 days
    coalesce(refunds.refunds_late_365d, 0) as refunds_late_365d,                -- Refunds later than promised, asked for in the last 365 days
    refunds.oldest_broken_refund_promise_at as oldest_broken_refund_promise_at, -- Promise of the refund that is overdue longest
    refunds.refund_days_365d as refund_days_365d                                -- Mean days from asking to paying out, last 365 days
from payments
full join refunds on refunds.customer_id = payments.customer_id
