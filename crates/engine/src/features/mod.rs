//! Feature views and services: what stages and the pipeline say of them, their versions in the lake, and the history of views that runs keep.
//!
//! ```text
//! @feature in a stage ──► FeatureView ──► Registry: view versions ──► history.<view>_v<n>, kept by each run
//! on_demand_features.toml ─► OnDemandView: expressions over features of view versions and values of a request
//! feature_services.toml ──► services ───► Registry: service versions (which features of which view versions)
//! ```

mod check;
mod compact;
mod diff;
mod history;
mod on_demand;
mod reference;
mod registry;
mod service;
mod view;

pub use compact::{HistoryMerged, compact_history, is_history};
pub use diff::{Difference as FeatureDifference, Pending, pending};
pub use history::{followed, history_of, known_until};
pub use on_demand::{OnDemandExpressions, OnDemandFeature, OnDemandSpec, OnDemandView, RequestValue};
pub use reference::{FeatureReference, named};
pub use registry::{
    FeatureService, OnDemandVersion, Registered, Registry, ServiceFeature, ServiceVersion, ViewVersion,
};
pub use service::ServiceSpec;
pub use view::{Feature, FeatureView};

pub(crate) use check::{check_project, check_view};
pub(crate) use diff::resolve;
pub(crate) use history::{HISTORY_SCHEMA, Keeper, Kept};
pub(crate) use on_demand::OnDemandFile;
pub(crate) use service::ServiceFile;
pub(crate) use view::{LABEL_TAG, LABELS};
