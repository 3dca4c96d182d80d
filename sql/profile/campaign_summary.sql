-- One row a customer who was addressed by a campaign: reach, response and fatigue.
-- @stage      incremental key(customer_id)
-- @owner      marketing
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        windows_nest:     campaign_messages_30d <= campaign_messages_90d and campaign_messages_90d <= campaign_messages_365d
with known as (
    select
        *,
        max(occurred_at) filter (where action in ('opened', 'clicked', 'participated')) over (
            partition by customer_id
        ) as last_response_at
    from core.campaign_touches
    where customer_id is not null
        and occurred_at <= now()
),

summary as (
    select
        customer_id,
        max(last_response_at) as last_campaign_response_at,
        max(occurred_at) filter (where action = 'participated') as last_participated_at,
        max(occurred_at) filter (where action = 'unsubscribed') as last_unsubscribed_at,
        count(*) filter (where action = 'sent' and occurred_at > now() - interval '30 days') as messages_30d,
        count(*) filter (where action = 'sent' and occurred_at > now() - interval '90 days') as messages_90d,
        count(*) filter (where action = 'sent' and occurred_at > now() - interval '365 days') as messages_365d,
        count(*) filter (where action = 'opened' and occurred_at > now() - interval '90 days') as opens_90d,
        count(*) filter (where action = 'opened' and occurred_at > now() - interval '180 days' and occurred_at <= now() - interval '90 days') as opens_prev_90d,
        count(*) filter (where action = 'sent' and occurred_at > now() - interval '180 days' and occurred_at <= now() - interval '90 days') as messages_prev_90d,
        count(*) filter (where action = 'clicked' and occurred_at > now() - interval '90 days') as clicks_90d,
        count(*) filter (where action = 'participated' and occurred_at > now() - interval '30 days') as participations_30d,
        count(*) filter (where action = 'participated' and occurred_at > now() - interval '90 days') as participations_90d,
        count(*) filter (where action = 'participated' and occurred_at > now() - interval '365 days') as participations_365d,
        count(distinct case when action = 'sent' and occurred_at > now() - interval '90 days' then channel end) as channels_90d,
        count(*) filter (
            where action = 'sent'
                and occurred_at > now() - interval '365 days'
                and (last_response_at is null or occurred_at > last_response_at)
        ) as messages_since_response
    from known
    group by customer_id
)

select
    customer_id,                                                                     -- Unified customer id
    last_campaign_response_at,                                                       -- Last open, click or participation
    last_participated_at,                                                            -- Last participation in a campaign
    last_unsubscribed_at,                                                            -- Last unsubscription; null when never
    messages_30d as campaign_messages_30d,                                           -- Messages sent, last 30 days
    messages_90d as campaign_messages_90d,                                           -- Messages sent, last 90 days
    messages_365d as campaign_messages_365d,                                         -- Messages sent, last 365 days
    opens_90d as campaign_opens_90d,                                                 -- Messages opened, last 90 days
    clicks_90d as campaign_clicks_90d,                                               -- Messages clicked, last 90 days
    participations_30d as campaign_participations_30d,                               -- Participations, last 30 days
    participations_90d as campaign_participations_90d,                               -- Participations, last 90 days
    participations_365d as campaign_participations_365d,                             -- Participations, last 365 days
    cast(opens_90d as double) / nullif(messages_90d, 0) as campaign_open_rate_90d,   -- Opened over sent, last 90 days; null without messages
    cast(opens_prev_90d as double) / nullif(messages_prev_90d, 0) as campaign_open_rate_prev_90d, -- Opened over sent, the 90 days before
    cast(clicks_90d as double) / nullif(messages_90d, 0) as campaign_click_rate_90d, -- Clicked over sent, last 90 days
    channels_90d as campaign_channels_90d,                                           -- Channels used to address the customer, last 90 days
    messages_since_response as campaign_messages_unanswered                          -- Messages sent since the last open, click or participation, within 365 days
from summary
