//! The columns of PostgreSQL's system tables, version 15, in the order of its manual (chapters "System Catalogs" and "The Information
//! Schema"). A name is followed by its type; columns of tables that are always empty are those that tools ask for.

/// System tables with their columns.
pub(super) const TABLES: &[(&str, &str)] = &[
    ("pg_aggregate", "aggfnoid regproc, aggkind char, aggnumdirectargs int2"),
    ("pg_am", "oid oid, amname name, amhandler regproc, amtype char"),
    ("pg_attrdef", "oid oid, adrelid oid, adnum int2, adbin text"),
    (
        "pg_attribute",
        "attrelid oid, attname name, atttypid oid, attstattarget int4, attlen int2, attnum int2, attndims int4, attcacheoff int4, \
         atttypmod int4, attbyval bool, attalign char, attstorage char, attcompression char, attnotnull bool, atthasdef bool, \
         atthasmissing bool, attidentity char, attgenerated char, attisdropped bool, attislocal bool, attinhcount int4, attcollation oid, \
         attacl _text, attoptions _text, attfdwoptions _text, attmissingval text",
    ),
    ("pg_auth_members", "roleid oid, member oid, grantor oid, admin_option bool"),
    ("pg_available_extensions", "name name, default_version text, installed_version text, comment text"),
    ("pg_cast", "oid oid, castsource oid, casttarget oid, castfunc oid, castcontext char, castmethod char"),
    (
        "pg_class",
        "oid oid, relname name, relnamespace oid, reltype oid, reloftype oid, relowner oid, relam oid, relfilenode oid, \
         reltablespace oid, relpages int4, reltuples float4, relallvisible int4, reltoastrelid oid, relhasindex bool, relisshared bool, \
         relpersistence char, relkind char, relnatts int2, relchecks int2, relhasrules bool, relhastriggers bool, relhassubclass bool, \
         relrowsecurity bool, relforcerowsecurity bool, relispopulated bool, relreplident char, relispartition bool, relrewrite oid, \
         relfrozenxid xid, relminmxid xid, relacl _text, reloptions _text, relpartbound text",
    ),
    (
        "pg_collation",
        "oid oid, collname name, collnamespace oid, collowner oid, collprovider char, collisdeterministic bool, collencoding int4, \
         collcollate text, collctype text, colliculocale text, collversion text",
    ),
    (
        "pg_constraint",
        "oid oid, conname name, connamespace oid, contype char, condeferrable bool, condeferred bool, convalidated bool, conrelid oid, \
         contypid oid, conindid oid, conparentid oid, confrelid oid, confupdtype char, confdeltype char, confmatchtype char, \
         conislocal bool, coninhcount int4, connoinherit bool, conkey _int2, confkey _int2, conpfeqop _oid, conppeqop _oid, \
         conffeqop _oid, confdelsetcols _int2, conexclop _oid, conbin text",
    ),
    ("pg_conversion", "oid oid, conname name, connamespace oid, conowner oid"),
    (
        "pg_cursors",
        "name text, statement text, is_holdable bool, is_binary bool, is_scrollable bool, creation_time timestamptz",
    ),
    (
        "pg_database",
        "oid oid, datname name, datdba oid, encoding int4, datlocprovider char, datistemplate bool, datallowconn bool, \
         datconnlimit int4, datfrozenxid xid, datminmxid xid, dattablespace oid, datcollate text, datctype text, daticulocale text, \
         datcollversion text, datacl _text, datlastsysoid oid",
    ),
    ("pg_db_role_setting", "setdatabase oid, setrole oid, setconfig _text"),
    ("pg_default_acl", "oid oid, defaclrole oid, defaclnamespace oid, defaclobjtype char, defaclacl _text"),
    (
        "pg_depend",
        "classid oid, objid oid, objsubid int4, refclassid oid, refobjid oid, refobjsubid int4, deptype char",
    ),
    ("pg_description", "objoid oid, classoid oid, objsubid int4, description text"),
    ("pg_enum", "oid oid, enumtypid oid, enumsortorder float4, enumlabel name"),
    (
        "pg_event_trigger",
        "oid oid, evtname name, evtevent name, evtowner oid, evtfoid oid, evtenabled char, evttags _text",
    ),
    (
        "pg_extension",
        "oid oid, extname name, extowner oid, extnamespace oid, extrelocatable bool, extversion text, extconfig _oid, extcondition _text",
    ),
    (
        "pg_file_settings",
        "sourcefile text, sourceline int4, seqno int4, name text, setting text, applied bool, error text",
    ),
    (
        "pg_foreign_data_wrapper",
        "oid oid, fdwname name, fdwowner oid, fdwhandler oid, fdwvalidator oid, fdwoptions _text",
    ),
    (
        "pg_foreign_server",
        "oid oid, srvname name, srvowner oid, srvfdw oid, srvtype text, srvversion text, srvoptions _text",
    ),
    ("pg_foreign_table", "ftrelid oid, ftserver oid, ftoptions _text"),
    (
        "pg_index",
        "indexrelid oid, indrelid oid, indnatts int2, indnkeyatts int2, indisunique bool, indnullsnotdistinct bool, indisprimary bool, \
         indisexclusion bool, indimmediate bool, indisclustered bool, indisvalid bool, indcheckxmin bool, indisready bool, indislive bool, \
         indisreplident bool, indkey int2vector, indcollation _oid, indclass _oid, indoption int2vector, indexprs text, indpred text",
    ),
    ("pg_get_keywords", "word text, catcode char, barelabel bool, catdesc text, baredesc text"),
    ("pg_indexes", "schemaname name, tablename name, indexname name, tablespace name, indexdef text"),
    ("pg_inherits", "inhrelid oid, inhparent oid, inhseqno int4, inhdetachpending bool"),
    ("pg_language", "oid oid, lanname name, lanowner oid, lanispl bool, lanpltrusted bool, lanplcallfoid oid"),
    ("pg_largeobject_metadata", "oid oid, lomowner oid, lomacl _text"),
    ("pg_locks", "locktype text, database oid, relation oid, pid int4, mode text, granted bool"),
    (
        "pg_matviews",
        "schemaname name, matviewname name, matviewowner name, tablespace name, hasindexes bool, ispopulated bool, definition text",
    ),
    ("pg_namespace", "oid oid, nspname name, nspowner oid, nspacl _text"),
    (
        "pg_opclass",
        "oid oid, opcmethod oid, opcname name, opcnamespace oid, opcowner oid, opcfamily oid, opcintype oid, opcdefault bool",
    ),
    (
        "pg_operator",
        "oid oid, oprname name, oprnamespace oid, oprowner oid, oprkind char, oprleft oid, oprright oid, oprresult oid",
    ),
    ("pg_opfamily", "oid oid, opfmethod oid, opfname name, opfnamespace oid, opfowner oid"),
    (
        "pg_partitioned_table",
        "partrelid oid, partstrat char, partnatts int2, partdefid oid, partattrs int2vector, partexprs text",
    ),
    (
        "pg_policies",
        "schemaname name, tablename name, policyname name, permissive text, roles _text, cmd text, qual text, with_check text",
    ),
    (
        "pg_policy",
        "oid oid, polname name, polrelid oid, polcmd char, polpermissive bool, polroles _oid, polqual text, polwithcheck text",
    ),
    (
        "pg_prepared_statements",
        "name text, statement text, prepare_time timestamptz, parameter_types _text, from_sql bool",
    ),
    ("pg_prepared_xacts", "transaction xid, gid text, prepared timestamptz, owner name, database name"),
    (
        "pg_proc",
        "oid oid, proname name, pronamespace oid, proowner oid, prolang oid, procost float4, prorows float4, provariadic oid, \
         prosupport regproc, prokind char, prosecdef bool, proleakproof bool, proisstrict bool, proretset bool, provolatile char, \
         proparallel char, pronargs int2, pronargdefaults int2, prorettype oid, proargtypes _oid, proallargtypes _oid, proargmodes _text, \
         proargnames _text, proargdefaults text, protrftypes _oid, prosrc text, probin text, prosqlbody text, proconfig _text, proacl _text",
    ),
    (
        "pg_publication",
        "oid oid, pubname name, pubowner oid, puballtables bool, pubinsert bool, pubupdate bool, pubdelete bool, pubtruncate bool, \
         pubviaroot bool",
    ),
    ("pg_publication_namespace", "oid oid, pnpubid oid, pnnspid oid"),
    ("pg_publication_rel", "oid oid, prpubid oid, prrelid oid, prqual text, prattrs int2vector"),
    ("pg_publication_tables", "pubname name, schemaname name, tablename name, attnames _text, rowfilter text"),
    (
        "pg_range",
        "rngtypid oid, rngsubtype oid, rngmultitypid oid, rngcollation oid, rngsubopc oid, rngcanonical regproc",
    ),
    (
        "pg_replication_slots",
        "slot_name name, plugin name, slot_type text, datoid oid, database name, temporary bool, active bool",
    ),
    (
        "pg_rewrite",
        "oid oid, rulename name, ev_class oid, ev_type char, ev_enabled char, is_instead bool, ev_qual text, ev_action text",
    ),
    (
        "pg_roles",
        "rolname name, rolsuper bool, rolinherit bool, rolcreaterole bool, rolcreatedb bool, rolcanlogin bool, rolreplication bool, \
         rolconnlimit int4, rolpassword text, rolvaliduntil timestamptz, rolbypassrls bool, rolconfig _text, oid oid",
    ),
    ("pg_rules", "schemaname name, tablename name, rulename name, definition text"),
    ("pg_seclabel", "objoid oid, classoid oid, objsubid int4, provider text, label text"),
    (
        "pg_seclabels",
        "objoid oid, classoid oid, objsubid int4, objtype text, objnamespace oid, objname text, provider text, label text",
    ),
    (
        "pg_sequence",
        "seqrelid oid, seqtypid oid, seqstart int8, seqincrement int8, seqmax int8, seqmin int8, seqcache int8, seqcycle bool",
    ),
    ("pg_sequences", "schemaname name, sequencename name, sequenceowner name, data_type text, last_value int8"),
    (
        "pg_settings",
        "name text, setting text, unit text, category text, short_desc text, extra_desc text, context text, vartype text, source text, \
         min_val text, max_val text, enumvals _text, boot_val text, reset_val text, sourcefile text, sourceline int4, pending_restart bool",
    ),
    (
        "pg_shadow",
        "usename name, usesysid oid, usecreatedb bool, usesuper bool, userepl bool, usebypassrls bool, valuntil timestamptz",
    ),
    ("pg_shdepend", "dbid oid, classid oid, objid oid, objsubid int4, refclassid oid, refobjid oid, deptype char"),
    ("pg_shdescription", "objoid oid, classoid oid, description text"),
    ("pg_shseclabel", "objoid oid, classoid oid, provider text, label text"),
    (
        "pg_stat_activity",
        "datid oid, datname name, pid int4, leader_pid int4, usesysid oid, usename name, application_name text, client_addr text, \
         client_hostname text, client_port int4, backend_start timestamptz, xact_start timestamptz, query_start timestamptz, \
         state_change timestamptz, wait_event_type text, wait_event text, state text, backend_xid xid, backend_xmin xid, query_id int8, \
         query text, backend_type text",
    ),
    (
        "pg_stat_database",
        "datid oid, datname name, numbackends int4, xact_commit int8, xact_rollback int8, blks_read int8, blks_hit int8",
    ),
    ("pg_stat_gssapi", "pid int4, gss_authenticated bool, principal text, encrypted bool"),
    (
        "pg_stat_ssl",
        "pid int4, ssl bool, version text, cipher text, bits int4, client_dn text, client_serial numeric, issuer_dn text",
    ),
    (
        "pg_stat_user_tables",
        "relid oid, schemaname name, relname name, seq_scan int8, seq_tup_read int8, idx_scan int8, idx_tup_fetch int8, n_tup_ins int8, \
         n_tup_upd int8, n_tup_del int8, n_live_tup int8, n_dead_tup int8, last_vacuum timestamptz, last_analyze timestamptz",
    ),
    (
        "pg_statio_user_tables",
        "relid oid, schemaname name, relname name, heap_blks_read int8, heap_blks_hit int8, idx_blks_read int8, idx_blks_hit int8",
    ),
    (
        "pg_statistic",
        "starelid oid, staattnum int2, stainherit bool, stanullfrac float4, stawidth int4, stadistinct float4",
    ),
    (
        "pg_statistic_ext",
        "oid oid, stxrelid oid, stxname name, stxnamespace oid, stxowner oid, stxstattarget int4, stxkeys int2vector, stxkind _char, \
         stxexprs text",
    ),
    (
        "pg_stats",
        "schemaname name, tablename name, attname name, inherited bool, null_frac float4, avg_width int4, n_distinct float4",
    ),
    (
        "pg_subscription",
        "oid oid, subdbid oid, subname name, subowner oid, subenabled bool, subconninfo text, subpublications _text",
    ),
    (
        "pg_tables",
        "schemaname name, tablename name, tableowner name, tablespace name, hasindexes bool, hasrules bool, hastriggers bool, \
         rowsecurity bool",
    ),
    ("pg_tablespace", "oid oid, spcname name, spcowner oid, spcacl _text, spcoptions _text"),
    ("pg_timezone_names", "name text, abbrev text, utc_offset interval, is_dst bool"),
    ("pg_transform", "oid oid, trftype oid, trflang oid, trffromsql regproc, trftosql regproc"),
    (
        "pg_trigger",
        "oid oid, tgrelid oid, tgparentid oid, tgname name, tgfoid oid, tgtype int2, tgenabled char, tgisinternal bool, tgconstrrelid oid, \
         tgconstrindid oid, tgconstraint oid, tgdeferrable bool, tginitdeferred bool, tgnargs int2, tgattr int2vector, tgargs bytea, \
         tgqual text, tgoldtable name, tgnewtable name",
    ),
    ("pg_ts_config", "oid oid, cfgname name, cfgnamespace oid, cfgowner oid, cfgparser oid"),
    ("pg_ts_dict", "oid oid, dictname name, dictnamespace oid, dictowner oid, dicttemplate oid, dictinitoption text"),
    ("pg_ts_parser", "oid oid, prsname name, prsnamespace oid"),
    ("pg_ts_template", "oid oid, tmplname name, tmplnamespace oid"),
    (
        "pg_type",
        "oid oid, typname name, typnamespace oid, typowner oid, typlen int2, typbyval bool, typtype char, typcategory char, \
         typispreferred bool, typisdefined bool, typdelim char, typrelid oid, typsubscript regproc, typelem oid, typarray oid, \
         typinput regproc, typoutput regproc, typreceive regproc, typsend regproc, typmodin regproc, typmodout regproc, typanalyze regproc, \
         typalign char, typstorage char, typnotnull bool, typbasetype oid, typtypmod int4, typndims int4, typcollation oid, \
         typdefaultbin text, typdefault text, typacl _text",
    ),
    (
        "pg_user",
        "usename name, usesysid oid, usecreatedb bool, usesuper bool, userepl bool, usebypassrls bool, passwd text, valuntil timestamptz, useconfig _text",
    ),
    ("pg_user_mapping", "oid oid, umuser oid, umserver oid, umoptions _text"),
    ("pg_user_mappings", "umid oid, srvid oid, srvname name, umuser oid, usename name, umoptions _text"),
    ("pg_views", "schemaname name, viewname name, viewowner name, definition text"),
];

