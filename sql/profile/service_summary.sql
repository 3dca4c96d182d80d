-- One row a customer who has asked the service desk: load, complaints, satisfaction, and who is waiting for an answer. A
-- ticket solved after now() is open at now(), and what was answered in its survey is not known yet. A customer waits where
-- the last word about an open ticket is their own; what the desk's software sends by itself is no answer.
-- @stage      incremental key(customer_id)
-- @owner      customer service
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        complaints_part:  open_complaints <= open_tickets
-- @expect     warn        waiting_part:     waiting_tickets <= open_tickets
with known as (
    select
        *,
        resolved_at is null or resolved_at > now() as is_open,
        case when first_response_at <= now() then first_response_at end as answered_at,
        case when resolved_at <= now() then resolved_at end as solved_at,
        case when resolved_at <= now() then csat end as known_csat,
        case when resolved_at <= now() then nps end as known_nps
    from core.tickets
    where customer_id is not null
        and opened_at <= now()
),

known_messages as (
    select
        customer_id,
        ticket_id,
        sender,
        sent_at
    from core.ticket_messages
    where customer_id is not null
        and sender in ('customer', 'agent')
        and sent_at <= now()
),

conversations as (
    select
        customer_id,
        ticket_id,
        count(*) filter (where sender = 'customer' and sent_at > now() - interval '90 days') as messages_90d,
        max(sent_at) filter (where sender = 'customer') as last_written_at,
        max(sent_at) filter (where sender = 'agent') as last_answered_at
    from known_messages
    group by customer_id, ticket_id
),

tickets as (
    select
        known.*,
        coalesce(conversations.messages_90d, 0) as messages_90d,
        case
            when known.is_open
                and (conversations.last_answered_at is null or conversations.last_answered_at < conversations.last_written_at)
                then conversations.last_written_at
        end as waiting_since
    from known
    left join conversations
        on conversations.customer_id = known.customer_id
        and conversations.ticket_id = known.ticket_id
)

select
    customer_id,                                                                     -- Unified customer id
    max(opened_at) as last_ticket_at,                                                -- Last request
    count(*) filter (where opened_at > now() - interval '30 days') as tickets_30d,   -- Requests, last 30 days
    count(*) filter (where opened_at > now() - interval '90 days') as tickets_90d,   -- Requests, last 90 days
    count(*) filter (where opened_at > now() - interval '180 days' and opened_at <= now() - interval '90 days') as tickets_prev_90d, -- Requests, the 90 days before the last 90
    count(*) filter (where opened_at > now() - interval '365 days') as tickets_365d, -- Requests, last 365 days
    count(*) filter (where is_complaint and opened_at > now() - interval '90 days') as complaints_90d, -- Complaints, last 90 days
    count(*) filter (where is_complaint and opened_at > now() - interval '365 days') as complaints_365d, -- Complaints, last 365 days
    count(*) filter (where is_open) as open_tickets,                                 -- Requests not solved
    count(*) filter (where is_open and is_complaint) as open_complaints,             -- Complaints not solved
    min(opened_at) filter (where is_open and is_complaint) as oldest_open_complaint_at, -- When the oldest unsolved complaint was made
    sum(messages_90d) as messages_90d,                                               -- Messages the customer wrote, last 90 days
    count(waiting_since) as waiting_tickets,                                         -- Requests not solved whose last word is the customer's
    min(waiting_since) as waiting_since,                                             -- Last word of the request that waits longest for an answer
    avg(cast(date_part('epoch', answered_at) - date_part('epoch', opened_at) as bigint))
        filter (where opened_at > now() - interval '365 days') / 60.0 as first_response_minutes_365d, -- Mean minutes to the first answer, requests of the last 365 days
    avg(cast(date_part('epoch', solved_at) - date_part('epoch', opened_at) as bigint))
        filter (where opened_at > now() - interval '365 days') / 3600.0 as resolution_hours_365d, -- Mean hours to the solution, requests of the last 365 days
    avg(cast(known_csat as double)) filter (where opened_at > now() - interval '365 days') as csat_365d, -- Mean satisfaction 1 to 5, requests of the last 365 days
    min(known_csat) filter (where opened_at > now() - interval '90 days') as lowest_csat_90d, -- Lowest satisfaction 1 to 5, requests of the last 90 days
    avg(cast(known_nps as double)) filter (where opened_at > now() - interval '365 days') as nps_365d -- Mean willingness to recommend 0 to 10, requests of the last 365 days
from tickets
group by customer_id
