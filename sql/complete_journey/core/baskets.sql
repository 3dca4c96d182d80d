-- Departments first: counting them basket by basket is what would cost.
-- @stage      incremental key(basket_id)
-- @owner      commerce data
-- @expect     fail        adds_up:     list_amount = sales_value + loyalty_discount + coupon_match_discount
-- @expect     quarantine  one_moment:  is_consistent
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
    customer_id,
    basket_id,
    store_id,
    week,
    purchased_at,
    cast(purchased_at at time zone 'America/New_York' as date) as purchase_date,
    is_consistent,
    products,
    departments,
    pieces,
    'USD' as currency,
    cast(sales_value as decimal(18, 2)) as sales_value,
    cast(fuel_value as decimal(18, 2)) as fuel_value,
    cast(own_brand_value as decimal(18, 2)) as own_brand_value,
    cast(loyalty_discount as decimal(18, 2)) as loyalty_discount,
    cast(coupon_match_discount as decimal(18, 2)) as coupon_match_discount,
    cast(coupon_discount as decimal(18, 2)) as coupon_discount,
    cast(paid_amount as decimal(18, 2)) as paid_amount,
    cast(list_amount as decimal(18, 2)) as list_amount
from baskets
