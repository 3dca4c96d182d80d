-- One row a payment attempt as the provider settled it: captured or failed. It belongs to the customer of its order; only
-- where the order is unknown does the payer's token decide.
-- @stage      full
-- @owner      finance
-- @expect     fail        has_payment_id:  payment_id is not null
-- @expect     fail        unique_payment:  count(*) = count(distinct payment_id)
-- @expect     quarantine  has_time:        paid_at is not null
-- @expect     quarantine  sane_amount:     amount >= 0
-- @expect     warn        known_status:    status in ('captured', 'failed')
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
    coalesce(core.orders.customer_id, identifiers.customer_id) as customer_id, -- Unified customer id; null when nobody is known
    latest.payment_id as payment_id,                                           -- The provider's key
    latest.order_id as order_id,                                               -- Order it pays
    latest.paid_at as paid_at,                                                 -- When it was attempted
    lower(trim(latest.method)) as method,                                      -- wechat_pay, alipay, card
    lower(trim(latest.status)) as status,                                      -- captured, failed
    upper(coalesce(trim(latest.currency), 'CNY')) as currency,                 -- ISO 4217 code of the amount
    latest.amount as amount                                                    -- Amount attempted
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers on identity.identifiers.token = latest.token
