use std::sync::Arc;

use holdfast_lake::{Lake, ObjectLocation};
use object_store::ObjectStore;

use crate::spec::{Compression, FileFormat, SourceSpec};

/// The forms of objects in an inbox, each by its suffix, whatever form the source's contract says its files have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InboxForm {
    Ndjson,
    PackedNdjson,
    Parquet,
}

impl InboxForm {
    pub(crate) const NDJSON: &'static str = ".ndjson";
    pub(crate) const PACKED_NDJSON: &'static str = ".ndjson.zst";
    pub(crate) const PARQUET: &'static str = ".parquet";

    /// `None` for what is no object of ours.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path {
            path if path.ends_with(Self::NDJSON) => Some(Self::Ndjson),
            path if path.ends_with(Self::PACKED_NDJSON) => Some(Self::PackedNdjson),
            path if path.ends_with(Self::PARQUET) => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// Where the files of a source are, and what each looks like: those in the folder that is ingested as the contract says,
/// those in the source's inbox as their names say.
#[derive(Debug)]
pub(crate) struct Places {
    /// Absent for who reads the inbox alone.
    from: Option<ObjectLocation>,
    inbox: ObjectLocation,
    /// The inbox's folder relative to `inbox`, with a slash at its end: what paths in the books begin with.
    inbox_folder: String,
    contract: Arc<SourceSpec>,
    ndjson: Arc<SourceSpec>,
    packed_ndjson: Arc<SourceSpec>,
    parquet: Arc<SourceSpec>,
}

impl Places {
    pub(crate) fn new(lake: &Lake, pipeline: &str, spec: Arc<SourceSpec>, from: Option<ObjectLocation>) -> Self {
        let in_inbox = |format, compression| {
            Arc::new(SourceSpec {
                absent_is_null: format == FileFormat::Parquet,
                format,
                compression: Some(compression),
                encoding: None,
                quoted_newlines: false,
                // Many senders share an object: what one of them gets wrong must not keep the others' records out.
                max_quarantine_share: 1.0,
                ..spec.as_ref().clone()
            })
        };
        Self {
            from,
            inbox: lake.system_folder(),
            inbox_folder: inbox_folder(pipeline, &spec.name),
            ndjson: in_inbox(FileFormat::Ndjson, Compression::None),
            packed_ndjson: in_inbox(FileFormat::Ndjson, Compression::Zstd),
            parquet: in_inbox(FileFormat::Parquet, Compression::None),
            contract: spec,
        }
    }

    /// The contract, for what does not depend on a file.
    pub(crate) fn contract(&self) -> &Arc<SourceSpec> {
        &self.contract
    }

    /// Whether a path in the books is that of an object in the inbox. Such an object never changes: its name is its content's.
    pub(crate) fn in_inbox(&self, path: &str) -> bool {
        path.starts_with(&self.inbox_folder)
    }

    /// The contract as it applies to a file.
    pub(crate) fn spec_of(&self, path: &str) -> &Arc<SourceSpec> {
        match InboxForm::of(path) {
            Some(form) if self.in_inbox(path) => match form {
                InboxForm::Ndjson => &self.ndjson,
                InboxForm::PackedNdjson => &self.packed_ndjson,
                InboxForm::Parquet => &self.parquet,
            },
            _ => &self.contract,
        }
    }

    /// What a path in the books is relative to. `None` for a file of a folder that is not looked at here.
    pub(crate) fn location_of(&self, path: &str) -> Option<&ObjectLocation> {
        if self.in_inbox(path) { Some(&self.inbox) } else { self.from.as_ref() }
    }

    /// The store that a file which was found is in.
    pub(crate) fn store_of(&self, path: &str) -> &Arc<dyn ObjectStore> {
        &self.location_of(path).unwrap_or(&self.inbox).store
    }
}

/// The folder of a source's inbox relative to the lake's own folder, with a slash at its end.
pub(crate) fn inbox_folder(pipeline: &str, source: &str) -> String {
    format!("inbox/{pipeline}/{source}/")
}
