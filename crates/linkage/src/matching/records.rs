use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use arrow::array::{Array as _, StringArray};

use super::error::LinkageError;
use super::similarity::characters;
use super::spec::{ColumnKind, LinkageSpec};
use crate::normal::{
    DateOrder, address_key, birth_date, fold, has_hanzi, name_key, name_key_any_order, name_pinyin, postcode_key,
    written_date,
};

/// The code of a missing value.
pub(crate) const MISSING: u32 = u32::MAX;

/// The records of one set, or of two that are to be linked: normalised values, each once, and a code per row.
#[derive(Debug)]
pub struct Records {
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: u32,
    /// Rows before this one are the left set; none: one set, linked with itself.
    pub(crate) left_rows: Option<u32>,
}

/// A column: its distinct values and the value of each row.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) codes: Vec<u32>,
    pub(crate) values: Vec<String>,
    /// How many rows have the value.
    pub(crate) counts: Vec<u32>,
    /// Days since 1970 of values that are days; empty for other kinds.
    pub(crate) days: Vec<Option<i32>>,
    pub(crate) texts: Texts,
    /// How names with hanzi are read; empty when the column has no hanzi.
    pub(crate) readings: Texts,
}

/// Texts as code points, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    chars: Vec<u32>,
    ends: Vec<u32>,
    /// Which characters each has, as [`characters`].
    bits: Vec<u64>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        let from = self.chars.len();
        self.chars.extend(text.chars().map(u32::from));
        self.ends.push(u32::try_from(self.chars.len()).unwrap_or(u32::MAX));
        self.bits.push(characters(&self.chars[from..]));
    }

    pub(crate) fn bits(&self, at: u32) -> u64 {
        self.bits[at as usize]
    }

    pub(crate) fn get(&self, at: u32) -> &[u32] {
        let at = at as usize;
        let from = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.chars[from..self.ends[at] as usize]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// A column of records by name; rows beyond the shortest are not expected.
pub type NamedColumn<'a> = (&'a str, &'a StringArray);

impl Records {
    /// One set, to find records of one person in it.
    ///
    /// # Errors
    /// [`LinkageError::Column`] for a column that is missing or of another length, [`LinkageError::Rules`] for a specification with mistakes.
    pub fn one_set(spec: &LinkageSpec, columns: &[NamedColumn<'_>]) -> Result<Self, LinkageError> {
        Self::new(spec, &[columns])
    }

    /// Two sets, to find for records of the left one those of the right one. Rows of the right set are numbered after those of the left.
    ///
    /// # Errors
    /// As [`Records::one_set`].
    pub fn two_sets(
        spec: &LinkageSpec,
        left: &[NamedColumn<'_>],
        right: &[NamedColumn<'_>],
    ) -> Result<Self, LinkageError> {
        Self::new(spec, &[left, right])
    }

    /// How many rows there are in both sets.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The rows of the left set, when there are two.
    pub fn left_rows(&self) -> Option<u32> {
        self.left_rows
    }

    /// The normalised value of a row; `None` when it is missing or there is no such column.
    pub fn value(&self, column: &str, row: u32) -> Option<&str> {
        let column = self.columns.iter().find(|one| one.name == column)?;
        column.values.get(*column.codes.get(row as usize)? as usize).map(String::as_str)
    }

    /// How many pairs there are.
    pub(crate) fn pairs(&self) -> f64 {
        let rows = f64::from(self.rows);
        match self.left_rows {
            Some(left) => f64::from(left) * (rows - f64::from(left)),
            None => rows * (rows - 1.0) / 2.0,
        }
    }

    pub(crate) fn column_at(&self, name: &str) -> Result<usize, LinkageError> {
        self.columns.iter().position(|column| column.name == name).ok_or_else(|| LinkageError::Column {
            column: name.to_owned(),
            message: "the records do not have it".to_owned(),
        })
    }

    fn new(spec: &LinkageSpec, sets: &[&[NamedColumn<'_>]]) -> Result<Self, LinkageError> {
        spec.check()?;
        let mut lengths = Vec::new();
        let mut arrays: Vec<Vec<&StringArray>> = Vec::new();
        for name in spec.columns.keys() {
            let wrong = |message: &str| LinkageError::Column { column: name.clone(), message: message.to_owned() };
            let mut found = Vec::new();
            for (set, columns) in sets.iter().enumerate() {
                let (_, array) =
                    columns.iter().find(|(one, _)| one == name).ok_or_else(|| wrong("the records do not have it"))?;
                if lengths.len() == set {
                    lengths.push(array.len());
                } else if lengths[set] != array.len() {
                    return Err(wrong("has another number of rows than the columns before it"));
                }
                found.push(*array);
            }
            arrays.push(found);
        }
        let rows = u32::try_from(lengths.iter().sum::<usize>()).ok().filter(|rows| *rows < MISSING);
        let Some(rows) = rows else {
            return Err(LinkageError::Fit("more than 4 billion records".to_owned()));
        };
        let kinds: Vec<(&String, &ColumnKind)> = spec.columns.iter().collect();
        let mut columns: Vec<Option<Column>> = (0..kinds.len()).map(|_| None).collect();
        super::threads::in_order(
            &mut vec![(); super::threads::available()],
            kinds.len(),
            |(), at| Column::new(kinds[at].0, *kinds[at].1, &arrays[at]),
            |at, column| columns[at] = Some(column),
        );
        let left_rows = (sets.len() == 2).then(|| u32::try_from(lengths[0]).unwrap_or(rows));
        Ok(Self { columns: columns.into_iter().flatten().collect(), rows, left_rows })
    }
}

impl Column {
    fn new(name: &str, kind: ColumnKind, arrays: &[&StringArray]) -> Self {
        let mut by_raw: HashMap<&str, u32, Quick> = HashMap::default();
        let mut by_value: HashMap<String, u32, Quick> = HashMap::default();
        let mut column = Self {
            name: name.to_owned(),
            codes: Vec::with_capacity(arrays.iter().map(|array| array.len()).sum()),
            values: Vec::new(),
            counts: Vec::new(),
            days: Vec::new(),
            texts: Texts::default(),
            readings: Texts::default(),
        };
        for array in arrays {
            for raw in *array {
                let code = match raw {
                    None => MISSING,
                    Some(raw) => *by_raw.entry(raw).or_insert_with(|| match normalised(kind, raw) {
                        None => MISSING,
                        Some((value, day)) => *by_value.entry(value).or_insert_with_key(|value| {
                            column.values.push(value.clone());
                            if kind == ColumnKind::BirthDate {
                                column.days.push(day);
                            }
                            column.counts.push(0);
                            u32::try_from(column.values.len() - 1).unwrap_or(MISSING)
                        }),
                    }),
                };
                if code != MISSING {
                    column.counts[code as usize] += 1;
                }
                column.codes.push(code);
            }
        }
        for value in &column.values {
            column.texts.push(value);
        }
        let is_name = matches!(kind, ColumnKind::Forename | ColumnKind::Surname | ColumnKind::FullName);
        if is_name && column.values.iter().any(|value| has_hanzi(value)) {
            for value in &column.values {
                column.readings.push(&name_pinyin(value));
            }
        }
        column
    }

    /// Rows that have a value.
    pub(crate) fn filled(&self) -> f64 {
        self.counts.iter().map(|count| f64::from(*count)).sum()
    }
}

/// The value as it is compared, and the day it means.
///
/// A text with the form of a date that is no day (`19371337`) keeps its text: a typing error away from a day it is still evidence. It has no day.
fn normalised(kind: ColumnKind, raw: &str) -> Option<(String, Option<i32>)> {
    let value = match kind {
        ColumnKind::Forename | ColumnKind::Surname => name_key(raw),
        ColumnKind::FullName => name_key_any_order(raw),
        ColumnKind::Address | ColumnKind::Place | ColumnKind::Region | ColumnKind::Category => address_key(raw),
        ColumnKind::Postcode | ColumnKind::IdNumber | ColumnKind::HouseNumber => postcode_key(raw),
        ColumnKind::Phone => {
            Some(raw.chars().filter(char::is_ascii_digit).collect::<String>()).filter(|key| !key.is_empty())
        }
        ColumnKind::Email => Some(fold(raw.trim())).filter(|key| key.contains('@')),
        ColumnKind::BirthDate => match birth_date(raw, DateOrder::DayFirst) {
            Some(day) => return Some((day.to_string(), Some(day.days_since_1970()))),
            None => written_date(raw),
        },
    };
    Some((value?, None))
}

/// A hash that is quick on short keys (multiply and rotate, as in FxHash); keys here come from no attacker who gains by collisions within one run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct QuickHasher(u64);

pub(crate) type Quick = BuildHasherDefault<QuickHasher>;

impl QuickHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn finish(&self) -> u64 {
        // The high bits are the mixed ones; the table looks at both ends.
        self.0 ^ (self.0 >> 32)
    }
}
