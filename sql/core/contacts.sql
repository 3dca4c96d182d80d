-- One row a CRM contact, at its current version. A customer may have several contacts (registered twice, joined by
-- identity); profile.contact chooses between them.
-- @stage      full
-- @owner      customer data
-- @expect     fail        has_crm_id:   crm_id is not null
-- @expect     fail        unique_crm:   count(*) = count(distinct crm_id)
-- @expect     warn        not_empty:    count(*) > 0
-- @tag        pii(full_name)
-- @tag        pii(birth_date)
-- @tag        pii(mobile)
-- @tag        pii(email)
select
    customer_id,             -- Unified customer id
    crm_id,                  -- The CRM's key of the contact
    member_no,               -- Member number, as the CRM writes it
    full_name,               -- Name, as it was entered
    gender,                  -- female, male; null when not stated
    birth_date,              -- Birth date; null when impossible
    mobile,                  -- Mobile number, as it was entered
    email,                   -- E-mail address, as it was entered
    has_mobile,              -- Whether the mobile number is valid
    has_email,               -- Whether the e-mail address is valid
    has_wechat,              -- Whether a WeChat account is linked
    province,                -- Province of residence
    city,                    -- City of residence
    registered_at,           -- When the contact became a member
    registered_channel,      -- Channel of registration
    member_tier,             -- Member tier, as the CRM has it
    has_sms_consent,         -- Agreed to SMS
    has_email_consent,       -- Agreed to e-mail
    has_push_consent,        -- Agreed to app push
    valid_from as updated_at -- When the CRM last changed the contact
from core.contact_history
where valid_to is null
