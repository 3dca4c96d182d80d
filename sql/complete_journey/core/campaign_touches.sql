-- @stage      incremental key(campaign_id)
-- @owner      marketing
-- @expect     quarantine  ordered_days:  started_on <= ended_on
-- @expect     warn        described:     started_on is not null and ended_on is not null
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
    identifiers.customer_id as customer_id,
    touches.household_id as household_id,
    touches.campaign_id as campaign_id,
    trim(descriptions.campaign_type) as campaign_type,
    cast(descriptions.start_date as date) as started_on,
    cast(descriptions.end_date as date) as ended_on
from touches
left join descriptions on descriptions.campaign_id = touches.campaign_id
left join identity.identifiers on identity.identifiers.token = touches.token
