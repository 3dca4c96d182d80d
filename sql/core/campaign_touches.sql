-- @stage      incremental key(touch_id)
-- @owner      marketing
with latest as (
    select
        *,
        coalesce(
            identifier_token('member_id', member_no),
            identifier_token('email', case when channel = 'email' then recipient end),
            identifier_token('phone', case when channel = 'sms' then recipient end)
        ) as token
    from raw.campaign_touches
    where touch_id is not null
    qualify row_number() over (
        partition by touch_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.touch_id as touch_id,
    latest.campaign_id as campaign_id,
    latest.campaign_name as campaign_name,
    lower(trim(latest.channel)) as channel,
    lower(trim(latest.action)) as action,
    latest.occurred_at as occurred_at
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.occurred_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.occurred_at < identifiers.valid_to)
