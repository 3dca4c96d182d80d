-- The CRM exports every contact in full each time, so most exported rows repeat a version that is already known; a
-- version counts once, as its last export had it.
-- @stage      incremental key(crm_id)
-- @owner      customer data
-- @expect     quarantine  ordered_times:  valid_to is null or valid_to > valid_from
-- @expect     warn        has_customer:   customer_id is not null
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
    identifiers.customer_id as customer_id,
    exported.crm_id as crm_id,
    trim(exported.member_no) as member_no,
    exported.full_name as full_name,
    case
        when lower(trim(exported.gender)) in ('f', 'female', '女') then 'female'
        when lower(trim(exported.gender)) in ('m', 'male', '男') then 'male'
    end as gender,
    case
        when exported.birth_date between date '1900-01-01' and cast(exported.updated_at as date) then exported.birth_date
    end as birth_date,
    exported.mobile as mobile,
    exported.email as email,
    identifier_token('phone', exported.mobile) is not null as has_mobile,
    identifier_token('email', exported.email) is not null as has_email,
    identifier_token('unionid', exported.wechat_unionid) is not null as has_wechat,
    trim(exported.province) as province,
    trim(exported.city) as city,
    trim(exported.district) as district,
    trim(exported.address_line) as address_line,
    exported.landline as landline,
    exported.registered_at as registered_at,
    lower(trim(exported.registered_channel)) as registered_channel,
    lower(trim(exported.member_tier)) as member_tier,
    coalesce(exported.consent_sms, false) as has_sms_consent,
    coalesce(exported.consent_email, false) as has_email_consent,
    coalesce(exported.consent_push, false) as has_push_consent,
    exported.updated_at as valid_from,
    lead(exported.updated_at) over (
        partition by exported.crm_id
        order by exported.updated_at
    ) as valid_to
from exported
left join identity.identifiers
    on identity.identifiers.token = exported.token
    and (identifiers.valid_from is null or exported.updated_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or exported.updated_at < identifiers.valid_to)
