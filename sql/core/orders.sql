-- The system sends an order again whenever its status changes, with the same ordered_at, so arrival decides which is
-- last.
-- @stage      incremental key(order_id)
-- @owner      commerce data
-- @expect     quarantine  sane_amount:  paid_amount >= 0 and paid_amount < 10000000
with latest as (
    select
        *,
        coalesce(
            identifier_token('member_id', member_no),
            identifier_token('unionid', wechat['unionid']),
            identifier_token('email', buyer['email']),
            identifier_token('phone', buyer['mobile']),
            identifier_token('openid', wechat['openid'])
        ) as token
    from raw.orders
    where order_id is not null
    qualify row_number() over (
        partition by order_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.order_id as order_id,
    latest.ordered_at as ordered_at,
    lower(trim(latest.status)) as status,
    lower(trim(latest.channel)) as channel,
    latest.member_no is null as is_guest,
    upper(coalesce(trim(latest.currency), 'CNY')) as currency,
    latest.goods_amount as goods_amount,
    cast(coalesce(latest.discount_amount, 0) as decimal(12, 2)) as discount_amount,
    cast(coalesce(latest.shipping_fee, 0) as decimal(12, 2)) as shipping_fee,
    latest.paid_amount as paid_amount,
    nullif(trim(latest.coupon_code), '') as coupon_code,
    latest.ship_to['province'] as province,
    latest.ship_to['city'] as city
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.ordered_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.ordered_at < identifiers.valid_to)
