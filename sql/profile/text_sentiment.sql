-- One row a review or public post of a known customer: what its words say, read by the sentiment model that was promoted
-- last. Null before one is: `holdfast train --model sentiment`, then `holdfast models promote sentiment 1`. The words
-- themselves stay in core.
-- @stage      incremental key(customer_id)
-- @owner      customer voice
-- @expect     fail        has_customer:    customer_id is not null
-- @expect     fail        unique_text:     count(*) = count(distinct concat(source, ' ', text_id))
-- @expect     warn        score_in_range:  score is null or score between -1 and 1
with texts as (
    select
        customer_id,
        'review' as source,
        review_id as text_id,
        reviewed_at as written_at,
        language,
        text
    from core.reviews
    where customer_id is not null
        and text is not null
    union all
    select
        customer_id,
        'post' as source,
        post_id as text_id,
        posted_at as written_at,
        language,
        text
    from core.social_posts
    where customer_id is not null
        and mentions_brand
        and text is not null
),

heard as (
    select
        customer_id,
        source,
        text_id,
        written_at,
        sentiment(text, language) as said
    from texts
)

select
    customer_id,                           -- Unified customer id
    source,                                -- review or post
    text_id,                               -- The source's key of the text
    written_at,                            -- When it was written
    said['score'] as score,                -- From -1, discontent, to 1, content; null before a model is promoted
    said['confidence'] as confidence,      -- Probability of the likelier of the two, 0.5 to 1
    said['tone'] as tone,                  -- negative, neutral (too little to tell) or positive
    said['language'] as language,          -- zh, en, or what the source says
    said['version'] as model_version       -- The version that read it: model.versions
from heard
