-- The marketing tool sends no list of its campaigns: they are what their touches say. Touches after now() have not happened yet.
-- @stage      incremental key(campaign_id)
-- @owner      marketing
-- @expect     warn        sent_first:  sent >= participated
select
    campaign_id,
    last_value(campaign_name order by occurred_at, touch_id) as campaign_name,
    min(occurred_at) as started_at,
    max(occurred_at) as last_touch_at,
    string_agg(distinct channel, ', ' order by channel) as channels,
    count(distinct case when action = 'sent' then customer_id end) as recipients,
    count(*) filter (where action = 'sent') as sent,
    count(*) filter (where action = 'opened') as opened,
    count(*) filter (where action = 'participated') as participated,
    count(*) filter (where action = 'unsubscribed') as unsubscribed
from core.campaign_touches
where campaign_id is not null
    and occurred_at <= now()
group by campaign_id
