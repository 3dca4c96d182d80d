-- One row a basket: what one household paid at one till at one moment.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_basket:     basket_id is not null
-- @expect     fail        unique_basket:  count(*) = count(distinct basket_id)
-- @expect     fail        adds_up:        list_amount = sales_value + loyalty_discount + coupon_match_discount
-- @expect     quarantine  one_moment:     is_consistent
-- Departments first: counting them basket by basket is what would cost.
with departments as (
    select
        basket_id,
        department,
        min(customer_id) as customer_min,
        max(customer_id) as customer_max,
        min(store_id) as store_min,
        max(store_id) as store_max,
        min(week) as week,
        min(purchased_at) as purchased_min,
        max(purchased_at) as purchased_max,
        count(*) as products,
        sum(case when is_fuel then 0 else quantity end) as pieces,
        sum(sales_value) as sales_value,
        sum(case when is_fuel then sales_value else 0 end) as fuel_value,
        sum(case when brand = 'Private' and not is_fuel then sales_value else 0 end) as own_brand_value,
        sum(loyalty_discount) as loyalty_discount,
        sum(coupon_match_discount) as coupon_match_discount,
        sum(coupon_discount) as coupon_discount,
        sum(paid_amount) as paid_amount,
        sum(list_amount) as list_amount
    from core.transactions
    group by basket_id, department
),

baskets as (
    select
        basket_id,
        min(customer_min) as customer_id,
        min(store_min) as store_id,
        min(week) as week,
        min(purchased_min) as purchased_at,
        coalesce(min(customer_min) = max(customer_max), true)
        and min(store_min) = max(store_max)
        and min(purchased_min) = max(purchased_max) as is_consistent,
        sum(products) as products,
        count(department) as departments,
        sum(pieces) as pieces,
        sum(sales_value) as sales_value,
        sum(fuel_value) as fuel_value,
        sum(own_brand_value) as own_brand_value,
        sum(loyalty_discount) as loyalty_discount,
        sum(coupon_match_discount) as coupon_match_discount,
        sum(coupon_discount) as coupon_discount,
        sum(paid_amount) as paid_amount,
        sum(list_amount) as list_amount
    from departments
    group by basket_id
)

select
    customer_id,                                                              -- Unified customer id of the household
    basket_id,                                                                -- The till's number of the basket
    store_id,                                                                 -- Store
    week,                                                                     -- Week of the year of data, 1 to 53; Mondays begin it
    purchased_at,                                                             -- When it was paid
    cast(purchased_at at time zone 'America/New_York' as date) as purchase_date, -- The day in New York
    is_consistent,                                                            -- Whether all its lines name one customer, store and moment
    products,                                                                 -- Different products
    departments,                                                              -- Different departments
    pieces,                                                                   -- Pieces, without fuel
    'USD' as currency,                                                        -- ISO 4217 code of all amounts in the row
    cast(sales_value as decimal(18, 2)) as sales_value,                       -- What the grocer received
    cast(fuel_value as decimal(18, 2)) as fuel_value,                         -- Of it for fuel
    cast(own_brand_value as decimal(18, 2)) as own_brand_value,               -- Of it for the grocer's own brand, without fuel
    cast(loyalty_discount as decimal(18, 2)) as loyalty_discount,             -- Taken off for the loyalty card
    cast(coupon_match_discount as decimal(18, 2)) as coupon_match_discount,   -- Taken off because the grocer matched a coupon
    cast(coupon_discount as decimal(18, 2)) as coupon_discount,               -- Paid by manufacturers' coupons
    cast(paid_amount as decimal(18, 2)) as paid_amount,                       -- What the household paid
    cast(list_amount as decimal(18, 2)) as list_amount                        -- What it would have cost at shelf prices
from baskets
