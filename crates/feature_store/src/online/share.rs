//! Which buckets of each online view a node holds.

use std::fmt;
use std::str::FromStr;

/// A share of the buckets: of every `of` buckets the one at `node`. Several nodes, one of each, hold all of them; a client finds the node of a key by the key's bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineShare {
    node: u32,
    of: u32,
}

impl OnlineShare {
    /// All buckets.
    pub const ALL: Self = Self { node: 1, of: 1 };

    /// The number of the node, from 1.
    pub fn node(self) -> u32 {
        self.node
    }

    /// How many nodes hold all buckets together.
    pub fn of(self) -> u32 {
        self.of
    }

    /// Whether a bucket is among them.
    pub fn holds(self, bucket: u32) -> bool {
        bucket % self.of == self.node - 1
    }
}

impl Default for OnlineShare {
    fn default() -> Self {
        Self::ALL
    }
}

impl FromStr for OnlineShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(node, of)| Some((node.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((node, of)) if (1..=of).contains(&node) && of <= 1_024 => Ok(Self { node, of }),
            _ => Err(format!("`{text}` is no share: write 1/3 for the first of three nodes, of 1,024 at most")),
        }
    }
}

impl fmt::Display for OnlineShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bucket_is_held_by_one_of_the_nodes() {
        let nodes: Vec<OnlineShare> = ["1/3", "2/3", "3/3"].map(|text| text.parse().unwrap()).to_vec();
        for bucket in 0..100 {
            assert_eq!(nodes.iter().filter(|node| node.holds(bucket)).count(), 1);
            assert!(OnlineShare::ALL.holds(bucket));
        }
        assert_eq!(nodes[1].to_string(), "2/3");
        for wrong in ["", "1", "0/3", "4/3", "1/0", "a/b", "1/2000"] {
            assert!(wrong.parse::<OnlineShare>().unwrap_err().contains("is no share"), "{wrong}");
        }
    }
}
