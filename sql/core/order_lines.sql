-- @stage      incremental key(order_id)
-- @owner      commerce data
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
    core.orders.customer_id as customer_id,
    latest.order_id as order_id,
    latest.line_no as line_no,
    coalesce(core.orders.ordered_at, latest.ordered_at) as ordered_at,
    latest.product_id as product_id,
    sku_map.product_key as product_key,
    latest.product_name as product_name,
    lower(trim(latest.category)) as category,
    trim(latest.brand) as brand,
    latest.quantity as quantity,
    core.orders.currency as currency,
    latest.unit_price as unit_price,
    cast(coalesce(latest.discount_amount, 0) as decimal(12, 2)) as discount_amount,
    latest.line_amount as line_amount
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join core.sku_map as sku_map
    on sku_map.system = 'shop'
    and sku_map.code = upper(trim(latest.product_id))
