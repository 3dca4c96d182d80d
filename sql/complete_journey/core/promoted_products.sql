-- @stage      incremental key(product_id)
-- @owner      commerce data
-- @expect     warn        is_promoted:  is_displayed or is_mailed
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
    raw.promotions.product_id as product_id,
    raw.promotions.store_id as store_id,
    raw.promotions.week as week,
    max(case when raw.promotions.display_location <> '0' then 1 else 0 end) = 1 as is_displayed,
    max(case when raw.promotions.mailer_location <> '0' then 1 else 0 end) = 1 as is_mailed
from sold
inner join raw.promotions
    on raw.promotions.product_id = sold.product_id
    and raw.promotions.store_id = sold.store_id
    and raw.promotions.week = sold.week
inner join newest_promotions
    on newest_promotions._source_file = raw.promotions._source_file
    and newest_promotions._batch = raw.promotions._batch
group by raw.promotions.product_id, raw.promotions.store_id, raw.promotions.week
