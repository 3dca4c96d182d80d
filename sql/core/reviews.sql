-- @stage      incremental key(review_id)
-- @owner      customer voice
with latest as (
    select
        *,
        identifier_token('member_id', member_no) as token
    from raw.reviews
    where review_id is not null
    qualify row_number() over (
        partition by review_id
        order by reviewed_at desc, _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    coalesce(identifiers.customer_id, core.orders.customer_id) as customer_id,
    latest.review_id as review_id,
    latest.order_id as order_id,
    latest.product_id as product_id,
    sku_map.product_key as product_key,
    latest.reviewed_at as reviewed_at,
    latest.stars as stars,
    lower(trim(latest.language)) as language,
    latest.text as text,
    coalesce(latest.photo_count, 0) as photo_count
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.reviewed_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.reviewed_at < identifiers.valid_to)
left join core.sku_map as sku_map
    on sku_map.system = 'shop'
    and sku_map.code = upper(trim(latest.product_id))
