-- The list comes in full each time; a product counts as its last delivery had it. Systems write the same code in their own way
-- (" p100007"), so codes are compared in capitals and without blanks around them.
-- @stage      incremental key(product_key)
-- @owner      commerce data
-- @expect     warn        sane_price:  list_price > 0
with listed as (
    select
        *,
        nullif(upper(trim(product_id)), '') as product_key
    from raw.products
),

latest as (
    select *
    from listed
    where product_key is not null
    qualify row_number() over (
        partition by product_key
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    product_key,
    nullif(upper(trim(sku_code)), '') as sku_code,
    trim(product_name) as product_name,
    lower(trim(category)) as category,
    trim(brand) as brand,
    'CNY' as currency,
    list_price,
    exported_at as listed_at
from latest
