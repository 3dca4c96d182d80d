//! How well clusters and edges agree with a truth that is known: for reports only, nothing is chosen by it.

use std::collections::HashMap;

use super::records::Quick;

/// Precision, recall and their harmonic mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Of what was said, how much is true.
    pub precision: f64,
    /// Of what is true, how much was said.
    pub recall: f64,
}

impl Quality {
    /// The harmonic mean; 0 when both are.
    pub fn f1(self) -> f64 {
        let sum = self.precision + self.recall;
        if sum > 0.0 { 2.0 * self.precision * self.recall / sum } else { 0.0 }
    }
}

/// How clusters compare with the truth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClusterQuality {
    /// Over pairs of records.
    pub pairs: Quality,
    /// Over records (B³; Bagga & Baldwin 1998).
    pub b_cubed: Quality,
    /// Records of the largest cluster.
    pub largest: u64,
    /// Clusters of more than one record that hold records of several people, as a share.
    pub over_merged: f64,
}

/// The pairs of records that one label joins.
pub fn pairs_within(labels: &[u32]) -> u64 {
    let mut sizes: HashMap<u32, u64, Quick> = HashMap::default();
    for label in labels {
        *sizes.entry(*label).or_insert(0) += 1;
    }
    sizes.values().map(|size| size * (size - 1) / 2).sum()
}

/// Compares clusters with the truth, both a label for each record; with `between` only pairs across the two sets count.
pub fn cluster_quality(clusters: &[u32], truth: &[u32]) -> ClusterQuality {
    let (mut sizes, mut people): (HashMap<u32, u64, Quick>, HashMap<u32, u64, Quick>) = Default::default();
    let mut common: HashMap<u64, u64, Quick> = HashMap::default();
    for (cluster, person) in clusters.iter().zip(truth) {
        *sizes.entry(*cluster).or_insert(0) += 1;
        *people.entry(*person).or_insert(0) += 1;
        *common.entry((u64::from(*cluster) << 32) | u64::from(*person)).or_insert(0) += 1;
    }
    let pairs = |count: u64| (count * (count - 1) / 2) as f64;
    let right: f64 = common.values().map(|count| pairs(*count)).sum();
    let said: f64 = sizes.values().map(|count| pairs(*count)).sum();
    let known: f64 = people.values().map(|count| pairs(*count)).sum();
    let (mut precision, mut recall) = (0.0, 0.0);
    let mut parts: HashMap<u32, u64, Quick> = HashMap::default();
    let mut keys: Vec<(u64, u64)> = common.into_iter().collect();
    keys.sort_unstable();
    for (key, count) in keys {
        let (cluster, person) = (u32::try_from(key >> 32).unwrap_or(0), u32::try_from(key & 0xffff_ffff).unwrap_or(0));
        let count = count as f64;
        precision += count * count / sizes[&cluster] as f64;
        recall += count * count / people[&person] as f64;
        *parts.entry(cluster).or_insert(0) += 1;
    }
    let records = clusters.len().max(1) as f64;
    let several = sizes.values().filter(|size| **size > 1).count().max(1) as f64;
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 1.0 };
    ClusterQuality {
        pairs: Quality { precision: share(right, said), recall: share(right, known) },
        b_cubed: Quality { precision: precision / records, recall: recall / records },
        largest: sizes.values().copied().max().unwrap_or(0),
        over_merged: parts.values().filter(|parts| **parts > 1).count() as f64 / several,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_a_small_example() {
        // One person split in two, and a stranger in the second part.
        let found = cluster_quality(&[1, 1, 2, 2], &[7, 7, 7, 8]);
        assert!((found.pairs.precision - 0.5).abs() < 1e-12);
        assert!((found.pairs.recall - 1.0 / 3.0).abs() < 1e-12);
        assert!((found.b_cubed.precision - 0.75).abs() < 1e-12);
        assert!((found.b_cubed.recall - (4.0 / 3.0 + 1.0 / 3.0 + 1.0) / 4.0).abs() < 1e-12);
        assert_eq!(found.largest, 2);
        assert!((found.over_merged - 0.5).abs() < 1e-12);
    }
}
