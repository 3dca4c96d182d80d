//! Rows in, rows out: slabs against a map that keeps the latest row of each key, whatever is published in which order.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow::util::display::array_value_to_string;
use holdfast_features::HistorySchema;

use super::keys::{KeyHash, Keys};
use super::packing::{PackedRows, Packing, is_deletion, place_of};
use super::slab::Bucket;

fn schema(keys: Vec<Field>) -> HistorySchema {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    let features = vec![
        Field::new("spend", DataType::Decimal128(18, 2), true),
        Field::new("band", DataType::Utf8, true),
        Field::new("is_new", DataType::Boolean, true),
        Field::new("rate", DataType::Float64, true),
        Field::new("last", list, true),
        Field::new("raw", DataType::Binary, true),
    ];
    HistorySchema::new("v", keys, features, 4).unwrap()
}

/// The moments of a row, whether it is a deletion, and its values as text.
type Expected = ((i64, i64, i64), bool, Vec<String>);

/// Numbers that are the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

/// Rows of one version, some of keys that were there before.
fn changes(schema: &HistorySchema, draw: &mut Draw, version: i64, rows: usize, keys: u64) -> RecordBatch {
    let names: Vec<String> = (0..rows).map(|_| format!("c_{:03}", draw.below(keys))).collect();
    let mut numbers = |most: u64| -> Vec<i64> { (0..rows).map(|_| draw.below(most) as i64).collect() };
    let (shops, events, values) = (numbers(3), numbers(50), numbers(100));
    let is = |at: usize, number: i64| values[at] % number != 0;
    let micros =
        |values: Vec<i64>| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC")) };
    let lists = values.iter().map(|value| {
        (value % 7 != 0)
            .then(|| (0..value % 4).map(|item| (item != 2).then(|| i32::try_from(item).unwrap())).collect::<Vec<_>>())
    });
    let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(names))];
    if schema.keys().len() == 2 {
        columns.push(Arc::new(Int64Array::from(shops)));
    }
    columns.extend([
        micros(events),
        micros(vec![version * 100; rows]),
        Arc::new(Int64Array::from(vec![version; rows])) as ArrayRef,
        Arc::new(BooleanArray::from((0..rows).map(|at| !is(at, 11)).collect::<Vec<_>>())),
        Arc::new(
            Decimal128Array::from_iter((0..rows).map(|at| is(at, 5).then_some(i128::from(values[at]) * 31)))
                .with_precision_and_scale(18, 2)
                .unwrap(),
        ),
        Arc::new(StringArray::from_iter(
            (0..rows).map(|at| is(at, 3).then(|| "x".repeat(usize::try_from(values[at] % 9).unwrap()))),
        )),
        Arc::new(BooleanArray::from_iter((0..rows).map(|at| is(at, 6).then_some(values[at] % 2 == 0)))),
        Arc::new(Float64Array::from_iter((0..rows).map(|at| is(at, 4).then_some(values[at] as f64 / 3.0)))),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists)),
        Arc::new(BinaryArray::from_iter(
            (0..rows).map(|at| is(at, 8).then(|| vec![u8::try_from(values[at]).unwrap(); 3])),
        )),
    ]);
    RecordBatch::try_new(Arc::clone(schema.file_schema()), columns).unwrap()
}

fn texts(batch: &RecordBatch, row: usize, columns: std::ops::Range<usize>) -> Vec<String> {
    columns.map(|column| array_value_to_string(batch.column(column), row).unwrap()).collect()
}

