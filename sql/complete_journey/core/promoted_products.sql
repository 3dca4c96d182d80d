-- One row a product that was on display or in the mailer in a store and a week, and was sold there in that week. The grocer
-- lists 20.9 million promotions; those of products nobody here bought decide nothing about these households and stay in
-- raw. A product can stand in two places of a store at once.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        has_key:         product_id is not null and store_id is not null and week is not null
-- @expect     fail        unique_product:  count(*) = count(distinct cast(product_id as varchar) || '/' || cast(store_id as varchar) || '/' || cast(week as varchar))
-- @expect     warn        is_promoted:     is_displayed or is_mailed
with newest_transactions as (
    select
        _source_file,
        max(_batch) as _batch
    from raw.transactions
    group by _source_file
),

newest_promotions as (
    select
        _source_file,
        max(_batch) as _batch
    from raw.promotions
    group by _source_file
),

sold as (
    select distinct
        raw.transactions.product_id,
        raw.transactions.store_id,
        raw.transactions.week
    from newest_transactions
    inner join raw.transactions
        on raw.transactions._source_file = newest_transactions._source_file
        and raw.transactions._batch = newest_transactions._batch
)

select
    raw.promotions.product_id as product_id,                             -- The grocer's number of the product
    raw.promotions.store_id as store_id,                                 -- Store
    raw.promotions.week as week,                                         -- Week of the year of data, 1 to 53
    max(case when raw.promotions.display_location <> '0' then 1 else 0 end) = 1 as is_displayed, -- Whether it was on display in the store
    max(case when raw.promotions.mailer_location <> '0' then 1 else 0 end) = 1 as is_mailed -- Whether it was in the weekly mailer
from sold
inner join raw.promotions
    on raw.promotions.product_id = sold.product_id
    and raw.promotions.store_id = sold.store_id
    and raw.promotions.week = sold.week
inner join newest_promotions
    on newest_promotions._source_file = raw.promotions._source_file
    and newest_promotions._batch = raw.promotions._batch
group by raw.promotions.product_id, raw.promotions.store_id, raw.promotions.week
