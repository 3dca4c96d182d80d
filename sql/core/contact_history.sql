-- One row a version of a CRM contact: what the CRM said about it from valid_from until valid_to. The CRM exports every
-- contact in full each time, so most exported rows repeat a version that is already known; a version counts once, as
-- its last export had it. Stages that answer for a moment in the past take the version that was valid at now().
-- @stage      full
-- @owner      customer data
-- @expect     fail        has_crm_id:     crm_id is not null
-- @expect     fail        one_a_version:  count(*) = count(distinct crm_id || ' ' || cast(valid_from as varchar))
-- @expect     quarantine  ordered_times:  valid_to is null or valid_to > valid_from
-- @expect     warn        has_customer:   customer_id is not null
-- @tag        pii(full_name)
-- @tag        pii(birth_date)
-- @tag        pii(mobile)
-- @tag        pii(email)
with exported as (
    select
        *,
        coalesce(
            identifier_token('member_id', member_no),
            identifier_token('unionid', wechat_unionid),
            identifier_token('email', email),
            identifier_token('phone', mobile)
        ) as token
    from raw.crm_contacts
    where crm_id is not null
        and updated_at is not null
    qualify row_number() over (
        partition by crm_id, updated_at
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,                                         -- Unified customer id
    exported.crm_id as crm_id,                                                      -- The CRM's key of the contact
    trim(exported.member_no) as member_no,                                          -- Member number, as the CRM writes it
    exported.full_name as full_name,                                                -- Name, as it was entered
    case
        when lower(trim(exported.gender)) in ('f', 'female', '女') then 'female'
        when lower(trim(exported.gender)) in ('m', 'male', '男') then 'male'
    end as gender,                                                                  -- female, male; null when not stated
    case
        when exported.birth_date between date '1900-01-01' and cast(exported.updated_at as date) then exported.birth_date
    end as birth_date,                                                              -- Birth date; null when impossible
    exported.mobile as mobile,                                                      -- Mobile number, as it was entered
    exported.email as email,                                                        -- E-mail address, as it was entered
    identifier_token('phone', exported.mobile) is not null as has_mobile,           -- Whether the mobile number is valid
    identifier_token('email', exported.email) is not null as has_email,             -- Whether the e-mail address is valid
    identifier_token('unionid', exported.wechat_unionid) is not null as has_wechat, -- Whether a WeChat account is linked
    trim(exported.province) as province,                                            -- Province of residence
    trim(exported.city) as city,                                                    -- City of residence
    exported.registered_at as registered_at,                                        -- When the contact became a member
    lower(trim(exported.registered_channel)) as registered_channel,                 -- Channel of registration
    lower(trim(exported.member_tier)) as member_tier,                               -- Member tier, as the CRM has it
    coalesce(exported.consent_sms, false) as has_sms_consent,                       -- Agreed to SMS; not stated counts as no
    coalesce(exported.consent_email, false) as has_email_consent,                   -- Agreed to e-mail; not stated counts as no
    coalesce(exported.consent_push, false) as has_push_consent,                     -- Agreed to app push; not stated counts as no
    exported.updated_at as valid_from,                                              -- When this version was written
    lead(exported.updated_at) over (
        partition by exported.crm_id
        order by exported.updated_at
    ) as valid_to                                                                   -- When the next version replaced it; null for the current one
from exported
left join identity.identifiers on identity.identifiers.token = exported.token
