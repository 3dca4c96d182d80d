-- @stage      incremental key(product_id)
-- @owner      commerce data
-- @expect     warn        has_department:  department is not null
with newest as (
    select *
    from raw.products
    where product_id is not null
    qualify row_number() over (
        partition by product_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    product_id,
    manufacturer_id,
    trim(department) as department,
    trim(product_category) as product_category,
    trim(product_type) as product_type,
    trim(brand) as brand,
    trim(package_size) as package_size
from newest
