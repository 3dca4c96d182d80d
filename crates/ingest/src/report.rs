use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::quality::Alert;
use crate::refused::RefusedFile;

/// What a call of [`ingest_source`] did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SourceReport {
    /// The source.
    pub source: String,
    /// Files that match the source's glob.
    pub files_found: u64,
    /// Files that were in `raw` already.
    pub files_known: u64,
    /// Files whose content came under another path before; nothing of them was stored.
    pub files_copied: u64,
    /// Files that were read into `raw`.
    pub files_stored: u64,
    /// Batches that this call recorded, those of an earlier run that had died included.
    pub batches: u64,
    /// Batches that an earlier run had left open and this one finished.
    pub batches_recovered: u64,
    /// Bytes of the files that were read.
    pub bytes: u64,
    /// Records read: stored plus quarantined.
    pub rows_read: u64,
    /// Records stored in `raw`.
    pub rows_stored: u64,
    /// Records put into quarantine.
    pub rows_quarantined: u64,
    /// Stored records that are older than what earlier batches had reached.
    pub rows_late: u64,
    /// Stored records whose key stands earlier in the same file.
    pub duplicates_in_file: u64,
    /// Stored records whose key came in another file.
    pub duplicates_across_files: u64,
    /// The earliest event time of what was stored.
    pub event_time_min: Option<DateTime<Utc>>,
    /// The latest event time of what was stored.
    pub event_time_max: Option<DateTime<Utc>>,
    /// Files that this call refused as a whole; the last ones of `refused`.
    pub files_refused: u64,
    /// Files that were refused as a whole, by this call or earlier, and are still as they were. Nothing of them is stored.
    pub refused: Vec<RefusedFile>,
    /// What is not as it should be, or not as usual, by the newest batches; see `metric.ingest_alerts`.
    pub alerts: Vec<Alert>,
    /// Of these and those before them, alerts that this call opened, closed or gave another severity.
    pub alerts_changed: u64,
    /// What somebody should look at: fields outside the contract, copies, abandoned batches.
    pub warnings: Vec<String>,
}

impl SourceReport {
    /// Adds what a later call for the same source did.
    pub fn merge(&mut self, later: Self) {
        self.files_found += later.files_found;
        self.files_known += later.files_known;
        self.files_copied += later.files_copied;
        self.files_stored += later.files_stored;
        self.batches += later.batches;
        self.batches_recovered += later.batches_recovered;
        self.bytes += later.bytes;
        self.rows_read += later.rows_read;
        self.rows_stored += later.rows_stored;
        self.rows_quarantined += later.rows_quarantined;
        self.event_time_min = [self.event_time_min, later.event_time_min].into_iter().flatten().min();
        self.event_time_max = self.event_time_max.max(later.event_time_max);
        self.rows_late += later.rows_late;
        self.duplicates_in_file += later.duplicates_in_file;
        self.duplicates_across_files += later.duplicates_across_files;
        self.files_refused += later.files_refused;
        self.alerts_changed += later.alerts_changed;
        // What waits, and what is open, is told by every call.
        self.refused = later.refused;
        self.alerts = later.alerts;
        for warning in later.warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}
