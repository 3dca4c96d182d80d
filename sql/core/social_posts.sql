-- @stage      incremental key(post_id)
-- @owner      customer voice
-- @expect     warn        sane_reach:  reach >= 0
with latest as (
    select
        *,
        coalesce(
            identifier_token('unionid', author['unionid']),
            identifier_token('openid', author['openid'])
        ) as token
    from raw.social_posts
    where post_id is not null
    qualify row_number() over (
        partition by post_id
        order by _batch desc, _source_file desc, _source_line desc
    ) = 1
)

select
    identifiers.customer_id as customer_id,
    latest.post_id as post_id,
    lower(trim(latest.platform)) as platform,
    latest.posted_at as posted_at,
    lower(trim(latest.language)) as language,
    latest.text as text,
    coalesce(latest.likes, 0) as likes,
    coalesce(latest.reposts, 0) as reposts,
    coalesce(latest.reach, 0) as reach,
    coalesce(latest.mentions_brand, false) as mentions_brand
from latest
left join identity.identifiers
    on identity.identifiers.token = latest.token
    and (identifiers.valid_from is null or latest.posted_at >= identifiers.valid_from)
    and (identifiers.valid_to is null or latest.posted_at < identifiers.valid_to)
