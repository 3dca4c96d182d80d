-- @stage      incremental key(message_id)
-- @owner      customer service
-- @expect     quarantine  sane_attachments:  attachments >= 0
with latest as (
    select *
    from raw.ticket_messages
    where message_id is not null
    qualify row_number() over (
        partition by message_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    core.tickets.customer_id as customer_id,
    latest.message_id as message_id,
    latest.ticket_id as ticket_id,
    latest.sent_at as sent_at,
    lower(trim(latest.sender)) as sender,
    lower(trim(latest.language)) as language,
    latest.text as text,
    coalesce(latest.attachments, 0) as attachments
from latest
left join core.tickets on core.tickets.ticket_id = latest.ticket_id
