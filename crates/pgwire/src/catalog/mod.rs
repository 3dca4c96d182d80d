//! The system tables and functions that tools begin with: which tables there are for this session, their columns, types and comments.
//! They are made of the session's own catalog, so a session that may not see a table does not find it here either.

mod functions;
mod layout;
mod sheet;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::error::{DataFusionError, Result};
use datafusion::prelude::SessionContext;
use holdfast_engine::Published;
use holdfast_types::{COMMENT_KEY, PII_KEY, TableName};

use self::layout::{FILLED, INFORMATION, KNOWN_OIDS, TABLES};
use crate::gate::NotesByTable;
use crate::session::Shared;

/// The schema of system tables and functions.
pub(crate) const SCHEMA: &str = "pg_catalog";
/// Where the views of the information schema are; the planner has its own, with fewer columns, under that name.
pub(crate) const INFORMATION_SCHEMA: &str = "pg_information";
/// The database, which is the session's catalog.
pub(crate) const DATABASE: &str = "holdfast";
/// Who owns what nobody is named for.
const OWNER: &str = "holdfast";

const FIRST_OID: u32 = 16_384;
const OIDS: u32 = 1 << 30;

/// Whether a table without a schema is a system table.
pub(crate) fn is_system_table(name: &str) -> bool {
    TABLES.iter().any(|(table, _)| *table == name)
}

/// Whether the information schema has such a view here.
pub(crate) fn is_information(name: &str) -> bool {
    INFORMATION.iter().any(|(table, _)| *table == name)
}

/// Whether a system table has no rows, ever.
pub(crate) fn is_always_empty(name: &str) -> bool {
    is_system_table(name) && !FILLED.contains(&name)
}

/// Whether a column of a system table has the name of a function.
pub(crate) fn names_function(column: &str) -> bool {
    TABLES.iter().any(|(_, columns)| columns.split(", ").any(|one| one.trim().strip_suffix(" regproc") == Some(column)))
}

/// What there is for one session, looked up once.
#[derive(Debug)]
pub(crate) struct Snapshot {
    user: String,
    roles: Vec<Role>,
    schemas: Vec<Named>,
    tables: Vec<Relation>,
    shared: Arc<Shared>,
    run: String,
}

#[derive(Debug)]
struct Named {
    oid: u32,
    name: String,
}

#[derive(Debug)]
struct Role {
    oid: u32,
    name: String,
    is_user: bool,
}

#[derive(Debug)]
struct Relation {
    oid: u32,
    schema_oid: u32,
    schema: String,
    name: String,
    owner: String,
    comment: Option<String>,
    columns: SchemaRef,
    /// Where they may be told.
    rows: Option<u64>,
    bytes: Option<u64>,
}

impl Relation {
    /// The comment of a column, and whether it is personal data.
    fn column_comment(&self, index: usize) -> Option<String> {
        let metadata = self.columns.field(index).metadata();
        let comment = metadata.get(COMMENT_KEY).map(String::as_str).unwrap_or_default();
        let tag = if metadata.contains_key(PII_KEY) { "[personal data]" } else { "" };
        let text = [comment, tag].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
        (!text.is_empty()).then_some(text)
    }
}

/// Gives a session its system tables and functions.
///
/// # Errors
/// When the session's catalog does not take them.
pub(crate) async fn install(
    context: &SessionContext,
    run: &Published,
    shared: &Arc<Shared>,
    notes: &NotesByTable,
    tells_sizes: bool,
) -> Result<()> {
    let snapshot = Arc::new(Snapshot::of(context, run, shared, notes, tells_sizes).await?);
    let catalog = context
        .catalog(DATABASE)
        .ok_or_else(|| DataFusionError::Plan(format!("the session has no catalog {DATABASE}")))?;
    catalog.register_schema(SCHEMA, Arc::new(System { snapshot: Arc::clone(&snapshot), is_information: false }))?;
    catalog.register_schema(
        INFORMATION_SCHEMA,
        Arc::new(System { snapshot: Arc::clone(&snapshot), is_information: true }),
    )?;
    functions::register(context, &snapshot);
    Ok(())
}

impl Snapshot {
    async fn of(
        context: &SessionContext,
        run: &Published,
        shared: &Arc<Shared>,
        notes: &NotesByTable,
        tells_sizes: bool,
    ) -> Result<Self> {
        let mut oids = Oids::default();
        let mut schemas = vec![
            Named { oid: 11, name: SCHEMA.to_owned() },
            Named { oid: 13_000, name: "information_schema".to_owned() },
        ];
        let mut tables = Vec::new();
        let catalog = context.catalog(DATABASE);
        let mut names = catalog.as_ref().map(|catalog| catalog.schema_names()).unwrap_or_default();
        names.retain(|name| !matches!(name.as_str(), "information_schema" | SCHEMA | INFORMATION_SCHEMA));
        names.sort();
        for name in names {
            let Some(schema) = catalog.as_ref().and_then(|catalog| catalog.schema(&name)) else { continue };
            let schema_oid = oids.of("schema", &name);
            let mut table_names = schema.table_names();
            table_names.sort();
            for table in table_names {
                let Some(provider) = schema.table(&table).await? else { continue };
                let known = TableName::new(&name, &table).ok();
                let published = known.as_ref().and_then(|known| run.table(known));
                let note = known.as_ref().and_then(|known| notes.get(known));
                let comment = published.and_then(|published| published.comment.clone());
                let tags = note.filter(|note| !note.tags.is_empty()).map(|note| format!("[{}]", note.tags.join(", ")));
                let text: Vec<String> = comment.into_iter().chain(tags).collect();
                let sized = published.filter(|_| tells_sizes);
                tables.push(Relation {
                    oid: oids.of(&name, &table),
                    schema_oid,
                    schema: name.clone(),
                    owner: note.and_then(|note| note.owner.clone()).unwrap_or_else(|| OWNER.to_owned()),
                    comment: (!text.is_empty()).then(|| text.join(" ")),
                    columns: provider.schema(),
                    rows: sized.and_then(|published| published.rows),
                    bytes: sized.map(|published| published.bytes),
                    name: table,
                });
            }
            schemas.push(Named { oid: schema_oid, name });
        }
        let user = shared.user().to_owned();
        let owners: BTreeSet<&str> = tables.iter().map(|table: &Relation| table.owner.as_str()).collect();
        let mut roles = vec![Role { oid: 10, name: OWNER.to_owned(), is_user: user == OWNER }];
        for owner in owners.into_iter().chain([user.as_str()]) {
            if roles.iter().all(|role| role.name != owner) {
                roles.push(Role { oid: oids.of("role", owner), name: owner.to_owned(), is_user: user == owner });
            }
        }
        let run = format!("run {} ({}), as of {}", run.sequence(), run.run_id(), run.as_of().to_rfc3339());
        Ok(Self { user, roles, schemas, tables, shared: Arc::clone(shared), run })
    }

