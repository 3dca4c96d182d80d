-- One row a core table whose rows name a product by the code of their system: how many of them are joined to a product of the article
-- list, and which codes are not. Unmatched rows stay in their table, without a product_key.
-- @stage      full
-- @owner      commerce data
-- @expect     fail        unique_table:    count(*) = count(distinct table_name)
-- @expect     fail        adds_up:         rows = matched_rows + unmatched_rows + rows_without_code
-- @expect     warn        mostly_matched:  unmatched_share is null or unmatched_share <= 0.05
with codes as (
    select
        'core.order_lines' as table_name,
        'shop' as system,
        product_id as code,
        product_key is not null as is_matched,
        count(*) as rows
    from core.order_lines
    group by product_id, product_key is not null
    union all
    select
        'core.receipts' as table_name,
        'till' as system,
        product_id as code,
        product_key is not null as is_matched,
        count(*) as rows
    from core.receipts
    group by product_id, product_key is not null
    union all
    select
        'core.events' as table_name,
        'shop' as system,
        product_id as code,
        product_key is not null as is_matched,
        count(*) as rows
    from core.events
    group by product_id, product_key is not null
    union all
    select
        'core.reviews' as table_name,
        'shop' as system,
        product_id as code,
        product_key is not null as is_matched,
        count(*) as rows
    from core.reviews
    group by product_id, product_key is not null
),

ranked as (
    select
        table_name,
        code,
        rows,
        row_number() over (
            partition by table_name
            order by rows desc, code
        ) as place
    from codes
    where code is not null
        and not is_matched
),

unmatched as (
    select
        table_name,
        count(*) as unmatched_codes,
        string_agg(code || ' (' || cast(rows as varchar) || ')', ', ' order by place) filter (where place <= 5) as top_unmatched
    from ranked
    group by table_name
)

select
    codes.table_name as table_name,                                       -- Table
    min(codes.system) as system,                                          -- Whose codes its rows have: shop, till
    sum(codes.rows) as rows,                                              -- Its rows
    sum(case when codes.is_matched then codes.rows else 0 end) as matched_rows, -- Rows joined to a product
    sum(case when codes.code is not null and not codes.is_matched then codes.rows else 0 end) as unmatched_rows, -- Rows with a code that is in no article list, or claimed by several products
    sum(case when codes.code is null then codes.rows else 0 end) as rows_without_code, -- Rows that name no product
    cast(sum(case when codes.code is not null and not codes.is_matched then codes.rows else 0 end) as double)
    / nullif(sum(case when codes.code is not null then codes.rows else 0 end), 0) as unmatched_share, -- Unmatched rows by rows with a code; null without such rows
    coalesce(min(unmatched.unmatched_codes), 0) as unmatched_codes,       -- Different codes that are not matched
    min(unmatched.top_unmatched) as top_unmatched                         -- The five with the most rows, and how many; null when all are matched
from codes
left join unmatched on unmatched.table_name = codes.table_name
group by codes.table_name
