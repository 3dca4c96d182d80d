-- One row a line of an order, at its last state. A line belongs to the customer of its order; lines whose order never
-- arrived stay here without a customer.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_key:        order_id is not null and line_no is not null
-- @expect     fail        unique_line:    count(*) = count(distinct order_id || '/' || cast(line_no as varchar))
-- @expect     quarantine  sane_quantity:  quantity > 0
-- @expect     quarantine  sane_amount:    line_amount >= 0
-- @expect     warn        has_category:   category is not null
with latest as (
    select *
    from raw.order_lines
    where order_id is not null
        and line_no is not null
    qualify row_number() over (
        partition by order_id, line_no
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    core.orders.customer_id as customer_id,                                         -- Unified customer id of the order
    latest.order_id as order_id,                                                    -- The order system's key
    latest.line_no as line_no,                                                      -- Line number within the order
    coalesce(core.orders.ordered_at, latest.ordered_at) as ordered_at,              -- When the order was placed
    latest.product_id as product_id,                                                -- Product, in the shop's numbering
    latest.product_name as product_name,                                            -- Product name as sold
    lower(trim(latest.category)) as category,                                       -- Product category
    trim(latest.brand) as brand,                                                    -- Brand
    latest.quantity as quantity,                                                    -- Pieces
    core.orders.currency as currency,                                               -- ISO 4217 code of the order
    latest.unit_price as unit_price,                                                -- List price of a piece
    cast(coalesce(latest.discount_amount, 0) as decimal(12, 2)) as discount_amount, -- Discount on the line
    latest.line_amount as line_amount                                               -- What the line cost after discount
from latest
left join core.orders on core.orders.order_id = latest.order_id
