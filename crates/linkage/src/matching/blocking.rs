//! Pairs worth looking at, each once, without ever holding them all.

use std::collections::HashMap;

use super::common::Common;
use super::error::LinkageError;
use super::records::{Column, MISSING, Quick, Records};
use super::spec::{BlockingRule, KeyExpression};
use super::threads;
use crate::normal::name_pinyin;

/// Pairs a piece of work has at most, where one row has not more of its own.
const PIECE_PAIRS_MAX: u64 = 50_000;

/// The pairs of some blocking rules: a pair belongs to the first rule that gives it.
#[derive(Debug)]
pub(crate) struct Candidates {
    rules: Vec<Blocks>,
    /// The keys of all rules that have the same key for both sides, row by row; missing for other rules.
    keys: Vec<u32>,
    /// Work, in its order: rule, block, and the rows of the block's left side.
    pieces: Vec<Piece>,
    /// Where in `pieces` each batch ends.
    batches: Vec<usize>,
    left_rows: Option<u32>,
    pub(crate) skipped: Vec<SkippedBlocks>,
    /// Pairs of each rule before pairs of several rules are counted once.
    pub(crate) rule_pairs: Vec<u64>,
    /// The keys of skipped blocks, each with the number of its rule.
    pub(crate) common_keys: Vec<(usize, String)>,
}

/// What a rule gave up because a value is shared by too many records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedBlocks {
    /// The rule.
    pub rule: String,
    /// How many blocks.
    pub blocks: u64,
    /// Pairs in them.
    pub pairs: u64,
    /// Pairs of the largest one.
    pub largest_pairs: u64,
    /// What the records of the largest one share.
    pub largest_key: String,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    rule: u32,
    block: u32,
    from: u32,
    to: u32,
}

/// The blocks of one rule.
#[derive(Debug)]
struct Blocks {
    /// The key of each row as the left record, and as the right one where that is another expression. Once all rules are there, keys that are the same
    /// for both sides are kept together with those of other rules only.
    left_keys: Vec<u32>,
    right_keys: Option<Vec<u32>>,
    left: Groups,
    /// None: one set and the same expression, so the two sides of a block are the same rows.
    right: Option<Groups>,
}

/// Rows by key.
#[derive(Debug)]
struct Groups {
    starts: Vec<u32>,
    rows: Vec<u32>,
}

impl Groups {
    fn new(keys: &[u32], count: u32, rows: std::ops::Range<u32>) -> Self {
        let mut starts = vec![0_u32; count as usize + 1];
        for row in rows.clone() {
            let key = keys[row as usize];
            if key != MISSING {
                starts[key as usize + 1] += 1;
            }
        }
        for at in 0..count as usize {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut sorted = vec![0_u32; starts[count as usize] as usize];
        for row in rows {
            let key = keys[row as usize];
            if key != MISSING {
                sorted[next[key as usize] as usize] = row;
                next[key as usize] += 1;
            }
        }
        Self { starts, rows: sorted }
    }

    fn get(&self, key: u32) -> &[u32] {
        &self.rows[self.starts[key as usize] as usize..self.starts[key as usize + 1] as usize]
    }
}

impl Blocks {
    fn new(records: &Records, rule: &BlockingRule) -> Result<(Self, u32), LinkageError> {
        let is_same = rule.keys.iter().all(|key| key.left == key.right);
        let mut left_keys: Vec<u32> = Vec::new();
        let mut right_keys: Vec<u32> = Vec::new();
        let mut count = 0;
        for (at, key) in rule.keys.iter().enumerate() {
            let mut texts: HashMap<String, u32, Quick> = HashMap::default();
            let left = expression_keys(records, &key.left, &mut texts)?;
            let right = if is_same { Vec::new() } else { expression_keys(records, &key.right, &mut texts)? };
            if at == 0 {
                (left_keys, right_keys) = (left, right);
                count = u32::try_from(texts.len()).unwrap_or(MISSING);
                continue;
            }
            let mut pairs: HashMap<u64, u32, Quick> = HashMap::default();
            combine(&mut left_keys, &left, &mut pairs);
            combine(&mut right_keys, &right, &mut pairs);
            count = u32::try_from(pairs.len()).unwrap_or(MISSING);
        }
        let (all, split) = (records.rows, records.left_rows);
        let left = Groups::new(&left_keys, count, 0..split.unwrap_or(all));
        let right_side = if is_same { &left_keys } else { &right_keys };
        let right = (!is_same || split.is_some()).then(|| Groups::new(right_side, count, split.unwrap_or(0)..all));
        Ok((Self { left_keys, right_keys: (!is_same).then_some(right_keys), left, right }, count))
    }

