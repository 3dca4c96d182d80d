//! From 128-bit tokens to dense node ids and back, at about 24 bytes a node.

use crate::Result;
use crate::error::GraphError;

/// Tokens are kept in pieces, so that growing copies none and leaves no half-empty list.
const PIECE: usize = 1 << 16;

/// Tokens, numbered from 0 in the order they came. 16 bytes a token and 5 to 7.5 for finding it.
#[derive(Debug, Default, Clone)]
pub struct Dictionary {
    pieces: Vec<Vec<u128>>,
    size: usize,
    index: SlotIndex,
}

impl Dictionary {
    /// How many tokens it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.size
    }

    /// It holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// The token of an id, `None` for an id that was not given.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<u128> {
        token_of(&self.pieces, id)
    }

    /// The id of a token, `None` when it has none.
    #[must_use]
    pub fn get(&self, token: u128) -> Option<u32> {
        self.index.find(hash_of(token), |id| token_of(&self.pieces, id) == Some(token))
    }

    /// The id of a token, a new one if it has none.
    ///
    /// # Errors
    /// [`GraphError::Full`] after 4,294,967,294 tokens.
    pub fn get_or_add(&mut self, token: u128) -> Result<u32> {
        if let Some(id) = self.get(token) {
            return Ok(id);
        }
        let id =
            u32::try_from(self.size).ok().filter(|&id| id < SlotIndex::GONE).ok_or(GraphError::Full("identifiers"))?;
        if self.size.is_multiple_of(PIECE) {
            // The first piece grows as it is needed: many graphs are small.
            self.pieces.push(Vec::with_capacity(if self.size == 0 { 0 } else { PIECE }));
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.push(token);
        }
        self.size += 1;
        let pieces = &self.pieces;
        self.index.insert(hash_of(token), id, |id| hash_of(token_of(pieces, id).unwrap_or_default()));
        Ok(id)
    }

    /// Bytes on the heap.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.capacity() * size_of::<u128>()).sum::<usize>() + self.index.memory_bytes()
    }
}

fn token_of(pieces: &[Vec<u128>], id: u32) -> Option<u128> {
    pieces.get(id as usize / PIECE)?.get(id as usize % PIECE).copied()
}

/// Spreads a token over 64 bits: the folded product of its halves (as wyhash does it).
fn hash_of(token: u128) -> u64 {
    let bytes = token.to_le_bytes();
    let half = |at: usize| bytes[at..at + 8].iter().rev().fold(0_u64, |all, &byte| (all << 8) | u64::from(byte));
    mix(half(0), half(8))
}

/// A hash of two words.
pub(crate) fn mix(one: u64, two: u64) -> u64 {
    fold(fold(one ^ 0x9e37_79b9_7f4a_7c15, two ^ 0xe703_7ed1_a0b4_28db), 0xa076_1d64_78bd_642f)
}

fn fold(one: u64, two: u64) -> u64 {
    let product = u128::from(one) * u128::from(two);
    let low = u64::try_from(product & u128::from(u64::MAX)).unwrap_or_default();
    let high = u64::try_from(product >> 64).unwrap_or_default();
    low ^ high
}

/// Finds numbers by a hash of what they stand for; what that is, the caller knows. Linear probing, at most four fifths full.
#[derive(Debug, Default, Clone)]
pub(crate) struct SlotIndex {
    slots: Vec<u32>,
    /// Slots that are not empty, those of removed numbers among them.
    taken: usize,
    live: usize,
}

impl SlotIndex {
    const EMPTY: u32 = u32::MAX;
    /// A number was removed here: a search goes on. Neither value is ever a number.
    pub(crate) const GONE: u32 = u32::MAX - 1;

    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        self.position(hash, is_it).map(|slot| self.slots[slot])
    }

    /// Adds a number that is not there yet; `hash_of` gives the hashes of others when the table has to grow.
    pub(crate) fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        if (self.taken + 1) * 5 > self.slots.len() * 4 {
            self.grow(self.live + 1, hash_of);
        }
        self.place(hash, number);
        self.live += 1;
    }

    pub(crate) fn remove(&mut self, hash: u64, number: u32) {
        if let Some(slot) = self.position(hash, |other| other == number) {
            self.slots[slot] = Self::GONE;
            self.live -= 1;
        }
    }

    /// Makes room for `numbers` in all, so that a known amount does not grow step by step.
    pub(crate) fn reserve(&mut self, numbers: usize, hash_of: impl Fn(u32) -> u64) {
        if numbers * 5 > self.slots.len() * 4 {
            self.grow(numbers, hash_of);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u32>()
    }

    fn grow(&mut self, numbers: usize, hash_of: impl Fn(u32) -> u64) {
        // Times 1.5 when grown at four fifths.
        let size = numbers * 15 / 8 + 16;
        let old = std::mem::replace(&mut self.slots, vec![Self::EMPTY; size]);
        self.taken = 0;
        for number in old.into_iter().filter(|&number| number < Self::GONE) {
            self.place(hash_of(number), number);
        }
    }

    fn place(&mut self, hash: u64, number: u32) {
        let mut slot = self.home(hash);
        while self.slots[slot] != Self::EMPTY {
            slot = self.after(slot);
        }
        self.slots[slot] = number;
        self.taken += 1;
    }

    fn position(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.home(hash);
        loop {
            match self.slots[slot] {
                Self::EMPTY => return None,
                number if number != Self::GONE && is_it(number) => return Some(slot),
                _ => slot = self.after(slot),
            }
        }
    }

    /// The hash scaled to the number of slots, which need not be a power of two.
    fn home(&self, hash: u64) -> usize {
        usize::try_from((u128::from(hash) * self.slots.len() as u128) >> 64).unwrap_or_default()
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_one_id_and_the_id_its_token() {
        let mut dictionary = Dictionary::default();
        let token = |n: u32| u128::from(n) << 64 | u128::from(n % 7);
        for n in 0..200_000 {
            assert_eq!(dictionary.get(token(n)), None);
            assert_eq!(dictionary.get_or_add(token(n)).unwrap(), n);
        }
        for n in 0..200_000 {
            assert_eq!(dictionary.get_or_add(token(n)).unwrap(), n);
            assert_eq!(dictionary.token(n), Some(token(n)));
        }
        assert_eq!(dictionary.len(), 200_000);
        assert_eq!(dictionary.token(200_000), None);
        assert!(dictionary.memory_bytes() <= 24 * 200_000 + 2_000_000, "{}", dictionary.memory_bytes());
    }

    #[test]
    fn numbers_that_were_removed_are_not_found_and_others_are() {
        let mut index = SlotIndex::default();
        // Few different hashes: long runs.
        let hash = |number: u32| u64::from(number % 5) << 61;
        for round in 0..50 {
            for number in 0..100 {
                index.insert(hash(number), number, hash);
            }
            for number in (0..100).filter(|number| number % 3 == round % 3) {
                index.remove(hash(number), number);
            }
            for number in 0..100 {
                let found = index.find(hash(number), |other| other == number);
                assert_eq!(found.is_some(), number % 3 != round % 3, "round {round}, number {number}");
            }
            for number in (0..100).filter(|number| number % 3 != round % 3) {
                index.remove(hash(number), number);
            }
        }
        assert!(index.memory_bytes() < 2_000, "{} bytes for 100 numbers", index.memory_bytes());
    }
}
