//! The object stores of executors: opened where a plan names one, with the settings of the executor's own environment. No credentials travel.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::object_store::ObjectStoreRegistry;
use holdfast_lake::{StoreOptions, open_store};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use url::{Position, Url};

pub(crate) struct Stores {
    options: StoreOptions,
    open: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl Stores {
    pub(crate) fn new(options: StoreOptions) -> Self {
        Self { options, open: Mutex::default() }
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").field("options", &self.options).finish_non_exhaustive()
    }
}

impl ObjectStoreRegistry for Stores {
    fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(root_of(url), store)
    }

    fn get_store(&self, url: &Url) -> Result<Arc<dyn ObjectStore>> {
        let root = root_of(url);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = open.get(&root) {
            return Ok(Arc::clone(store));
        }
        if url.scheme() == "memory" {
            return Err(DataFusionError::Execution("a lake in memory is in the driver's alone".to_owned()));
        }
        let opened = open_store(&root, Path::new("/"), &self.options)
            .map_err(|error| DataFusionError::Execution(format!("this executor cannot open {root}: {error}")))?;
        open.insert(root, Arc::clone(&opened.store));
        Ok(opened.store)
    }
}

/// The stores of the scheduler. To read a plan it must have some; of files it reads none, and so it needs neither settings nor credentials.
#[derive(Debug)]
pub(crate) struct Unread;

impl ObjectStoreRegistry for Unread {
    fn register_store(&self, _url: &Url, _store: Arc<dyn ObjectStore>) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    fn get_store(&self, _url: &Url) -> Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(InMemory::new()))
    }
}

/// The part of a URL that names a store.
fn root_of(url: &Url) -> String {
    match url.scheme() {
        "file" => "file:///".to_owned(),
        _ => format!("{}/", &url[..Position::BeforePath]),
    }
}
