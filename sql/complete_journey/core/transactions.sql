-- @stage      incremental key(basket_id)
-- @owner      commerce data
-- @expect     quarantine  sane_amount:    sales_value >= 0
-- @expect     quarantine  sane_quantity:  quantity >= 0
-- @expect     warn        has_customer:   customer_id is not null
-- @expect     warn        known_product:  department is not null
with newest as (
    select
        _source_file,
        max(_batch) as _batch
    from raw.transactions
    group by _source_file
),

delivered as (
    select
        raw.transactions.*,
        identifier_token('member_id', cast(raw.transactions.household_id as varchar)) as token
    from newest
    inner join raw.transactions
        on raw.transactions._source_file = newest._source_file
        and raw.transactions._batch = newest._batch
    where raw.transactions.basket_id is not null
        and raw.transactions.product_id is not null
),

watched_stores as (
    select distinct store_id
    from core.promoted_products
)

select
    identifiers.customer_id as customer_id,
    delivered.basket_id as basket_id,
    delivered.product_id as product_id,
    delivered.store_id as store_id,
    delivered.week as week,
    delivered.purchased_at as purchased_at,
    core.products.department as department,
    core.products.product_category as product_category,
    core.products.brand as brand,
    coalesce(core.products.department = 'FUEL', false) as is_fuel,
    delivered.quantity as quantity,
    'USD' as currency,
    delivered.sales_value as sales_value,
    delivered.retail_disc as loyalty_discount,
    delivered.coupon_match_disc as coupon_match_discount,
    delivered.coupon_disc as coupon_discount,
    cast(delivered.sales_value - delivered.coupon_disc as decimal(12, 2)) as paid_amount,
    cast(delivered.sales_value + delivered.retail_disc + delivered.coupon_match_disc as decimal(12, 2)) as list_amount,
    case when watched_stores.store_id is not null then coalesce(core.promoted_products.is_displayed, false) end as is_displayed,
    case when watched_stores.store_id is not null then coalesce(core.promoted_products.is_mailed, false) end as is_mailed
from delivered
left join identity.identifiers on identity.identifiers.token = delivered.token
left join core.products on core.products.product_id = delivered.product_id
left join core.promoted_products
    on core.promoted_products.product_id = delivered.product_id
    and core.promoted_products.store_id = delivered.store_id
    and core.promoted_products.week = delivered.week
left join watched_stores on watched_stores.store_id = delivered.store_id
