-- One row a customer who has bought and visits online: whether their habit changed of late, against their own past alone.
-- Visits are counted by weeks back from now(), 26 of them, as x = ln(1 + visits); the weeks before the last four say what is
-- usual: z = 0.6745 (x - median) / MAD, with MAD at least 0.25. A fall is summed up by a cumulative sum, which forgets what
-- goes the other way: with C the running sum of (-z - 0.5), S = C - min(0, running minimum of C), two windows in the place of a
-- recursion (Page 1954; k 0.5). S of 8 and above is a fall: of customers whose weeks scatter as they always did (Poisson, 0.3 to
-- 10 visits a week) at most 15 in 1000 stand there; of those who stop for four weeks, 36 % with two visits a week before, 79 %
-- with three, 99 % with five. Silence is asked of purchases: as many days without one as there are come by chance with
-- p = exp(-days / gap), where purchases come at random; the gap is the customer's own, drawn towards 30 days with the weight of
-- two purchases. Among all customers at most one in twenty of those who are called silent is called so by chance
-- (Benjamini and Hochberg 1995, q <= 0.05).
-- @stage      full
-- @owner      retention
-- @expect     fail        has_customer:     customer_id is not null
-- @expect     fail        unique_customer:  count(*) = count(distinct customer_id)
-- @expect     fail        p_and_q:          silence_p between 0 and 1 and silence_q between 0 and 1 and silence_q >= silence_p - 0.000001
-- @expect     warn        few_alarms:       count(*) < 200 or count(*) filter (where is_visits_fall) < count(*) / 3
with weeks as (
    select unnest(range(0, 26)) as week
),

visits as (
    select
        core.sessions.customer_id,
        cast(floor((date_part('epoch', now()) - date_part('epoch', core.sessions.started_at)) / 604800.0) as bigint) as week,
        count(*) as visits
    from core.sessions
    where core.sessions.customer_id is not null
        and core.sessions.started_at <= now()
        and core.sessions.started_at > now() - interval '182 days'
    group by
        core.sessions.customer_id,
        cast(floor((date_part('epoch', now()) - date_part('epoch', core.sessions.started_at)) / 604800.0) as bigint)
),

-- Who came first less than twelve weeks ago has no past to be held against.
visitors as (
    select customer_id
    from visits
    group by customer_id
    having max(week) >= 12 and sum(visits) >= 6
),

series as (
    select
        visitors.customer_id,
        weeks.week,
        coalesce(visits.visits, 0) as visits,
        ln(1.0 + coalesce(visits.visits, 0)) as x
    from visitors
    cross join weeks
    left join visits on visits.customer_id = visitors.customer_id and visits.week = weeks.week
),

centres as (
    select
        customer_id,
        median(x) filter (where week >= 4) as centre,
        avg(cast(visits as double)) filter (where week >= 4) as visits_a_week_before,
        avg(cast(visits as double)) filter (where week < 4) as visits_a_week
    from series
    group by customer_id
),

spreads as (
    select
        series.customer_id,
        greatest(median(abs(series.x - centres.centre)) filter (where series.week >= 4), 0.25) as mad
    from series
    inner join centres on centres.customer_id = series.customer_id
    group by series.customer_id
),

scaled as (
    select
        series.customer_id,
        series.week,
        0.6745 * (series.x - centres.centre) / spreads.mad as z
    from series
    inner join centres on centres.customer_id = series.customer_id
    inner join spreads on spreads.customer_id = series.customer_id
),

running as (
    select
        customer_id,
        week,
        z,
        sum(-z - 0.5) over (partition by customer_id order by week desc rows between unbounded preceding and current row) as c
    from scaled
),

falls as (
    select
        customer_id,
        week,
        z,
        c - least(0.0, min(c) over (partition by customer_id order by week desc rows between unbounded preceding and current row)) as s
    from running
),

newest as (
    select
        customer_id,
        z,
        s
    from falls
    where week = 0
),

silence as (
    select
        profile.purchase_rhythm.customer_id,
        exp(
            -cast(cast(now() + interval '8 hours' as date) - profile.purchase_rhythm.last_purchase_date as double)
            / (
                (coalesce(profile.purchase_rhythm.mean_gap_days, 0.0) * (profile.purchase_rhythm.purchase_days - 1) + 60.0)
                / (profile.purchase_rhythm.purchase_days + 1)
            )
        ) as p
    from profile.purchase_rhythm
),

ranked as (
    select
        customer_id,
        p,
        p * count(*) over () / row_number() over (order by p, customer_id) as raised
    from silence
),

-- The smallest of all that stand at the same place or behind it: what stands before never has the larger q.
controlled as (
    select
        customer_id,
        p,
        least(1.0, min(raised) over (order by p desc, customer_id desc rows between unbounded preceding and current row)) as q
    from ranked
)

select
    controlled.customer_id as customer_id,                                     -- Unified customer id
    centres.visits_a_week_before as visits_a_week_before,                      -- Mean visits a week, 5 to 26 weeks ago; null without twelve weeks of past
    centres.visits_a_week as visits_a_week,                                    -- Mean visits a week, last 4 weeks; null likewise
    newest.z as visits_z,                                                      -- Robust z of the last week's visits; null likewise
    newest.s as visits_fall,                                                   -- Cumulative sum of the fall up to the last week; null likewise
    coalesce(newest.s >= 8.0, false) as is_visits_fall,                        -- Whether visits have fallen below the customer's habit
    controlled.p as silence_p,                                                 -- Chance of so many days without a purchase
    controlled.q as silence_q,                                                 -- The same, controlled for how many customers there are
    controlled.q <= 0.05 as is_silent                                          -- Whether purchases have stopped for longer than chance tells
from controlled
left join newest on newest.customer_id = controlled.customer_id
left join centres on centres.customer_id = controlled.customer_id
where controlled.customer_id is not null
