use super::connection::{Connection, Row};
use super::error::PostgresError;
use super::position::Lsn;
use super::settings::{QualifiedName, Settings};
use super::value::{TypeRow, Types};
use super::wire::{quote_identifier, quote_literal};

/// The oldest server whose catalog has all that is asked for here.
const VERSION_MIN: u32 = 130_000;
/// From here on publications have lists of columns and conditions on rows.
const VERSION_WITH_COLUMN_LISTS: u32 = 150_000;

/// A server that is fit for logical replication.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Differs between servers that were not copied from each other.
    pub(crate) system: String,
    pub(crate) version: u32,
    /// How far its log was written when it was asked.
    pub(crate) end: Lsn,
}

/// A table as the publication gives it.
#[derive(Debug, Clone)]
pub(crate) struct PublishedTable {
    pub(crate) name: QualifiedName,
    /// Name and type, in the table's order.
    pub(crate) columns: Vec<(String, u32)>,
    /// The publication's condition on rows, SQL.
    pub(crate) condition: Option<String>,
    pub(crate) partitioned: bool,
}

impl PublishedTable {
    /// The rows that the publication gives, as `COPY` writes them.
    pub(crate) fn copy(&self) -> String {
        let columns: Vec<String> = self.columns.iter().map(|(name, _)| quote_identifier(name)).collect();
        // Tables that inherit are tables of their own in a publication, partitions are not.
        let only = if self.partitioned { "" } else { "only " };
        let condition = self.condition.as_ref().map(|condition| format!(" where {condition}")).unwrap_or_default();
        format!("copy (select {} from {only}{}{condition}) to stdout", columns.join(", "), self.name.quoted())
    }
}

/// A replication slot as the server shows it.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// The process that reads it now.
    pub(crate) reader: Option<String>,
    /// What its reader has confirmed: earlier changes are gone.
    pub(crate) confirmed: Option<Lsn>,
    /// Whether the server has thrown away log that it needs.
    pub(crate) lost: bool,
    plugin: String,
    database: String,
}

/// What a publication that is not there means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is to be created.
    IsNew,
    /// Somebody has dropped it, and with it what was changed since.
    IsGone,
}

/// Looks at the server's catalog, and creates a publication there.
#[derive(Debug)]
pub(crate) struct Catalog<'a> {
    pub(crate) connection: &'a mut Connection,
    pub(crate) settings: &'a Settings,
}