    fn pairs(&self, block: u32) -> u64 {
        let left = self.left.get(block).len() as u64;
        match &self.right {
            Some(right) => left * right.get(block).len() as u64,
            None => left * left.saturating_sub(1) / 2,
        }
    }

    /// Whether a rule with different keys for the two sides gives the pair of two rows, the first one the smaller.
    fn gives(&self, one: u32, two: u32, is_one_set: bool) -> bool {
        let (one, two) = (one as usize, two as usize);
        self.right_keys.as_ref().is_some_and(|right| {
            (self.left_keys[one] != MISSING && self.left_keys[one] == right[two])
                || (is_one_set && self.left_keys[two] != MISSING && self.left_keys[two] == right[one])
        })
    }
}

impl Candidates {
    pub(crate) fn new(
        records: &Records,
        rules: &[BlockingRule],
        block_pairs_max: u64,
        common: Option<&dyn Common>,
        workers: usize,
    ) -> Result<Self, LinkageError> {
        let common = common.filter(|common| common.has_common_keys());
        let mut found = Self {
            rules: Vec::new(),
            keys: Vec::new(),
            pieces: Vec::new(),
            batches: Vec::new(),
            left_rows: records.left_rows,
            skipped: Vec::new(),
            rule_pairs: Vec::new(),
            common_keys: Vec::new(),
        };
        let mut made = Vec::new();
        threads::in_order(
            &mut vec![(); workers],
            rules.len(),
            |(), at| Blocks::new(records, &rules[at]),
            |_, blocks| made.push(blocks),
        );
        let mut in_batch = 0;
        for ((at, rule), blocks) in (0_u32..).zip(rules).zip(made) {
            let (mut blocks, count) = blocks?;
            let mut skipped = SkippedBlocks {
                rule: rule.to_string(),
                blocks: 0,
                pairs: 0,
                largest_pairs: 0,
                largest_key: String::new(),
            };
            let mut rule_pairs = 0;
            for block in 0..count {
                let pairs = blocks.pairs(block);
                if pairs == 0 {
                    continue;
                }
                let is_common = |common: &dyn Common| {
                    common.is_common(at as usize, &key_text(records, rule, blocks.left.get(block)[0]))
                };
                if pairs > block_pairs_max || common.is_some_and(is_common) {
                    skipped.blocks += 1;
                    skipped.pairs += pairs;
                    let rows = blocks.left.get(block);
                    let key = key_text(records, rule, rows[0]);
                    if pairs > skipped.largest_pairs {
                        skipped.largest_pairs = pairs;
                        skipped.largest_key.clone_from(&key);
                    }
                    found.common_keys.push((at as usize, key));
                    // Without a key the rows give no pairs here, so a later rule may give them.
                    let keys = [Some(&mut blocks.left_keys), blocks.right_keys.as_mut()];
                    for keys in keys.into_iter().flatten() {
                        for row in
                            blocks.left.get(block).iter().chain(blocks.right.iter().flat_map(|side| side.get(block)))
                        {
                            if keys[*row as usize] == block {
                                keys[*row as usize] = MISSING;
                            }
                        }
                    }
                    continue;
                }
                rule_pairs += pairs;
                let rows = u32::try_from(blocks.left.get(block).len()).unwrap_or(MISSING);
                let step = u64::from(rows).div_ceil(pairs.div_ceil(PIECE_PAIRS_MAX));
                let step = u32::try_from(step).unwrap_or(rows).max(1);
                for from in (0..rows).step_by(step as usize) {
                    let to = (from + step).min(rows);
                    found.pieces.push(Piece { rule: at, block, from, to });
                    in_batch += pairs * u64::from(to - from) / u64::from(rows);
                    if in_batch >= PIECE_PAIRS_MAX / 2 {
                        found.batches.push(found.pieces.len());
                        in_batch = 0;
                    }
                }
            }
            if skipped.blocks > 0 {
                found.skipped.push(skipped);
            }
            found.rule_pairs.push(rule_pairs);
            found.rules.push(blocks);
        }
        if found.batches.last() != Some(&found.pieces.len()) {
            found.batches.push(found.pieces.len());
        }
        let width = found.rules.len();
        found.keys = vec![MISSING; records.rows as usize * width];
        for (at, rule) in found.rules.iter_mut().enumerate().filter(|(_, rule)| rule.right_keys.is_none()) {
            for (row, key) in std::mem::take(&mut rule.left_keys).into_iter().enumerate() {
                found.keys[row * width + at] = key;
            }
        }
        Ok(found)
    }

