-- @stage      incremental key(household_id)
-- @owner      customer data
-- @expect     warn        has_customer:  customer_id is not null
with newest as (
    select
        *,
        identifier_token('member_id', cast(household_id as varchar)) as token
    from raw.demographics
    where household_id is not null
    qualify row_number() over (
        partition by household_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    newest.household_id as household_id,
    newest.age as age_band,
    newest.income as income_band,
    lower(newest.home_ownership) as home_ownership,
    lower(newest.marital_status) as marital_status,
    newest.household_size as household_size,
    newest.household_comp as household_composition,
    newest.kids_count as children
from newest
left join identity.identifiers on identity.identifiers.token = newest.token
