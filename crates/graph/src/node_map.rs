//! Maps by node numbers. The graph gives these numbers itself, so nobody can choose them to collide, and a short hash does.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::dictionary::mix;

pub(crate) type NodeMap<Key, Value> = HashMap<Key, Value, BuildHasherDefault<NodeHasher>>;
pub(crate) type NodeSet<Key> = HashSet<Key, BuildHasherDefault<NodeHasher>>;

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
