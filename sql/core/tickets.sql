-- The desk's own status is kept only where it does not contradict the time it was solved.
-- @stage      incremental key(ticket_id)
-- @owner      customer service
-- @expect     quarantine  ordered_times:  resolved_at is null or resolved_at >= opened_at
-- @expect     warn        sane_nps:       nps is null or nps between 0 and 10
with latest as (
    select
        *,
        coalesce(
            identifier_token('member_id', requester['member_no']),
            identifier_token('email', requester['email']),
            identifier_token('phone', requester['mobile'])
        ) as token
    from raw.tickets
    where ticket_id is not null
    qualify row_number() over (
        partition by ticket_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.ticket_id as ticket_id,
    latest.opened_at as opened_at,
    latest.first_response_at as first_response_at,
    latest.resolved_at as resolved_at,
    lower(trim(latest.channel)) as channel,
    coalesce(lower(trim(latest.topic)), 'other') as topic,
    coalesce(latest.is_complaint, false) as is_complaint,
    case when latest.resolved_at is null then 'open' else 'resolved' end as status,
    case when latest.csat between 1 and 5 then latest.csat end as csat,
    case when latest.nps between 0 and 10 then latest.nps end as nps,
    latest.order_id as order_id,
    latest.subject as subject
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.opened_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.opened_at < identifiers.valid_to)
