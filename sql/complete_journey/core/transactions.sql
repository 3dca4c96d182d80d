-- One row a product of a basket, with what it was and whether it was promoted in that store and week. Lines of quantity 0
-- (8,869 of the year) stay: they are coupons, corrections and free goods that belong to a basket's sum. The grocer watched
-- the promotions of some stores only; elsewhere nothing is known and both flags are null.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_key:         basket_id is not null and product_id is not null
-- @expect     fail        unique_line:     count(*) = count(distinct cast(basket_id as varchar) || '/' || cast(product_id as varchar))
-- @expect     quarantine  has_time:        purchased_at is not null
-- @expect     quarantine  has_amount:      sales_value is not null
-- @expect     quarantine  sane_amount:     sales_value >= 0
-- @expect     quarantine  sane_quantity:   quantity >= 0
-- @expect     warn        has_customer:    customer_id is not null
-- @expect     warn        known_product:   department is not null
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
    identifiers.customer_id as customer_id,                        -- Unified customer id of the household
    delivered.basket_id as basket_id,                              -- The till's number of the basket
    delivered.product_id as product_id,                            -- The grocer's number of the product
    delivered.store_id as store_id,                                -- Store
    delivered.week as week,                                        -- Week of the year of data, 1 to 53; Mondays begin it
    delivered.purchased_at as purchased_at,                        -- When the basket was paid
    core.products.department as department,                        -- Department, such as GROCERY; null for a product outside the catalogue
    core.products.product_category as product_category,            -- Category within the department
    core.products.brand as brand,                                  -- National or Private (the grocer's own)
    coalesce(core.products.department = 'FUEL', false) as is_fuel, -- Whether it is fuel, whose quantity is in thousandths of a gallon
    delivered.quantity as quantity,                                -- Pieces; 0 for coupons, corrections and free goods
    'USD' as currency,                                             -- ISO 4217 code of all amounts in the row
    delivered.sales_value as sales_value,                          -- What the grocer received, before a manufacturer's coupon
    delivered.retail_disc as loyalty_discount,                     -- Taken off for the loyalty card
    delivered.coupon_match_disc as coupon_match_discount,          -- Taken off because the grocer matched a coupon
    delivered.coupon_disc as coupon_discount,                      -- Paid by a manufacturer's coupon instead of the household
    cast(delivered.sales_value - delivered.coupon_disc as decimal(12, 2)) as paid_amount, -- What the household paid
    cast(delivered.sales_value + delivered.retail_disc + delivered.coupon_match_disc as decimal(12, 2)) as list_amount, -- What it would have cost at the shelf price
    case when watched_stores.store_id is not null then coalesce(core.promoted_products.is_displayed, false) end as is_displayed, -- Whether it was on display; null where the store was not watched
    case when watched_stores.store_id is not null then coalesce(core.promoted_products.is_mailed, false) end as is_mailed -- Whether it was in the weekly mailer; null where the store was not watched
from delivered
left join identity.identifiers on identity.identifiers.token = delivered.token
left join core.products on core.products.product_id = delivered.product_id
left join core.promoted_products
    on core.promoted_products.product_id = delivered.product_id
    and core.promoted_products.store_id = delivered.store_id
    and core.promoted_products.week = delivered.week
left join watched_stores on watched_stores.store_id = delivered.store_id
