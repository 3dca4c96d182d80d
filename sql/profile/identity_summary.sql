-- One row a customer who is known as a person: active in identity, seen by now(), and with at least one identifier of
-- their own that a person has (member id, phone, e-mail, WeChat account). Visitors known only by a device and payers
-- known only by a payment token are left out: nobody could be addressed. Every profile stage keeps to this list.
-- @stage      incremental key(customer_id)
-- @owner      customer data
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        not_empty:        count(*) > 0
-- @expect     warn        few_identifiers:  identifiers <= 50
with own_identifiers as (
    select
        customer_id,
        count(*) as identifiers,
        count(*) filter (where identifier_type = 'member_id') as member_ids,
        count(*) filter (where identifier_type = 'phone') as phones,
        count(*) filter (where identifier_type = 'email') as emails,
        count(*) filter (where identifier_type in ('unionid', 'openid')) as wechat_accounts,
        count(*) filter (where identifier_type = 'device') as devices,
        count(*) filter (where identifier_type = 'payment_token') as payment_tokens
    from identity.identifiers
    where customer_id is not null
        and not coalesce(is_shared, false)
    group by customer_id
)

select
    identity.customers.customer_id as customer_id,      -- Unified customer id
    identity.customers.first_seen_at as first_seen_at,  -- First record of the customer in any source
    own_identifiers.identifiers as identifiers,         -- Identifiers of the customer's own
    own_identifiers.member_ids as member_ids,           -- Member numbers; more than one is a double registration
    own_identifiers.phones as phones,                   -- Phone numbers
    own_identifiers.emails as emails,                   -- E-mail addresses
    own_identifiers.wechat_accounts as wechat_accounts, -- WeChat accounts (unionid and openid)
    own_identifiers.devices as devices,                 -- Devices
    own_identifiers.payment_tokens as payment_tokens    -- Payment accounts
from identity.customers
inner join own_identifiers on own_identifiers.customer_id = identity.customers.customer_id
where identity.customers.merged_into is null
    and (identity.customers.first_seen_at is null or identity.customers.first_seen_at <= now())
    and own_identifiers.member_ids + own_identifiers.phones + own_identifiers.emails + own_identifiers.wechat_accounts > 0
