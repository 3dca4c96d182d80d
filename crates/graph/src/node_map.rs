//! Maps by node numbers. The graph gives these numbers itself, so nobody can choose them to collide, and a short hash does.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::dictionary::mix;

pub(crate) type NodeMap<Key, Value> = HashMap<Key, Value, BuildHasherDefault<NodeHasher>>;
pub(crate) type NodeSet<Key> = HashSet<Key, BuildHasherDefault<NodeHasher>>;

/// Which nodes are in a set, a bit each: small enough to stay near the processor, where a table that is asked of every node does not.
#[derive(Debug, Default, Clone)]
pub(crate) struct NodeBits(Vec<u64>);

impl NodeBits {
    pub(crate) fn contains(&self, node: u32) -> bool {
        self.0.get(node as usize / 64).is_some_and(|word| word >> (node % 64) & 1 == 1)
    }

    pub(crate) fn insert(&mut self, node: u32) {
        let word = node as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (node % 64);
    }

    pub(crate) fn remove(&mut self, node: u32) {
        if let Some(word) = self.0.get_mut(node as usize / 64) {
            *word &= !(1 << (node % 64));
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.capacity() * size_of::<u64>()
    }
}

/// Mixes each number into 64 bits.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NodeHasher(u64);

impl Hasher for NodeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0, number);
    }
}