#[test]
fn whatever_is_published_the_latest_row_of_each_key_is_found() {
    for keys in [vec!["customer_id"], vec!["customer_id", "shop"]] {
        let fields = keys
            .iter()
            .map(|key| Field::new(*key, if *key == "shop" { DataType::Int64 } else { DataType::Utf8 }, false));
        let schema = schema(fields.collect());
        let count = schema.keys().len();
        let packing = Packing::of(&schema).unwrap();
        let mut draw = Draw(7);
        let mut bucket = Bucket::default();
        // By key: where the row stands, and its texts.
        let mut expected: BTreeMap<Vec<String>, Expected> = BTreeMap::new();
        for version in 1..60 {
            let rows = [1, 5, 40, 700][usize::try_from(draw.below(4)).unwrap()];
            let batch = changes(&schema, &mut draw, version, rows, 900);
            // A part of a batch, as the reader gives them.
            let batch = batch.slice(rows / 5, rows - rows / 5);
            let mut came = PackedRows::default();
            packing.pack(&schema, &batch, &(0..batch.num_rows()).collect::<Vec<_>>(), &mut came).unwrap();
            for (row, packed) in came.iter().enumerate() {
                let values = texts(&batch, row, count + 4..batch.num_columns());
                let found =
                    expected.entry(texts(&batch, row, 0..count)).or_insert((place_of(packed), false, Vec::new()));
                if found.0 <= place_of(packed) {
                    *found = (place_of(packed), is_deletion(packed), values);
                }
            }
            let before = bucket.clone();
            bucket = bucket.with(&packing, &came).unwrap();
            assert_eq!(bucket.rows(), expected.len());
            assert_eq!(bucket.known_last(), version * 100);
            // Who reads what was there before goes on with it.
            assert!(before.rows() <= bucket.rows() && before.known_last() < bucket.known_last());
        }
        let asked: Vec<(Vec<String>, _)> = expected.into_iter().collect();
        let column = |at: usize| asked.iter().map(move |(key, _)| key[at].clone());
        let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from_iter_values(column(0)))];
        if count == 2 {
            columns.push(Arc::new(Int64Array::from_iter_values(column(1).map(|shop| shop.parse().unwrap()))));
        }
        let asked_keys = Keys::new(&columns);
        let mut bytes = vec![Vec::new(); asked.len()];
        let rows: Vec<Option<&[u8]>> = bytes
            .iter_mut()
            .enumerate()
            .map(|(row, key)| {
                asked_keys.append(row, key);
                let hash = KeyHash::of(key);
                bucket.slab(hash).find(&packing, hash.tag(), key)
            })
            .collect();
        assert!(rows.iter().all(Option::is_some));
        assert!(rows.iter().flatten().any(|row| is_deletion(row)));
        for feature in 0..schema.features().len() {
            let values = packing.column(feature, &rows).unwrap();
            assert_eq!(values.data_type(), schema.features()[feature].data_type());
            for (row, (_, (place, deleted, texts))) in asked.iter().enumerate() {
                assert_eq!(array_value_to_string(&values, row).unwrap(), texts[feature]);
                assert_eq!((place_of(rows[row].unwrap()), is_deletion(rows[row].unwrap())), (*place, *deleted));
            }
        }
        for key in ["", "c_", "c_0000", "nobody"] {
            let hash = KeyHash::of(key.as_bytes());
            assert!(bucket.slab(hash).find(&packing, hash.tag(), key.as_bytes()).is_none());
        }
    }
}

#[test]
fn a_publish_makes_no_slab_anew_in_which_nothing_changed() {
    let schema = schema(vec![Field::new("customer_id", DataType::Utf8, false)]);
    let packing = Packing::of(&schema).unwrap();
    let mut draw = Draw(11);
    let packed = |batch: &RecordBatch| {
        let mut rows = PackedRows::default();
        packing.pack(&schema, batch, &(0..batch.num_rows()).collect::<Vec<_>>(), &mut rows).unwrap();
        rows
    };
    let many: Vec<RecordBatch> = (0..20).map(|_| changes(&schema, &mut draw, 1, 1_000, 20_000)).collect();
    let many = concat_batches(schema.file_schema(), &many).unwrap();
    let before = Bucket::default().with(&packing, &packed(&many)).unwrap();
    let after = before.with(&packing, &packed(&changes(&schema, &mut draw, 2, 3, 20_000))).unwrap();
    let (shared, slabs) = after.shared_with(&before);
    assert!(slabs > 200 && shared >= slabs - 3 && shared < slabs, "{shared} of {slabs}");
    let nothing = before.with(&packing, &PackedRows::default()).unwrap();
    assert_eq!(nothing.shared_with(&before), (slabs, slabs));
}

#[test]
fn keys_are_in_the_bucket_that_history_has_them_in() {
    // The published values of FNV-1a 64 are cbf29ce484222325, af63dc4c8601ec8c and 85944171f73967e8.
    let buckets = ["", "a", "foobar"].map(|key| KeyHash::of(key.as_bytes()).bucket(1 << 31));
    assert_eq!(buckets, [0x0422_2325, 0x0601_ec8c, 0x7739_67e8]);
    let columns: [ArrayRef; 2] = [Arc::new(Int64Array::from(vec![-7])), Arc::new(StringArray::from(vec!["foobar"]))];
    let mut key = Vec::new();
    assert_eq!(Keys::new(&columns).append(0, &mut key), 22);
    assert_eq!(KeyHash::of(&key).bucket(1 << 31), 0x2582_36a0);
}
