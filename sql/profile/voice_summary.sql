-- One row a customer who has ordered, reviewed or posted: what they say, from stars and reach (the words are read
-- in profile.text_sentiment). Shops ask for a review of the first order; not giving one is a touchpoint of its own.
-- @stage      incremental key(customer_id)
-- @owner      customer voice
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     warn        stars_in_range:   average_stars_365d is null or average_stars_365d between 1 and 5
with known_reviews as (
    select *
    from core.reviews
    where customer_id is not null
        and reviewed_at <= now()
),

first_orders as (
    select
        customer_id,
        order_id
    from core.orders
    where customer_id is not null
        and status <> 'cancelled'
        and ordered_at <= now()
    qualify row_number() over (
        partition by customer_id
        order by ordered_at, order_id
    ) = 1
),

first_order_reviews as (
    select
        first_orders.customer_id,
        count(known_reviews.review_id) > 0 as has_reviewed_first_order
    from first_orders
    left join known_reviews
        on known_reviews.customer_id = first_orders.customer_id
        and known_reviews.order_id = first_orders.order_id
    group by first_orders.customer_id
),

reviews as (
    select
        customer_id,
        max(reviewed_at) as last_reviewed_at,
        count(*) as reviews,
        count(*) filter (where reviewed_at > now() - interval '365 days') as reviews_365d,
        avg(cast(stars as double)) filter (where reviewed_at > now() - interval '90 days') as average_stars_90d,
        avg(cast(stars as double)) filter (where reviewed_at <= now() - interval '90 days' and reviewed_at > now() - interval '365 days') as average_stars_before,
        avg(cast(stars as double)) filter (where reviewed_at > now() - interval '365 days') as average_stars_365d,
        min(stars) filter (where reviewed_at > now() - interval '90 days') as lowest_stars_90d,
        count(*) filter (where stars <= 2 and reviewed_at > now() - interval '90 days') as low_reviews_90d,
        count(*) filter (where stars <= 2 and reviewed_at > now() - interval '365 days') as low_reviews_365d,
        count(*) filter (where photo_count > 0 and reviewed_at > now() - interval '365 days') as photo_reviews_365d
    from known_reviews
    group by customer_id
),

posts as (
    select
        customer_id,
        max(posted_at) as last_posted_at,
        count(*) filter (where posted_at > now() - interval '365 days') as posts_365d,
        sum(case when posted_at > now() - interval '365 days' then reach else 0 end) as post_reach_365d
    from core.social_posts
    where customer_id is not null
        and mentions_brand
        and posted_at <= now()
    group by customer_id
),

reviewers as (
    select
        coalesce(first_order_reviews.customer_id, reviews.customer_id) as customer_id,
        first_order_reviews.has_reviewed_first_order,
        reviews.last_reviewed_at,
        reviews.reviews,
        reviews.reviews_365d,
        reviews.average_stars_90d,
        reviews.average_stars_before,
        reviews.average_stars_365d,
        reviews.lowest_stars_90d,
        reviews.low_reviews_90d,
        reviews.low_reviews_365d,
        reviews.photo_reviews_365d
    from first_order_reviews
    full join reviews on reviews.customer_id = first_order_reviews.customer_id
)

select
    coalesce(reviewers.customer_id, posts.customer_id) as customer_id, -- Unified customer id
    reviewers.has_reviewed_first_order as has_reviewed_first_order,    -- Whether the first order was reviewed; null without an order
    reviewers.last_reviewed_at as last_reviewed_at,                    -- Last review
    coalesce(reviewers.reviews, 0) as reviews,                         -- Reviews, lifetime
    coalesce(reviewers.reviews_365d, 0) as reviews_365d,               -- Reviews, last 365 days
    reviewers.average_stars_90d as average_stars_90d,                  -- Mean stars 1 to 5, last 90 days
    reviewers.average_stars_365d as average_stars_365d,                -- Mean stars 1 to 5, last 365 days
    reviewers.average_stars_90d - reviewers.average_stars_before as stars_change_90d, -- Mean stars of the last 90 days less those of the 275 days before
    reviewers.lowest_stars_90d as lowest_stars_90d,                    -- Fewest stars, last 90 days
    coalesce(reviewers.low_reviews_90d, 0) as low_reviews_90d,         -- Reviews of 1 or 2 stars, last 90 days
    coalesce(reviewers.low_reviews_365d, 0) as low_reviews_365d,       -- Reviews of 1 or 2 stars, last 365 days
    coalesce(reviewers.photo_reviews_365d, 0) as photo_reviews_365d,   -- Reviews with photos, last 365 days
    posts.last_posted_at as last_posted_at,                            -- Last public post that names the shop
    coalesce(posts.posts_365d, 0) as posts_365d,                       -- Public posts that name the shop, last 365 days
    coalesce(posts.post_reach_365d, 0) as post_reach_365d              -- People those posts reached
from reviewers
full join posts on posts.customer_id = reviewers.customer_id
