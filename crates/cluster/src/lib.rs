//! Runs stages on a Ballista cluster.
