//! What tests of several modules need.

use std::path::PathBuf;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// A file of a public data set, or `None`, said aloud, where the set is not on this machine: `HOLDFAST_DATA` names the folder of data sets.
pub(crate) fn data(set: &str, file: &str) -> Option<PathBuf> {
    let beside_workspace = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    let folder = std::env::var_os("HOLDFAST_DATA").map_or_else(beside_workspace, PathBuf::from);
    let path = folder.join(set).join(file);
    if !path.is_file() {
        say(&format!("skipped: {set} ({} is not there; HOLDFAST_DATA names the folder of data sets)", path.display()));
        return None;
    }
    Some(path)
}

/// What a test found, for who runs it with `--nocapture`, and what it did not look at.
#[expect(clippy::print_stderr, reason = "a test that checks nothing must say so")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Random numbers of the usual distributions.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Above 0 and below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.0.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub(crate) fn exponential(&mut self, rate: f64) -> f64 {
        -self.unit().ln() / rate
    }

    /// Marsaglia and Tsang (2000).
    pub(crate) fn gamma(&mut self, shape: f64, rate: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0, rate) * self.unit().powf(1.0 / shape);
        }
        let d = shape - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v / rate;
            }
        }
    }

    pub(crate) fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.gamma(a, 1.0), self.gamma(b, 1.0));
        x / (x + y)
    }
}
