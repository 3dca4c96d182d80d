-- One row a service ticket, at its last state. A ticket is open until resolved_at; the desk's own status is kept only
-- where it does not contradict that time.
-- @stage      full
-- @owner      customer service
-- @expect     fail        has_ticket_id:   ticket_id is not null
-- @expect     fail        unique_ticket:   count(*) = count(distinct ticket_id)
-- @expect     quarantine  has_time:        opened_at is not null
-- @expect     quarantine  ordered_times:   resolved_at is null or resolved_at >= opened_at
-- @expect     warn        sane_csat:       csat is null or csat between 1 and 5
-- @expect     warn        sane_nps:        nps is null or nps between 0 and 10
-- @tag        pii(subject)
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
    identifiers.customer_id as customer_id,                                         -- Unified customer id; null when nobody is known
    latest.ticket_id as ticket_id,                                                  -- The service desk's key
    latest.opened_at as opened_at,                                                  -- When the customer asked
    latest.first_response_at as first_response_at,                                  -- When somebody answered; null while nobody has
    latest.resolved_at as resolved_at,                                              -- When it was solved; null while open
    lower(trim(latest.channel)) as channel,                                         -- phone, chat, email, wechat
    coalesce(lower(trim(latest.topic)), 'other') as topic,                          -- delivery, quality, refund, account, other
    coalesce(latest.is_complaint, false) as is_complaint,                           -- Whether the customer complains
    case when latest.resolved_at is null then 'open' else 'resolved' end as status, -- open, resolved
    case when latest.csat between 1 and 5 then latest.csat end as csat,             -- Satisfaction with the answer, 1 to 5
    case when latest.nps between 0 and 10 then latest.nps end as nps,               -- Would recommend the shop, 0 to 10
    latest.order_id as order_id,                                                    -- The order it is about, if any
    latest.subject as subject                                                       -- First line of the request, as written
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
