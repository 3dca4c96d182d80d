//! Which keys occur more than once, and which of their rows is the first.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

/// The hash of a key is its own.
#[derive(Debug, Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {}

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type ByHash = BuildHasherDefault<AsItIs>;

/// What the table of hashes takes a repeated one, and the table of keys a key beside its bytes.
const BYTES_A_HASH: usize = 20;
const BYTES_A_KEY: usize = 96;

/// The hashes that more than one row has. Two keys may share one: then their rows are looked at closer for nothing.
#[derive(Debug, Default)]
pub(super) struct Repeated(HashSet<u64, ByHash>);

impl Repeated {
    pub(super) fn among(mut hashes: Vec<u64>) -> Self {
        hashes.sort_unstable();
        let mut repeated = HashSet::default();
        let mut last = None;
        for pair in hashes.windows(2) {
            if pair[0] == pair[1] && last != Some(pair[0]) {
                repeated.insert(pair[0]);
                last = Some(pair[0]);
            }
        }
        Self(repeated)
    }

    pub(super) fn contains(&self, hash: u64) -> bool {
        self.0.contains(&hash)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * BYTES_A_HASH
    }
}

/// The first row of each repeated key by its order, both as bytes that compare as the values do.
#[derive(Debug, Default)]
pub(super) struct Winners {
    /// The newest key of a hash; the others hang on it.
    newest: HashMap<u64, usize, ByHash>,
    keys: Vec<Winner>,
    bytes: usize,
}

#[derive(Debug)]
struct Winner {
    key: Box<[u8]>,
    order: Box<[u8]>,
    /// The key of the same hash that came before.
    next: Option<usize>,
    /// Whether its row was passed on: of rows that nothing puts before one another only one is the first.
    is_taken: AtomicBool,
}

impl Winners {
    /// Takes a row for the first of its key unless one before it is known.
    pub(super) fn offer(&mut self, hash: u64, key: &[u8], order: &[u8]) {
        let next = match self.find(hash, key) {
            Ok(place) => {
                let winner = &mut self.keys[place];
                if order < winner.order.as_ref() {
                    self.bytes = self.bytes + order.len() - winner.order.len();
                    winner.order = order.into();
                }
                return;
            }
            Err(newest) => newest,
        };
        self.bytes += key.len() + order.len() + BYTES_A_KEY;
        self.newest.insert(hash, self.keys.len());
        self.keys.push(Winner { key: key.into(), order: order.into(), next, is_taken: AtomicBool::new(false) });
    }

    /// Whether this is the first row of its key. Of equal rows the one that is asked about first.
    pub(super) fn takes(&self, hash: u64, key: &[u8], order: &[u8]) -> bool {
        let Ok(place) = self.find(hash, key) else { return false };
        let winner = &self.keys[place];
        winner.order.as_ref() == order && !winner.is_taken.swap(true, Ordering::Relaxed)
    }

    /// Where a key is, or else the newest of its hash.
    fn find(&self, hash: u64, key: &[u8]) -> Result<usize, Option<usize>> {
        let newest = self.newest.get(&hash).copied();
        let mut place = newest;
        while let Some(index) = place {
            if self.keys[index].key.as_ref() == key {
                return Ok(index);
            }
            place = self.keys[index].next;
        }
        Err(newest)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_that_occur_once_are_not_repeated() {
        let repeated = Repeated::among(vec![5, 1, 7, 5, 5, 1, 9]);
        assert_eq!([1, 5, 7, 9].map(|hash| repeated.contains(hash)), [true, true, false, false]);
        assert!(Repeated::among(vec![3, 2, 1]).is_empty());
        assert!(Repeated::among(Vec::new()).is_empty());
    }

    #[test]
    fn keys_of_one_hash_have_each_their_first_row_and_only_one_of_it() {
        let mut winners = Winners::default();
        for (key, order) in [(b"a", b"3"), (b"b", b"2"), (b"a", b"1"), (b"a", b"2"), (b"b", b"4")] {
            winners.offer(7, key, order);
        }
        assert!(!winners.takes(7, b"a", b"3"));
        assert!(winners.takes(7, b"b", b"2"));
        assert!(winners.takes(7, b"a", b"1"));
        assert!(!winners.takes(7, b"a", b"1"), "it was taken");
        assert!(!winners.takes(7, b"c", b"1"));
        assert!(!winners.takes(8, b"a", b"1"));
    }
}
