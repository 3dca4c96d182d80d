-- One row a household in a campaign, with the days it ran. The data says who was in it, not what was sent when; the first
-- day of the campaign stands for the touch.
-- @stage      full
-- @owner      marketing
-- @expect     fail        has_key:        campaign_id is not null and household_id is not null
-- @expect     fail        unique_touch:   count(*) = count(distinct cast(campaign_id as varchar) || '/' || cast(household_id as varchar))
-- @expect     quarantine  ordered_days:   started_on <= ended_on
-- @expect     warn        described:      started_on is not null and ended_on is not null
-- @expect     warn        known_type:     campaign_type in ('Type A', 'Type B', 'Type C')
with touches as (
    select
        *,
        identifier_token('member_id', cast(household_id as varchar)) as token
    from raw.campaigns
    where campaign_id is not null
        and household_id is not null
    qualify row_number() over (
        partition by campaign_id, household_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
),

descriptions as (
    select *
    from raw.campaign_descriptions
    where campaign_id is not null
    qualify row_number() over (
        partition by campaign_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,               -- Unified customer id of the household
    touches.household_id as household_id,                 -- The grocer's number of the household
    touches.campaign_id as campaign_id,                   -- Campaign
    trim(descriptions.campaign_type) as campaign_type,    -- Type A: coupons chosen for the household; types B and C: the same for all
    cast(descriptions.start_date as date) as started_on,  -- First day of the campaign
    cast(descriptions.end_date as date) as ended_on       -- Last day of the campaign
from touches
left join descriptions on descriptions.campaign_id = touches.campaign_id
left join identity.identifiers on identity.identifiers.token = touches.token
