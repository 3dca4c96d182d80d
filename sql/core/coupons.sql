-- @stage      incremental key(event_id)
-- @owner      marketing
-- @expect     warn        sane_value:  face_value > 0
with latest as (
    select
        *,
        identifier_token('member_id', member_no) as token
    from raw.coupons
    where event_id is not null
    qualify row_number() over (
        partition by event_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.event_id as event_id,
    latest.coupon_code as coupon_code,
    latest.campaign_id as campaign_id,
    lower(trim(latest.action)) as action,
    latest.occurred_at as occurred_at,
    'CNY' as currency,
    latest.face_value as face_value,
    latest.min_spend as min_spend,
    latest.valid_until as valid_until,
    latest.order_id as order_id
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.occurred_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.occurred_at < identifiers.valid_to)
