//! A bucket of an online table: packed rows in slabs, of each key the latest one.
//!
//! A slab is one piece of memory of some dozens of rows, found by the hash of a key. Slabs never change: a publish makes those anew in which keys changed, at a cost of their
//! size, and shares the others with what is being read meanwhile.

use std::sync::Arc;

use super::keys::KeyHash;
use super::packing::{PackedRows, Packing, index, length_of, place_of, u32_at};
use crate::{FeatureStoreError, Result};

/// Rows of a slab when slabs are made anew.
const SLAB_ROWS: usize = 48;
/// Rows of a slab, on average, from which on there are more slabs.
const SLAB_ROWS_MAX: usize = 128;

/// The rows of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    /// Two to the power of `bits`.
    slabs: Vec<Slab>,
    bits: u32,
    rows: usize,
    /// When the last row became known.
    known_last: i64,
}

/// The number of rows, their tags in ascending order, where each begins, and the rows. Numbers are of 32 bits.
#[derive(Debug, Clone)]
pub(super) struct Slab(Arc<[u8]>);

impl Default for Bucket {
    fn default() -> Self {
        Self { slabs: vec![Slab::empty()], bits: 0, rows: 0, known_last: i64::MIN }
    }
}

impl Bucket {
    /// How many keys have a row here, those that are gone included.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// When the last row became known.
    pub(super) fn known_last(&self) -> i64 {
        self.known_last
    }

    /// The bytes of its slabs.
    pub(super) fn bytes(&self) -> usize {
        self.slabs.iter().map(|slab| slab.0.len()).sum()
    }

    /// How many slabs are the same piece of memory in both, and how many there are.
    #[cfg(test)]
    pub(super) fn shared_with(&self, other: &Self) -> (usize, usize) {
        let shared = self.slabs.iter().zip(&other.slabs).filter(|(left, right)| Arc::ptr_eq(&left.0, &right.0));
        (shared.count(), self.slabs.len())
    }

    /// The slab that the row of a key would be in.
    pub(super) fn slab(&self, key: KeyHash) -> &Slab {
        &self.slabs[key.slab(self.bits)]
    }

    /// The bucket with rows that came later: of each key the row that stands last in history, of equal places the one that came last. What did not change is shared.
    ///
    /// # Errors
    /// A slab of 4 GiB.
    pub(super) fn with(&self, packing: &Packing, came: &PackedRows) -> Result<Self> {
        if came.len() == 0 {
            return Ok(self.clone());
        }
        let mut came: Vec<(KeyHash, &[u8])> = came.iter().map(|row| (KeyHash::of(packing.key_of(row)), row)).collect();
        let known_last = came.iter().map(|(_, row)| place_of(row).1).max().unwrap_or(i64::MIN);
        let mut after = Self { known_last: self.known_last.max(known_last), ..self.clone() };
        if self.rows + came.len() > self.slabs.len() * SLAB_ROWS_MAX {
            let slabs = (self.rows + came.len()).div_ceil(SLAB_ROWS).next_power_of_two();
            let held = self.slabs.iter().flat_map(Slab::iter).map(|(_, row)| (KeyHash::of(packing.key_of(row)), row));
            // What is held came before.
            came = held.chain(came).collect();
            after.bits = slabs.trailing_zeros();
            after.slabs = vec![Slab::empty(); slabs];
            after.rows = 0;
        }
        // Stable: rows of one key stay in the order in which they came.
        came.sort_by_key(|(key, _)| key.slab(after.bits));
        for rows in came.chunk_by(|left, right| left.0.slab(after.bits) == right.0.slab(after.bits)) {
            let slab = &mut after.slabs[rows[0].0.slab(after.bits)];
            let before = slab.len();
            let merged = slab.with(packing, rows)?;
            after.rows = after.rows + merged.len() - before;
            *slab = merged;
        }
        Ok(after)
    }
}

impl Slab {
    fn empty() -> Self {
        Self(Arc::from(0_u32.to_le_bytes().as_slice()))
    }

    fn len(&self) -> usize {
        index(u32_at(&self.0, 0))
    }

    fn tag(&self, row: usize) -> u32 {
        u32_at(&self.0, 4 + 4 * row)
    }

    fn row(&self, rows: usize, row: usize) -> &[u8] {
        let begin = index(u32_at(&self.0, 4 + 4 * rows + 4 * row));
        &self.0[begin..begin + length_of(&self.0[begin..])]
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let rows = self.len();
        (0..rows).map(move |row| (self.tag(row), self.row(rows, row)))
    }

    /// The row of a key.
    pub(super) fn find(&self, packing: &Packing, tag: u32, key: &[u8]) -> Option<&[u8]> {
        let rows = self.len();
        let (mut low, mut left) = (0, rows);
        while left > 0 {
            let half = left / 2;
            if self.tag(low + half) < tag {
                low += half + 1;
                left -= half + 1;
            } else {
                left = half;
            }
        }
        let alike = (low..rows).take_while(|row| self.tag(*row) == tag);
        alike.map(|row| self.row(rows, row)).find(|row| packing.key_of(row) == key)
    }

    fn with(&self, packing: &Packing, came: &[(KeyHash, &[u8])]) -> Result<Self> {
        let mut rows: Vec<(u32, &[u8])> = self.iter().chain(came.iter().map(|(key, row)| (key.tag(), *row))).collect();
        rows.sort_by_key(|(tag, _)| *tag);
        let mut kept: Vec<(u32, &[u8])> = Vec::with_capacity(rows.len());
        for (tag, row) in rows {
            let mut alike = kept.iter_mut().rev().take_while(|(other, _)| *other == tag);
            match alike.find(|(_, other)| packing.key_of(other) == packing.key_of(row)) {
                Some(known) if place_of(known.1) <= place_of(row) => known.1 = row,
                Some(_) => {}
                None => kept.push((tag, row)),
            }
        }
        let too_big = |_| FeatureStoreError::Request("a slab of an online view has 4 GiB or more".to_owned());
        let head = 4 + 8 * kept.len();
        let bytes = head + kept.iter().map(|(_, row)| row.len()).sum::<usize>();
        let mut slab = Vec::with_capacity(bytes);
        slab.extend_from_slice(&u32::try_from(kept.len()).map_err(too_big)?.to_le_bytes());
        kept.iter().for_each(|(tag, _)| slab.extend_from_slice(&tag.to_le_bytes()));
        let mut begin = head;
        for (_, row) in &kept {
            slab.extend_from_slice(&u32::try_from(begin).map_err(too_big)?.to_le_bytes());
            begin += row.len();
        }
        kept.iter().for_each(|(_, row)| slab.extend_from_slice(row));
        Ok(Self(Arc::from(slab)))
    }
}
