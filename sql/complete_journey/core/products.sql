-- One row a product of the catalogue, as it was last delivered.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_product:     product_id is not null
-- @expect     fail        unique_product:  count(*) = count(distinct product_id)
-- @expect     warn        known_brand:     brand in ('National', 'Private')
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
    product_id,                                 -- The grocer's number of the product
    manufacturer_id,                            -- The grocer's number of the manufacturer
    trim(department) as department,             -- Department, such as GROCERY
    trim(product_category) as product_category, -- Category within the department; null for a few
    trim(product_type) as product_type,         -- Kind within the category
    trim(brand) as brand,                       -- National or Private (the grocer's own)
    trim(package_size) as package_size          -- Size of the package, as printed
from newest
