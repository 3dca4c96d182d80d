-- @stage      incremental key(entry_id)
-- @owner      loyalty
-- @expect     warn        sign_agrees:  case entry_type when 'earn' then points >= 0 when 'burn' then points <= 0 when 'expire' then points <= 0 else true end
with latest as (
    select
        *,
        identifier_token('member_id', member_no) as token
    from raw.loyalty_ledger
    where entry_id is not null
    qualify row_number() over (
        partition by entry_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.entry_id as entry_id,
    latest.occurred_at as occurred_at,
    lower(trim(latest.entry_type)) as entry_type,
    coalesce(latest.points, 0) as points,
    lower(trim(latest.tier)) as tier,
    latest.order_id as order_id
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.occurred_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.occurred_at < identifiers.valid_to)
