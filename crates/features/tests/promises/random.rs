//! Random histories with ties, nulls, late and out-of-order rows, deletions and merged files, against the oracle.

use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::oracle::expected;
use crate::world::{Asked, KeyKind, Row, World};

#[derive(Debug, Clone)]
struct Case {
    history: Vec<Row>,
    spine: Vec<(Option<i64>, i64)>,
    asked: Asked,
    keys: KeyKind,
    buckets: u32,
    row_group_rows: usize,
    batch_rows: usize,
    /// Which versions are merged into one file a bucket.
    merged: Option<(i64, i64)>,
}

const VERSIONS: i64 = 5;

fn row() -> impl Strategy<Value = Row> {
    // Few moments, so that there are ties; known late, at once, or before it happens, as a plan is.
    (0..8_i64, 0..12_i64, -2..8_i64, 0..VERSIONS, prop::bool::weighted(0.15), prop::option::weighted(0.8, 0..1000_i64))
        .prop_map(|(key, event, delay, version, deleted, value)| Row {
            key,
            event,
            known: event + delay,
            version,
            deleted,
            value,
        })
}

fn case() -> impl Strategy<Value = Case> {
    let asked = (
        any::<bool>(),
        prop::bool::weighted(0.7),
        prop::option::of(0..6_i64),
        prop::option::weighted(0.3, 0..VERSIONS),
        1..4_usize,
    )
        .prop_map(|(strict, known_only, ttl, as_of_version, workers)| Asked {
            strict,
            known_only,
            ttl,
            as_of_version,
            workers,
            ..Asked::default()
        });
    (
        prop::collection::vec(row(), 0..120),
        prop::collection::vec((prop::option::weighted(0.9, 0..10_i64), -1..20_i64), 0..60),
        asked,
        prop::sample::select(vec![KeyKind::Int, KeyKind::Text, KeyKind::Several]),
        1..4_u32,
        1..20_usize,
        1..30_usize,
        prop::option::of((0..VERSIONS, 0..VERSIONS)),
    )
        .prop_map(|(mut history, spine, asked, keys, buckets, row_group_rows, batch_rows, merged)| {
            // As they came: by version.
            history.sort_by_key(|row| row.version);
            Case { history, spine, asked, keys, buckets, row_group_rows, batch_rows, merged }
        })
}

async fn world(case: &Case) -> World {
    let mut world = World::new(case.keys, case.buckets, case.row_group_rows);
    for version in 0..VERSIONS {
        let rows: Vec<Row> = case.history.iter().filter(|row| row.version == version).cloned().collect();
        world.write(version, &rows).await;
    }
    if let Some((from, to)) = case.merged {
        world.merge(from..=to).await;
    }
    world
}

/// The version a request is for must not be older than all that is there.
fn is_answerable(world: &World, case: &Case) -> bool {
    let first = world.files.iter().map(|file| *file.versions.start()).min();
    case.asked.as_of_version.is_none_or(|version| first.is_none_or(|first| first <= version))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pit_2_every_row_of_the_spine_gets_what_the_contract_says(case in case()) {
        Runtime::new().unwrap().block_on(async {
            let world = world(&case).await;
            if !is_answerable(&world, &case) {
                return Ok(());
            }
            let found = world.ask(&case.spine, case.batch_rows, &case.asked).await;
            for ((key, at), found) in case.spine.iter().zip(&found) {
                prop_assert_eq!(found, &expected(&case.history, *key, *at, &case.asked), "key {:?} at {}", key, at);
            }
            Ok(())
        })?;
    }

    /// Without the oracle: each value says when it was there to be seen, and no row sees one that is later than itself.
    #[test]
    fn pit_1_no_row_sees_a_value_from_its_future(mut case in case()) {
        Runtime::new().unwrap().block_on(async {
            for row in &mut case.history {
                row.value = Some(if case.asked.known_only { row.event.max(row.known) } else { row.event });
            }
            let world = world(&case).await;
            if !is_answerable(&world, &case) {
                return Ok(());
            }
            let found = world.ask(&case.spine, case.batch_rows, &case.asked).await;
            for ((_, at), found) in case.spine.iter().zip(found) {
                prop_assert!(found.value.is_none_or(|seen| seen <= *at), "at {} saw {:?}", at, found.value);
                prop_assert!(found.event.is_none_or(|event| event < *at || (event == *at && !case.asked.strict)));
            }
            Ok(())
        })?;
    }

    /// What comes to be known later changes nothing that was asked about before.
    #[test]
    fn pit_1_later_versions_change_no_earlier_answer(mut case in case(), late in prop::collection::vec(row(), 1..40)) {
        Runtime::new().unwrap().block_on(async {
            (case.asked.known_only, case.asked.as_of_version, case.merged) = (true, None, None);
            let mut world = world(&case).await;
            let before = world.ask(&case.spine, case.batch_rows, &case.asked).await;
            let last = case.spine.iter().map(|(_, at)| *at).max().unwrap_or(0);
            let late: Vec<Row> = late.into_iter().map(|row| Row { known: last + 1, version: VERSIONS, ..row }).collect();
            world.write(VERSIONS, &late).await;
            prop_assert_eq!(before, world.ask(&case.spine, case.batch_rows, &case.asked).await);
            Ok(())
        })?;
    }
}
