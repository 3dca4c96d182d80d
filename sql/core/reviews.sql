-- One row a product review, at its last wording. It belongs to the member who signed it, or else to the customer of the
-- reviewed order.
-- @stage      full
-- @owner      customer voice
-- @expect     fail        has_review_id:  review_id is not null
-- @expect     fail        unique_review:  count(*) = count(distinct review_id)
-- @expect     quarantine  has_time:       reviewed_at is not null
-- @expect     quarantine  sane_stars:     stars between 1 and 5
-- @tag        pii(text)
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
    coalesce(identifiers.customer_id, core.orders.customer_id) as customer_id, -- Unified customer id; null when nobody is known
    latest.review_id as review_id,                                             -- The shop's key
    latest.order_id as order_id,                                               -- Order the product came with
    latest.product_id as product_id,                                           -- Product reviewed
    latest.reviewed_at as reviewed_at,                                         -- When it was written
    latest.stars as stars,                                                     -- Stars, 1 to 5
    lower(trim(latest.language)) as language,                                  -- zh, en
    latest.text as text,                                                       -- What was written
    coalesce(latest.photo_count, 0) as photo_count                             -- Photos attached
from latest
left join core.orders on core.orders.order_id = latest.order_id
left join identity.identifiers on identity.identifiers.token = latest.token