impl Catalog<'_> {
    /// What server it is.
    ///
    /// # Errors
    /// [`PostgresError::Setup`] when it is not set up for logical replication.
    pub(crate) async fn identity(&mut self) -> Result<Identity, PostgresError> {
        let rows = self.connection.query("looking at the server", "IDENTIFY_SYSTEM").await?;
        let [row] = &rows[..] else { return Err(self.unexpected("IDENTIFY_SYSTEM")) };
        let (system, end) = (text(row, 0), text(row, 2).parse::<Lsn>().ok());
        let Some(end) = end.filter(|_| !system.is_empty()) else { return Err(self.unexpected("IDENTIFY_SYSTEM")) };
        let look = "select current_setting('server_version_num'), current_setting('wal_level'), \
                    pg_is_in_recovery()::text";
        let rows = self.connection.query("looking at the server", look).await?;
        let [row] = &rows[..] else { return Err(self.unexpected("the server's settings")) };
        let version: u32 = text(row, 0).parse().unwrap_or(0);
        if version < VERSION_MIN {
            return Err(PostgresError::Denied {
                server: self.server(),
                reason: format!("version {} is too old: 13 or newer is needed", version / 10_000),
            });
        }
        if text(row, 2) == "true" {
            return Err(PostgresError::Denied {
                server: self.server(),
                reason: "it is a standby: name the primary server".to_owned(),
            });
        }
        if text(row, 1) != "logical" {
            return Err(self.setup(
                format!("its wal_level is {}, and logical is needed", text(row, 1)),
                "alter system set wal_level = logical (and restart the server)".to_owned(),
            ));
        }
        Ok(Identity { system, version, end })
    }

    /// The contract's tables as the publication gives them.
    ///
    /// # Errors
    /// [`PostgresError::Setup`] with what to run when something is missing that we may not, or should not, set up.
    pub(crate) async fn published_tables(
        &mut self,
        version: u32,
        missing: Missing,
    ) -> Result<Vec<PublishedTable>, PostgresError> {
        let tables = self.tables().await?;
        let publication = self.publication().await?;
        let publishes_changes = publication.as_ref().is_none_or(|publication| publication.changes);
        if publishes_changes {
            // Without an identity the server would refuse its own users' updates of a published table.
            self.check_identities(&tables).await?;
        }
        match publication {
            None if missing == Missing::IsNew => self.create_publication(&tables).await?,
            None => {
                return Err(PostgresError::Gap {
                    server: self.server(),
                    slot: self.settings.slot.clone(),
                    reason: format!("its publication {} is gone", self.settings.publication),
                });
            }
            Some(publication) if !publication.by_root => {
                if let Some(table) = tables.iter().find(|table| table.partitioned) {
                    let alter = format!(
                        "alter publication {} set (publish_via_partition_root = true)",
                        quote_identifier(&self.settings.publication)
                    );
                    let reason = format!("table {} is partitioned and its changes come by partition", table.name);
                    return Err(self.setup(reason, alter));
                }
            }
            Some(_) => {}
        }
        let mut published = Vec::with_capacity(tables.len());
        for table in &tables {
            published.push(self.published_table(table, version).await?);
        }
        Ok(published)
    }

    /// The types that columns may have.
    pub(crate) async fn types(&mut self) -> Result<Types, PostgresError> {
        let sql = "select t.oid, case t.typtype when 'd' then t.typbasetype else 0 end, \
                   case when t.typtype = 'b' and t.typinput = 'pg_catalog.array_in'::regproc then t.typelem else 0 end, \
                   t.typdelim from pg_type t where t.typtype <> 'c'";
        let rows = self.connection.query("reading types", sql).await?;
        let rows: Option<Vec<TypeRow>> = rows
            .iter()
            .map(|row| {
                Some(TypeRow {
                    oid: text(row, 0).parse().ok()?,
                    base: text(row, 1).parse().ok()?,
                    element: text(row, 2).parse().ok()?,
                    delimiter: *text(row, 3).as_bytes().first()?,
                })
            })
            .collect();
        rows.map(|rows| Types::new(&rows)).ok_or_else(|| self.unexpected("pg_type"))
    }

    /// The slot, `None` when there is none of this name.
    pub(crate) async fn slot(&mut self) -> Result<Option<Slot>, PostgresError> {
        let sql = format!(
            "select active_pid, confirmed_flush_lsn, wal_status, plugin, database from pg_replication_slots \
             where slot_name = {}",
            quote_literal(&self.settings.slot)
        );
        let rows = self.connection.query("looking at the slot", &sql).await?;
        Ok(rows.first().map(|row| Slot {
            reader: row.first().cloned().flatten(),
            confirmed: text(row, 1).parse().ok(),
            lost: text(row, 2) == "lost",
            plugin: text(row, 3),
            database: text(row, 4),
        }))
    }

    /// Whether a slot could be one of ours at all.
    pub(crate) fn fits(&self, slot: &Slot) -> bool {
        slot.plugin == "pgoutput" && slot.database == self.settings.server.dbname
    }

    async fn tables(&mut self) -> Result<Vec<Table>, PostgresError> {
        let mut tables = Vec::with_capacity(self.settings.tables.len());
        for name in &self.settings.tables {
            let sql = format!(
                "select c.oid, c.relkind, has_table_privilege(c.oid, 'select')::text, c.relpersistence \
                 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where n.nspname = {} and c.relname = {}",
                quote_literal(&name.schema),
                quote_literal(&name.table)
            );
            let rows = self.connection.query("looking at the tables", &sql).await?;
            let Some(row) = rows.first() else {
                return Err(self.table(name, "there is none of this name: write schema.table as the catalog does"));
            };
            let kind = text(row, 1);
            if !matches!(kind.as_str(), "r" | "p") {
                return Err(self.table(name, "it is no table, and only changes of tables are in the log"));
            }
            if text(row, 3) != "p" {
                return Err(self.table(name, "it is unlogged or temporary, and its changes are not in the log"));
            }
            if text(row, 2) != "true" {
                let (table, role) = (name.quoted(), quote_identifier(&self.settings.server.user));
                let schema = quote_identifier(&name.schema);
                return Err(self.setup(
                    format!("role {} may not read table {name}", self.settings.server.user),
                    format!("grant usage on schema {schema} to {role}; grant select on {table} to {role}"),
                ));
            }
            tables.push(Table { name: name.clone(), oid: text(row, 0), partitioned: kind == "p" });
        }
        Ok(tables)
    }

    async fn check_identities(&mut self, tables: &[Table]) -> Result<(), PostgresError> {
        for table in tables {
            // Of a partitioned table the partitions have one each.
            let sql = format!(
                "select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                 where c.relkind = 'r' and (c.oid = {oid} or c.oid in (select relid from pg_partition_tree({oid}))) \
                 and not (c.relreplident = 'f' or exists (select from pg_index i where i.indrelid = c.oid and i.indisvalid \
                 and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end))",
                oid = table.oid
            );
            let rows = self.connection.query("looking at the tables", &sql).await?;
            if let Some(row) = rows.first() {
                let name = QualifiedName { schema: text(row, 0), table: text(row, 1) };
                return Err(self.setup(
                    format!(
                        "table {name} has no replica identity, so its updates and deletes cannot be told (and would fail \
                         once it is published)"
                    ),
                    format!("alter table {} replica identity full (or give it a primary key)", name.quoted()),
                ));
            }
        }
        Ok(())
    }

    async fn publication(&mut self) -> Result<Option<Publication>, PostgresError> {
        let name = &self.settings.publication;
        let sql = format!(
            "select pubinsert::text, pubupdate::text, pubdelete::text, pubtruncate::text, pubviaroot::text \
             from pg_publication where pubname = {}",
            quote_literal(name)
        );
        let rows = self.connection.query("looking at the publication", &sql).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let left_out: Vec<&str> = ["insert", "update", "delete", "truncate"]
            .into_iter()
            .enumerate()
            .filter(|(index, _)| text(row, *index) != "true")
            .map(|(_, name)| name)
            .collect();
        if !left_out.is_empty() {
            tracing::warn!(publication = name, left_out = left_out.join(", "), "the publication leaves changes out");
        }
        Ok(Some(Publication {
            changes: text(row, 1) == "true" || text(row, 2) == "true",
            by_root: text(row, 4) == "true",
        }))
    }

    async fn create_publication(&mut self, tables: &[Table]) -> Result<(), PostgresError> {
        let named: Vec<String> = tables
            .iter()
            .map(|table| format!("{}{}", if table.partitioned { "" } else { "only " }, table.name.quoted()))
            .collect();
        let sql = format!(
            "create publication {} for table {} with (publish_via_partition_root = true)",
            quote_identifier(&self.settings.publication),
            named.join(", ")
        );
        match self.connection.query("creating the publication", &sql).await {
            Ok(_) => Ok(()),
            // Another worker was quicker.
            Err(PostgresError::Server { code, .. }) if code == "42710" => Ok(()),
            Err(PostgresError::Server { code, .. }) if code == "42501" => {
                let role = &self.settings.server.user;
                let reason =
                    format!("there is no publication {}, and role {role} may not create it", self.settings.publication);
                Err(self.setup(reason, sql))
            }
            Err(error) => Err(error),
        }
    }

    async fn published_table(&mut self, table: &Table, version: u32) -> Result<PublishedTable, PostgresError> {
        let lists = version >= VERSION_WITH_COLUMN_LISTS;
        let (publication, name) = (&self.settings.publication, &table.name);
        let sql = format!(
            "select {} from pg_publication_tables where pubname = {} and schemaname = {} and tablename = {}",
            if lists { "rowfilter" } else { "null" },
            quote_literal(publication),
            quote_literal(&name.schema),
            quote_literal(&name.table)
        );
        let rows = self.connection.query("looking at the publication", &sql).await?;
        let Some(row) = rows.first() else {
            let publication_name = quote_identifier(publication);
            let only = if table.partitioned { "" } else { "only " };
            return Err(self.setup(
                format!("publication {publication} has not table {name}"),
                format!("alter publication {publication_name} add table {only}{}", name.quoted()),
            ));
        };
        let condition = row.first().cloned().flatten();
        // Generated columns are not in the log.
        let mut sql = format!(
            "select a.attname, a.atttypid from pg_attribute a where a.attrelid = {} and a.attnum > 0 \
             and not a.attisdropped and a.attgenerated = ''",
            table.oid
        );
        if lists {
            sql.push_str(&format!(
                " and a.attname in (select unnest(attnames) from pg_publication_tables where pubname = {} \
                 and schemaname = {} and tablename = {})",
                quote_literal(publication),
                quote_literal(&name.schema),
                quote_literal(&name.table)
            ));
        }
        sql.push_str(" order by a.attnum");
        let rows = self.connection.query("looking at the tables", &sql).await?;
        let columns: Option<Vec<(String, u32)>> =
            rows.iter().map(|row| Some((text(row, 0), text(row, 1).parse().ok()?))).collect();
        let columns = columns.ok_or_else(|| self.unexpected("pg_attribute"))?;
        Ok(PublishedTable { name: name.clone(), columns, condition, partitioned: table.partitioned })
    }

    pub(crate) fn server(&self) -> String {
        self.connection.server().to_owned()
    }

    fn setup(&self, reason: String, sql: String) -> PostgresError {
        PostgresError::Setup { server: self.server(), reason, sql }
    }

    fn table(&self, table: &QualifiedName, reason: &str) -> PostgresError {
        PostgresError::Table { server: self.server(), table: table.to_string(), reason: reason.to_owned() }
    }

    fn unexpected(&self, what: &str) -> PostgresError {
        self.connection.protocol(format!("{what}: the answer is not as expected"))
    }
}

struct Table {
    name: QualifiedName,
    oid: String,
    partitioned: bool,
}

struct Publication {
    /// Whether updates or deletes are published.
    changes: bool,
    /// Whether changes of partitions come as those of their table.
    by_root: bool,
}

fn text(row: &Row, index: usize) -> String {
    row.get(index).cloned().flatten().unwrap_or_default()
}