    fn table(&self, oid: u32) -> Option<&Relation> {
        self.tables.iter().find(|table| table.oid == oid)
    }

    fn role(&self, name: &str) -> u32 {
        self.roles.iter().find(|role| role.name == name).map_or(10, |role| role.oid)
    }

    /// The number of a table by its name, with or without its schema; system tables have one, too.
    fn table_named(&self, name: &str) -> Option<u32> {
        let parts = identifier_parts(name);
        let (schema, table) = match parts.as_slice() {
            [table] => (None, table.as_str()),
            [schema, table] => (Some(schema.as_str()), table.as_str()),
            [database, schema, table] if database == DATABASE => (Some(schema.as_str()), table.as_str()),
            _ => return None,
        };
        let search = self.shared.search_path();
        let of = |schema: &str| {
            self.tables.iter().find(|found| found.schema == schema && found.name == table).map(|found| found.oid)
        };
        let found = match schema {
            Some(schema) => of(schema),
            None => search.iter().find_map(|schema| of(schema)),
        };
        let system = || KNOWN_OIDS.iter().find(|(known, _)| *known == table).map(|(_, oid)| *oid);
        found.or_else(|| if schema.is_none_or(|schema| schema == SCHEMA) { system() } else { None })
    }
}

/// The parts of a name with dots, folded as SQL folds them.
fn identifier_parts(name: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut is_quoted = false;
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => {
                chars.next();
                part.push('"');
            }
            '"' => is_quoted = !is_quoted,
            '.' if !is_quoted => parts.push(std::mem::take(&mut part)),
            c if is_quoted => part.push(c),
            c => part.extend(c.to_lowercase()),
        }
    }
    parts.push(part);
    parts
}

/// Numbers for things by name: the same in every session, whatever else there is, but for the rare name that meets another's number.
#[derive(Debug, Default)]
struct Oids(BTreeSet<u32>);

impl Oids {
    fn of(&mut self, kind: &str, name: &str) -> u32 {
        // FNV-1a, 32 bit.
        let hash = kind
            .bytes()
            .chain([0])
            .chain(name.bytes())
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let mut oid = FIRST_OID + hash % OIDS;
        while !self.0.insert(oid) {
            oid += 1;
        }
        oid
    }
}

/// A schema whose tables are made when they are asked for.
#[derive(Debug)]
struct System {
    snapshot: Arc<Snapshot>,
    is_information: bool,
}

impl System {
    fn layouts(&self) -> &'static [(&'static str, &'static str)] {
        if self.is_information { INFORMATION } else { TABLES }
    }
}

#[async_trait]
impl SchemaProvider for System {
    fn table_names(&self) -> Vec<String> {
        self.layouts().iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((name, columns)) = self.layouts().iter().find(|(table, _)| *table == name) else { return Ok(None) };
        let schema = sheet::schema_of(columns);
        let rows = match self.is_information {
            true => tables::information(&self.snapshot, name),
            false => tables::system(&self.snapshot, name),
        };
        let batch = rows.batch(&schema)?;
        Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.layouts().iter().any(|(table, _)| *table == name)
    }
}

/// Of each kind of privilege, whether everybody has it: to read, and nothing else.
fn is_granted(privilege: &str) -> bool {
    privilege
        .split(',')
        .all(|one| matches!(one.trim().to_lowercase().as_str(), "select" | "usage" | "connect" | "execute"))
}

/// Settings by name, for `pg_settings`.
fn settings_of(shared: &Shared) -> BTreeMap<String, String> {
    shared.all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_unless_they_are_quoted() {
        assert_eq!(identifier_parts("Core.\"My \"\"T.x\""), ["core", "My \"T.x"]);
    }

    #[test]
    fn numbers_stay_the_same_whatever_else_there_is() {
        let alone = Oids::default().of("core", "orders");
        let mut oids = Oids::default();
        oids.of("core", "customers");
        assert_eq!(oids.of("core", "orders"), alone);
        assert_ne!(oids.of("core", "orders"), alone);
    }

    #[test]
    fn reading_is_granted_and_nothing_else() {
        assert!(is_granted("SELECT") && is_granted("usage"));
        assert!(!is_granted("select, insert") && !is_granted("CREATE"));
    }
}
