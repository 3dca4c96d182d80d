-- @stage      incremental key(purchase_id)
-- @owner      commerce data
-- @expect     fail        returns_negative:  is_return = (net_amount < 0)
with pieces as (
    select
        order_id,
        sum(cast(quantity as bigint)) as pieces
    from core.order_lines
    group by order_id
),

ordered as (
    select
        core.orders.customer_id,
        'order/' || core.orders.order_id as purchase_id,
        core.orders.order_id,
        core.orders.ordered_at as purchased_at,
        core.orders.channel,
        cast(null as varchar) as store_code,
        false as is_return,
        core.orders.status = 'returned' as is_returned,
        core.orders.coupon_code is not null as has_coupon,
        core.orders.discount_amount > 0 as has_discount,
        pieces.pieces,
        core.orders.currency,
        core.orders.paid_amount + core.orders.discount_amount - core.orders.shipping_fee as list_amount,
        core.orders.discount_amount,
        core.orders.paid_amount as net_amount
    from core.orders
    left join pieces on pieces.order_id = core.orders.order_id
    where core.orders.status <> 'cancelled'
),

sold as (
    select
        max(customer_id) as customer_id,
        'receipt/' || receipt_id as purchase_id,
        cast(null as varchar) as order_id,
        min(sold_at) as purchased_at,
        'store' as channel,
        min(store_code) as store_code,
        sum(line_amount) < 0 as is_return,
        false as is_returned,
        false as has_coupon,
        false as has_discount,
        sum(cast(quantity as bigint)) as pieces,
        min(currency) as currency,
        sum(line_amount) as list_amount,
        cast(0 as decimal(12, 2)) as discount_amount,
        sum(line_amount) as net_amount
    from core.receipts
    group by receipt_id
),

refunded as (
    select
        core.refunds.customer_id,
        'refund/' || core.refunds.refund_id as purchase_id,
        core.refunds.order_id,
        core.refunds.refunded_at as purchased_at,
        core.orders.channel,
        cast(null as varchar) as store_code,
        true as is_return,
        false as is_returned,
        false as has_coupon,
        false as has_discount,
        cast(null as bigint) as pieces,
        core.refunds.currency,
        cast(0 as decimal(12, 2)) as list_amount,
        cast(0 as decimal(12, 2)) as discount_amount,
        -core.refunds.amount as net_amount
    from core.refunds
    inner join core.orders on core.orders.order_id = core.refunds.order_id
    where core.refunds.refunded_at is not null
        and core.orders.status <> 'cancelled'
),

purchases as (
    select * from ordered
    union all
    select * from sold
    union all
    select * from refunded
)

select
    customer_id,
    purchase_id,
    order_id,
    purchased_at,
    channel,
    store_code,
    is_return,
    is_returned,
    has_coupon,
    has_discount,
    pieces,
    currency,
    cast(list_amount as decimal(18, 2)) as list_amount,
    cast(discount_amount as decimal(18, 2)) as discount_amount,
    cast(net_amount as decimal(18, 2)) as net_amount
from purchases
