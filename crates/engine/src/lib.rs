//! Sessions, SQL stages, functions and runs on DataFusion.
//!
//! A stage is one file with one `SELECT` that makes one table. [`Project::load`] reads a folder of them and reports every mistake with file, line and
//! column before anything runs; [`Runner`] brings their tables up to date and publishes the result as one run; [`LakeReader`] follows
//! the published runs.
//!
//! This crate is the only one that builds a `SessionContext`. It must not know sources, identity rules, protocols or models: functions that belong to
//! other crates are handed in through [`SessionSettings`].
//!
//! ```text
//! sql/**/*.sql ──► Project ──► check (names, types, cycles) ──► Runner ──► staged files ──► expectations ──► commit ──► manifest
//!                                                                 ▲ pinned inputs, frozen now()
//! ```

mod append;
mod as_of_join;
mod as_of_merge;
mod build;
mod by_key;
mod cases;
mod contract;
mod contract_change;
mod decide;
mod defaults;
mod diagnostic;
mod directive;
mod earlier_runs;
mod error;
mod executor;
mod expectation;
mod explain;
mod features;
mod first_of_each;
mod format;
mod functions;
mod increment;
mod inspect;
mod lanes;
mod lineage;
mod lint;
mod lock;
mod memory;
mod nothing_new;
mod orphans;
mod output;
mod past;
mod placeholders;
mod plan;
mod planning;
mod project;
mod range;
mod read_only;
mod reader;
mod record;
mod row_functions;
mod rows;
mod run;
mod session;
mod side_by_side;
mod stage;
mod status;
mod toml_file;
mod tried;
mod unique;
mod verify;
pub mod walk;
mod why;
mod write_files;

pub use cases::{CaseFailure, CaseReport, case_names, differing_rows, given_rows, run_cases};
pub use contract::{Contract, ContractColumn, KnownAt, Migration, UNIT_CURRENCY};
pub use decide::Cause;
pub use diagnostic::{Diagnostic, Diagnostics, most_similar};
pub use directive::{Allowed, Directives, Expectation, FeatureDirective, Severity, StageKind};
pub use earlier_runs::EarlierRuns;
pub use error::{EngineError, without_quoted};
pub use executor::{Answer, Executor, ExecutorError, OwnFunction, Place, Work, WrittenBy, built_in_function};
pub use expectation::ExpectationResult;
pub use explain::{codes, explain};
pub use features::{
    Feature, FeatureDifference, FeatureReference, FeatureService, FeatureView, HistoryMerged, OnDemandExpressions,
    OnDemandFeature, OnDemandSpec, OnDemandVersion, OnDemandView, Pending, Registered, Registry, RequestValue,
    ServiceFeature, ServiceSpec, ServiceVersion, ViewVersion, compact_history, followed, history_of, is_history,
    known_until, named, pending,
};
pub use format::format_directives;
pub use functions::customer_bucket_of;
pub use inspect::{InspectedStage, Inspection};
pub use lanes::{is_large, lane_of, large_lane};
pub use lineage::{ColumnName, Lineage, Origins, to_the_source};
pub use lock::{Drift, Lock};
pub use output::{TableRows, write_table};
pub use past::{Past, Question, ReadTable, Sees};
pub use plan::{Action, ColumnChange, PlanReport, StagePlan, Stop};
pub use project::{CheckedStage, DeclaredTable, Draft, Project, Selection};
pub use read_only::RELATIONS_MAX;
pub use reader::{LakeReader, Published, PublishedTable, WhichRun, written_moment};
pub use record::{RecordOptions, Recorded};
pub use row_functions::{RowFunctions, RunFunctions, SubjectVersion};
pub use run::{Refresh, RunOptions, RunReport, Runner, StageOutcome, StageReport, TimeRange};
pub use session::{SessionSettings, plan_as_of, plan_read_only, plan_statement_read_only, session_with};
pub use stage::Stage;
pub use status::{Freshness, LakeStatus, PublishedRun, StageStatus, lake_status};
pub use toml_file::{POLICY_CODE, TomlFile, TomlItem, TomlPlace, USERS_CODE};
pub use tried::Tried;
pub use verify::{Difference, Verified, VerifiedStage, VerifyOptions, VerifyReport};
pub use why::{Why, WhyOptions, WhyStep};
pub use write_files::{NOT_WRITTEN, WriteFilesExec};

/// A result of this crate.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
