-- One row a purchase, or money given back: the orders that were not cancelled, the till receipts and the refunds paid out,
-- in one shape, so that value and rhythm are counted across channels in one place. Money given back (a receipt whose total
-- is negative, a refund that was paid out) is marked is_return: it is no purchase and has a negative amount at its own time,
-- so that the spend at any moment is what was paid by then less what was given back by then. An order that came back whole
-- remains a purchase, since the customer came and bought.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_purchase_id:  purchase_id is not null
-- @expect     fail        unique_purchase:  count(*) = count(distinct purchase_id)
-- @expect     fail        has_time:         purchased_at is not null
-- @expect     fail        returns_negative: is_return = (net_amount < 0)
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
    customer_id,                                                -- Unified customer id; null when nobody is known
    purchase_id,                                                -- order/<order id>, receipt/<receipt id> or refund/<refund id>
    order_id,                                                   -- The order, or the order refunded; null for a receipt
    purchased_at,                                               -- When it was bought, or the money given back
    channel,                                                    -- web, app, mini_program, store
    store_code,                                                 -- Store; null for an order
    is_return,                                                  -- Whether the row only gives money back: not a purchase
    is_returned,                                                -- Whether the whole order came back
    has_coupon,                                                 -- Whether a coupon was used
    has_discount,                                               -- Whether anything was taken off the list price
    pieces,                                                     -- Pieces bought
    currency,                                                   -- ISO 4217 code of all amounts in the row
    cast(list_amount as decimal(18, 2)) as list_amount,         -- Goods before discounts, without delivery
    cast(discount_amount as decimal(18, 2)) as discount_amount, -- Taken off the list price
    cast(net_amount as decimal(18, 2)) as net_amount            -- What the customer paid; negative when given back
from purchases
