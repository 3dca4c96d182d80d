-- One row a public post that mentions the shop, at its last reach. Few authors are customers we know: the others have no
-- customer_id.
-- @stage      full
-- @owner      customer voice
-- @expect     fail        has_post_id:  post_id is not null
-- @expect     fail        unique_post:  count(*) = count(distinct post_id)
-- @expect     quarantine  has_time:     posted_at is not null
-- @expect     warn        sane_reach:   reach >= 0
-- @tag        pii(text)
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
    identifiers.customer_id as customer_id,                  -- Unified customer id; null when the author is unknown
    latest.post_id as post_id,                               -- The platform's key
    lower(trim(latest.platform)) as platform,                -- weibo, xiaohongshu, wechat, douyin
    latest.posted_at as posted_at,                           -- When it was posted
    lower(trim(latest.language)) as language,                -- zh, en
    latest.text as text,                                     -- What was written
    coalesce(latest.likes, 0) as likes,                      -- Likes
    coalesce(latest.reposts, 0) as reposts,                  -- Reposts
    coalesce(latest.reach, 0) as reach,                      -- People reached
    coalesce(latest.mentions_brand, false) as mentions_brand -- Whether the shop is named
from latest
left join identity.identifiers on identity.identifiers.token = latest.token
