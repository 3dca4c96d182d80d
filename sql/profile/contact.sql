-- One row a customer with a CRM contact: the contact version that was valid at now(). Where a customer has several
-- contacts, the one changed last speaks for them, but consent is the most restrictive of all: one refusal is a refusal.
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        sane_age:         age_years is null or age_years between 10 and 110
with valid as (
    select *
    from core.contact_history
    where customer_id is not null
        and valid_from <= now()
        and (valid_to is null or valid_to > now())
),

consents as (
    select
        customer_id,
        count(*) as contacts,
        min(registered_at) filter (where registered_at <= now()) as registered_at,
        bool_and(has_sms_consent) as has_sms_consent,
        bool_and(has_email_consent) as has_email_consent,
        bool_and(has_push_consent) as has_push_consent
    from valid
    group by customer_id
),

latest as (
    select *
    from valid
    qualify row_number() over (
        partition by customer_id
        order by valid_from desc, crm_id desc
    ) = 1
)

select
    latest.customer_id as customer_id,               -- Unified customer id
    consents.contacts as contacts,                   -- CRM contacts of the customer
    latest.gender as gender,                         -- female, male; null when not stated
    cast(floor((cast(now() as date) - latest.birth_date) / 365.25) as bigint) as age_years, -- Age in full years; null when not stated
    latest.province as province,                     -- Province of residence
    latest.city as city,                             -- City of residence
    latest.registered_channel as registered_channel, -- Channel of registration
    consents.registered_at as registered_at,         -- First registration
    latest.member_tier as crm_tier,                  -- Tier, as the CRM has it
    latest.has_mobile as has_mobile,                 -- Whether the mobile number is valid
    latest.has_email as has_email,                   -- Whether the e-mail address is valid
    latest.has_wechat as has_wechat,                 -- Whether a WeChat account is linked
    consents.has_sms_consent as has_sms_consent,     -- May be addressed by SMS
    consents.has_email_consent as has_email_consent, -- May be addressed by e-mail
    consents.has_push_consent as has_push_consent    -- May be addressed by app push
from latest
inner join consents on consents.customer_id = latest.customer_id
