-- Another system is another branch here. What has a code joins this table on its system and on upper(trim(code)).
-- @stage      incremental key(code)
-- @owner      commerce data
-- @expect     warn        unambiguous:  product_key is not null
with codes as (
    select
        'shop' as system,
        product_key as code,
        product_key
    from core.products
    union all
    select
        'till' as system,
        sku_code as code,
        product_key
    from core.products
    where sku_code is not null
)

select
    system,
    code,
    case when count(distinct product_key) = 1 then min(product_key) end as product_key,
    count(distinct product_key) as claims
from codes
group by system, code
