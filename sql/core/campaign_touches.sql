-- One row a step of a campaign message: sent, delivered, opened, clicked, participated or unsubscribed.
-- @stage      full
-- @owner      marketing
-- @expect     fail        has_touch_id:   touch_id is not null
-- @expect     fail        unique_touch:   count(*) = count(distinct touch_id)
-- @expect     quarantine  has_time:       occurred_at is not null
-- @expect     quarantine  known_action:   action in ('sent', 'delivered', 'opened', 'clicked', 'participated', 'unsubscribed')
-- @expect     warn        known_channel:  channel in ('sms', 'email', 'push', 'wechat')
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
    identifiers.customer_id as customer_id, -- Unified customer id; null when the recipient is unknown
    latest.touch_id as touch_id,            -- The marketing tool's key
    latest.campaign_id as campaign_id,      -- Campaign
    latest.campaign_name as campaign_name,  -- Campaign, in words
    lower(trim(latest.channel)) as channel, -- sms, email, push, wechat
    lower(trim(latest.action)) as action,   -- sent, delivered, opened, clicked, participated, unsubscribed
    latest.occurred_at as occurred_at       -- When it happened
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
