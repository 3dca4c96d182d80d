-- One row a household of which something is known beyond its purchases (801 of 2,469), as it was last delivered.
-- @stage      full
-- @owner      customer data
-- @expect     fail        has_household:     household_id is not null
-- @expect     fail        unique_household:  count(*) = count(distinct household_id)
-- @expect     warn        has_customer:      customer_id is not null
-- @tag        pii(age_band)
-- @tag        pii(income_band)
-- @tag        pii(marital_status)
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
    identifiers.customer_id as customer_id,             -- Unified customer id of the household
    newest.household_id as household_id,                -- The grocer's number of the household
    newest.age as age_band,                             -- Age of the head, in years
    newest.income as income_band,                       -- Income a year, thousands of USD
    lower(newest.home_ownership) as home_ownership,     -- homeowner, renter, probable homeowner, probable renter; null when not known
    lower(newest.marital_status) as marital_status,     -- married, unmarried; null when not known
    newest.household_size as household_size,            -- Persons: 1 to 4, 5+
    newest.household_comp as household_composition,     -- Adults and children, in words
    newest.kids_count as children                       -- Children: 0 to 2, 3+
from newest
left join identity.identifiers on identity.identifiers.token = newest.token
