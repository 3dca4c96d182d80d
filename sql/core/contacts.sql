-- @stage      incremental key(crm_id)
-- @owner      customer data
-- @expect     warn        not_empty:  count(*) > 0
select
    customer_id,
    crm_id,
    member_no,
    full_name,
    gender,
    birth_date,
    mobile,
    email,
    has_mobile,
    has_email,
    has_wechat,
    province,
    city,
    district,
    address_line,
    landline,
    registered_at,
    registered_channel,
    member_tier,
    has_sms_consent,
    has_email_consent,
    has_push_consent,
    valid_from as updated_at
from core.contact_history
where valid_to is null
