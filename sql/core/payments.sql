-- @stage      incremental key(payment_id)
-- @owner      finance
-- @expect     quarantine  sane_amount:  amount >= 0
with latest as (
    select
        *,
        identifier_token('payment_token', payer_token) as token
    from raw.payments
    where payment_id is not null
    qualify row_number() over (
        partition by payment_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    coalesce(core.orders.customer_id, identifiers.customer_id) as customer_id,
    latest.payment_id as payment_id,
    latest.order_id as order_id,
    latest.paid_at as paid_at,
    lower(trim(latest.method)) as method,
    lower(trim(latest.status)) as status,
    upper(coalesce(trim(latest.currency), 'CNY')) as currency,
    latest.amount as amount
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.paid_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.paid_at < identifiers.valid_to)