    /// Pieces of work.
    pub(crate) fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Gives each pair of a batch, the smaller row first, in an order of its own that is always the same.
    pub(crate) fn each_pair(&self, batch: usize, mut take: impl FnMut(u32, u32)) {
        let from = if batch == 0 { 0 } else { self.batches[batch - 1] };
        let is_one_set = self.left_rows.is_none();
        for piece in &self.pieces[from..self.batches[batch]] {
            let (before, from_here) = self.rules.split_at(piece.rule as usize);
            let rule = &from_here[0];
            let left = rule.left.get(piece.block);
            let uneven: Vec<&Blocks> = before.iter().filter(|earlier| earlier.right_keys.is_some()).collect();
            let keys_before = |row: u32| {
                let from = row as usize * self.rules.len();
                &self.keys[from..from + before.len()]
            };
            let is_new = |one: u32, two: u32| {
                let shared = keys_before(one).iter().zip(keys_before(two)).any(|(a, b)| a == b && *a != MISSING);
                !shared && !uneven.iter().any(|earlier| earlier.gives(one, two, is_one_set))
            };
            for (at, &row) in left.iter().enumerate().take(piece.to as usize).skip(piece.from as usize) {
                match &rule.right {
                    None => {
                        for &other in &left[at + 1..] {
                            if is_new(row, other) {
                                take(row, other);
                            }
                        }
                    }
                    Some(right) => {
                        for &other in right.get(piece.block) {
                            // In one set two rows may meet both ways round: the first row's own way counts.
                            let is_second = other < row
                                && rule.right_keys.as_ref().is_some_and(|right| {
                                    rule.left_keys[other as usize] != MISSING
                                        && rule.left_keys[other as usize] == right[row as usize]
                                });
                            let (one, two) = (row.min(other), row.max(other));
                            if one != two && !is_second && is_new(one, two) {
                                take(one, two);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How many pairs a rule gives on its own, blocks above the limit left out, and how many are in those.
pub(crate) fn count_pairs(
    records: &Records,
    rule: &BlockingRule,
    block_pairs_max: u64,
) -> Result<(u64, u64), LinkageError> {
    let (blocks, count) = Blocks::new(records, rule)?;
    let (mut pairs, mut skipped) = (0, 0);
    for block in 0..count {
        let here = blocks.pairs(block);
        if here > block_pairs_max { skipped += here } else { pairs += here }
    }
    Ok((pairs, skipped))
}

/// The key of each row: equal texts have equal keys.
fn expression_keys(
    records: &Records,
    expression: &KeyExpression,
    texts: &mut HashMap<String, u32, Quick>,
) -> Result<Vec<u32>, LinkageError> {
    let column = &records.columns[records.column_at(&expression.column)?];
    let mut by_code = Vec::with_capacity(column.values.len());
    for code in 0..u32::try_from(column.values.len()).unwrap_or(MISSING) {
        let key = expression_text(column, expression, code).map_or(MISSING, |text| {
            let next = u32::try_from(texts.len()).unwrap_or(MISSING);
            *texts.entry(text).or_insert(next)
        });
        by_code.push(key);
    }
    Ok(column.codes.iter().map(|code| by_code.get(*code as usize).copied().unwrap_or(MISSING)).collect())
}

/// The characters an expression takes of a value; none when the value ends before the first of them.
fn expression_text(column: &Column, expression: &KeyExpression, code: u32) -> Option<String> {
    if !expression.pinyin && expression.from == 0 && expression.to.is_none() {
        return Some(column.values[code as usize].clone());
    }
    let read;
    let chars = if !expression.pinyin {
        column.texts.get(code)
    } else if column.readings.is_empty() {
        // Without hanzi readings are not kept; names in Latin letters have one all the same.
        read = name_pinyin(&column.values[code as usize]).chars().map(u32::from).collect::<Vec<u32>>();
        &read
    } else {
        column.readings.get(code)
    };
    let to = expression.to.unwrap_or(chars.len()).min(chars.len());
    let part = chars.get(expression.from..to).filter(|part| !part.is_empty())?;
    Some(part.iter().filter_map(|char| char::from_u32(*char)).collect())
}

fn key_text(records: &Records, rule: &BlockingRule, row: u32) -> String {
    let texts: Vec<String> = rule
        .keys
        .iter()
        .filter_map(|key| {
            let column = &records.columns[records.column_at(&key.left.column).ok()?];
            expression_text(column, &key.left, *column.codes.get(row as usize)?)
        })
        .collect();
    texts.join(", ")
}

/// Makes one key of two.
fn combine(keys: &mut [u32], with: &[u32], pairs: &mut HashMap<u64, u32, Quick>) {
    for (key, other) in keys.iter_mut().zip(with) {
        *key = if *key == MISSING || *other == MISSING {
            MISSING
        } else {
            let next = u32::try_from(pairs.len()).unwrap_or(MISSING);
            *pairs.entry((u64::from(*key) << 32) | u64::from(*other)).or_insert(next)
        };
    }
}