/// Views of the information schema with their columns.
pub(super) const INFORMATION: &[(&str, &str)] = &[
    ("applicable_roles", "grantee name, role_name name, is_grantable text"),
    (
        "character_sets",
        "character_set_catalog name, character_set_schema name, character_set_name name, default_collate_name name",
    ),
    ("check_constraints", "constraint_catalog name, constraint_schema name, constraint_name name, check_clause text"),
    ("collations", "collation_catalog name, collation_schema name, collation_name name, pad_attribute text"),
    (
        "column_privileges",
        "grantor name, grantee name, table_catalog name, table_schema name, table_name name, column_name name, privilege_type text, is_grantable text",
    ),
    (
        "columns",
        "table_catalog name, table_schema name, table_name name, column_name name, ordinal_position int4, column_default text, \
         is_nullable text, data_type text, character_maximum_length int4, character_octet_length int4, numeric_precision int4, \
         numeric_precision_radix int4, numeric_scale int4, datetime_precision int4, interval_type text, interval_precision int4, \
         character_set_catalog name, character_set_schema name, character_set_name name, collation_catalog name, collation_schema name, \
         collation_name name, domain_catalog name, domain_schema name, domain_name name, udt_catalog name, udt_schema name, udt_name name, \
         scope_catalog name, scope_schema name, scope_name name, maximum_cardinality int4, dtd_identifier name, is_self_referencing text, \
         is_identity text, identity_generation text, identity_start text, identity_increment text, identity_maximum text, \
         identity_minimum text, identity_cycle text, is_generated text, generation_expression text, is_updatable text",
    ),
    (
        "constraint_column_usage",
        "table_catalog name, table_schema name, table_name name, column_name name, constraint_catalog name, constraint_schema name, constraint_name name",
    ),
    (
        "constraint_table_usage",
        "table_catalog name, table_schema name, table_name name, constraint_catalog name, constraint_schema name, constraint_name name",
    ),
    ("domains", "domain_catalog name, domain_schema name, domain_name name, data_type text"),
    (
        "element_types",
        "object_catalog name, object_schema name, object_name name, object_type text, collection_type_identifier name, data_type text",
    ),
    ("enabled_roles", "role_name name"),
    (
        "key_column_usage",
        "constraint_catalog name, constraint_schema name, constraint_name name, table_catalog name, table_schema name, table_name name, \
         column_name name, ordinal_position int4, position_in_unique_constraint int4",
    ),
    (
        "parameters",
        "specific_catalog name, specific_schema name, specific_name name, ordinal_position int4, parameter_mode text, parameter_name name, data_type text",
    ),
    (
        "referential_constraints",
        "constraint_catalog name, constraint_schema name, constraint_name name, unique_constraint_catalog name, \
         unique_constraint_schema name, unique_constraint_name name, match_option text, update_rule text, delete_rule text",
    ),
    (
        "role_table_grants",
        "grantor name, grantee name, table_catalog name, table_schema name, table_name name, privilege_type text, is_grantable text, with_hierarchy text",
    ),
    (
        "routines",
        "specific_catalog name, specific_schema name, specific_name name, routine_catalog name, routine_schema name, routine_name name, routine_type text, data_type text, routine_definition text",
    ),
    (
        "schemata",
        "catalog_name name, schema_name name, schema_owner name, default_character_set_catalog name, default_character_set_schema name, \
         default_character_set_name name, sql_path text",
    ),
    ("sequences", "sequence_catalog name, sequence_schema name, sequence_name name, data_type text"),
    (
        "table_constraints",
        "constraint_catalog name, constraint_schema name, constraint_name name, table_catalog name, table_schema name, table_name name, \
         constraint_type text, is_deferrable text, initially_deferred text, enforced text, nulls_distinct text",
    ),
    (
        "table_privileges",
        "grantor name, grantee name, table_catalog name, table_schema name, table_name name, privilege_type text, is_grantable text, with_hierarchy text",
    ),
    (
        "tables",
        "table_catalog name, table_schema name, table_name name, table_type text, self_referencing_column_name name, \
         reference_generation text, user_defined_type_catalog name, user_defined_type_schema name, user_defined_type_name name, \
         is_insertable_into text, is_typed text, commit_action text",
    ),
    (
        "triggers",
        "trigger_catalog name, trigger_schema name, trigger_name name, event_manipulation text, event_object_schema name, event_object_table name",
    ),
    (
        "view_table_usage",
        "view_catalog name, view_schema name, view_name name, table_catalog name, table_schema name, table_name name",
    ),
    (
        "views",
        "table_catalog name, table_schema name, table_name name, view_definition text, check_option text, is_updatable text",
    ),
];

/// Tables that are filled here; all others are empty, as nothing of the kind exists.
pub(super) const FILLED: &[&str] = &[
    "pg_am",
    "pg_attribute",
    "pg_class",
    "pg_database",
    "pg_description",
    "pg_get_keywords",
    "pg_namespace",
    "pg_roles",
    "pg_settings",
    "pg_stat_activity",
    "pg_stat_user_tables",
    "pg_tables",
    "pg_tablespace",
    "pg_type",
    "pg_user",
];

/// The numbers that every installation gives to the tables that other tables point at.
pub(super) const KNOWN_OIDS: &[(&str, u32)] = &[
    ("pg_type", 1247),
    ("pg_attribute", 1249),
    ("pg_proc", 1255),
    ("pg_class", 1259),
    ("pg_roles", 12_000),
    ("pg_database", 1262),
    ("pg_tablespace", 1213),
    ("pg_constraint", 2606),
    ("pg_description", 2609),
    ("pg_index", 2610),
    ("pg_language", 2612),
    ("pg_namespace", 2615),
    ("pg_rewrite", 2618),
    ("pg_trigger", 2620),
    ("pg_am", 2601),
    ("pg_extension", 3079),
];
