//! What drivers ask the service about itself: every item of `SqlInfo` in `FlightSql.proto` that says something of a service that only reads. The JDBC driver takes each for
//! there, and of the type that the specification gives it.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::compute::can_cast_types;
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{
    CommandGetSqlInfo, SqlInfo, SqlNullOrdering, SqlOuterJoinsSupportLevel, SqlSupportedCaseSensitivity,
    SqlSupportedGroupBy, SqlSupportedResultSetConcurrency, SqlSupportedResultSetType, SqlSupportedSubqueries,
    SqlSupportedTransaction, SqlSupportedUnions, SqlSupportsConvert, SqlTransactionIsolationLevel, SupportedSqlGrammar,
};
use datafusion::logical_expr::DocSection;
use datafusion::logical_expr::scalar_doc_sections::{
    DOC_SECTION_DATETIME, DOC_SECTION_MATH, DOC_SECTION_OTHER, DOC_SECTION_STRING,
};
use datafusion::prelude::SessionContext;
use holdfast_engine::RELATIONS_MAX;

use crate::metadata::malformed;
use crate::{Result, ServeSettings};

/// Words that mean something here and are no keywords of SQL:2003.
const KEYWORDS: [&str; 11] = [
    "anti",
    "asof",
    "exclude",
    "explain",
    "ilike",
    "limit",
    "match_condition",
    "offset",
    "qualify",
    "semi",
    "try_cast",
];
/// The place of `ANSI92_ENTRY_SQL` in its mask; arrow-flight does not give the enumeration.
const ANSI92_ENTRY: i32 = 0;
/// Of a length or a number: there is no limit, or it is not known.
const NO_LIMIT: i64 = 0;

/// What the service can do. `session` is one in which statements are planned.
pub(crate) fn sql_info(
    command: CommandGetSqlInfo,
    settings: &ServeSettings,
    takes_puts: bool,
    session: &SessionContext,
) -> Result<RecordBatch> {
    let mut infos = SqlInfoDataBuilder::new();
    of_the_service(&mut infos, takes_puts);
    of_statements(&mut infos, settings);
    of_functions(&mut infos, session);
    of_what_writes(&mut infos);
    let infos: SqlInfoData = infos.build().map_err(malformed)?;
    command.into_builder(&infos).build().map_err(malformed)
}

/// ADBC reads `FlightSqlServerTransaction` as an int32 without looking: the builder of arrow-flight puts it there.
fn of_the_service(infos: &mut SqlInfoDataBuilder, takes_puts: bool) {
    infos.append(SqlInfo::FlightSqlServerName, "Holdfast");
    infos.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    infos.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    infos.append(SqlInfo::FlightSqlServerReadOnly, !takes_puts);
    infos.append(SqlInfo::FlightSqlServerSql, true);
    infos.append(SqlInfo::FlightSqlServerSubstrait, false);
    infos.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::Transaction as i32);
    infos.append(SqlInfo::FlightSqlServerCancel, true);
    infos.append(SqlInfo::FlightSqlServerBulkIngestion, takes_puts);
    infos.append(SqlInfo::FlightSqlServerIngestTransactionsSupported, false);
    // The service's own limit holds for each query, and none for a transaction.
    infos.append(SqlInfo::FlightSqlServerStatementTimeout, 0);
    infos.append(SqlInfo::FlightSqlServerTransactionTimeout, 0);
    // All that is asked in one reads one run.
    infos.append(SqlInfo::SqlTransactionsSupported, true);
    infos.append(
        SqlInfo::SqlDefaultTransactionIsolation,
        SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32,
    );
    infos.append(
        SqlInfo::SqlSupportedTransactionsIsolationLevels,
        mask([SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32]),
    );
    infos.append(
        SqlInfo::SqlSupportedResultSetTypes,
        mask([
            SqlSupportedResultSetType::SqlResultSetTypeUnspecified as i32,
            SqlSupportedResultSetType::SqlResultSetTypeForwardOnly as i32,
        ]),
    );
    let read_only = mask([SqlSupportedResultSetConcurrency::SqlResultSetConcurrencyReadOnly as i32]);
    infos.append(SqlInfo::SqlSupportedConcurrenciesForResultSetUnspecified, read_only);
    infos.append(SqlInfo::SqlSupportedConcurrenciesForResultSetForwardOnly, read_only);
    infos.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollSensitive, 0);
    infos.append(SqlInfo::SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0);
}

fn of_statements(infos: &mut SqlInfoDataBuilder, settings: &ServeSettings) {
    let lowercase = SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32;
    let insensitive = SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32;
    infos.append(SqlInfo::SqlIdentifierCase, lowercase);
    infos.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    infos.append(SqlInfo::SqlQuotedIdentifierCase, insensitive);
    infos.append(SqlInfo::SqlExtraNameCharacters, "");
    infos.append(SqlInfo::SqlAllTablesAreSelectable, true);
    infos.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    infos.append(SqlInfo::SqlKeywords, KEYWORDS.as_slice());
    infos.append(SqlInfo::SqlSearchStringEscape, "\\");
    infos.append(SqlInfo::SqlSupportsColumnAliasing, true);
    infos.append(SqlInfo::SqlNullPlusNullIsNull, true);
    infos.append(SqlInfo::SqlSupportsConvert, conversions());
    infos.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    infos.append(SqlInfo::SqlSupportsDifferentTableCorrelationNames, false);
    infos.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    infos.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    infos.append(
        SqlInfo::SqlSupportedGroupBy,
        mask([SqlSupportedGroupBy::SqlGroupByUnrelated as i32, SqlSupportedGroupBy::SqlGroupByBeyondSelect as i32]),
    );
    // The backslash alone, which needs no clause.
    infos.append(SqlInfo::SqlSupportsLikeEscapeClause, false);
    infos.append(SqlInfo::SqlSupportsNonNullableColumns, true);
    infos.append(
        SqlInfo::SqlSupportedGrammar,
        mask([SupportedSqlGrammar::SqlMinimumGrammar as i32, SupportedSqlGrammar::SqlCoreGrammar as i32]),
    );
    infos.append(SqlInfo::SqlAnsi92SupportedLevel, mask([ANSI92_ENTRY]));
    infos.append(SqlInfo::SqlSupportsIntegrityEnhancementFacility, false);
    infos.append(SqlInfo::SqlOuterJoinsSupportLevel, SqlOuterJoinsSupportLevel::SqlFullOuterJoins as i32);
    infos.append(
        SqlInfo::SqlSupportedSubqueries,
        mask([
            SqlSupportedSubqueries::SqlSubqueriesInComparisons as i32,
            SqlSupportedSubqueries::SqlSubqueriesInExists as i32,
            SqlSupportedSubqueries::SqlSubqueriesInIns as i32,
        ]),
    );
    infos.append(SqlInfo::SqlCorrelatedSubqueriesSupported, true);
    infos.append(
        SqlInfo::SqlSupportedUnions,
        mask([SqlSupportedUnions::SqlUnion as i32, SqlSupportedUnions::SqlUnionAll as i32]),
    );
    infos.append(SqlInfo::SqlSchemaTerm, "schema");
    infos.append(SqlInfo::SqlProcedureTerm, "");
    infos.append(SqlInfo::SqlCatalogTerm, "catalog");
    infos.append(SqlInfo::SqlCatalogAtStart, true);
    for unlimited in [
        SqlInfo::SqlMaxBinaryLiteralLength,
        SqlInfo::SqlMaxCharLiteralLength,
        SqlInfo::SqlMaxColumnNameLength,
        SqlInfo::SqlMaxColumnsInGroupBy,
        SqlInfo::SqlMaxColumnsInIndex,
        SqlInfo::SqlMaxColumnsInOrderBy,
        SqlInfo::SqlMaxColumnsInSelect,
        SqlInfo::SqlMaxColumnsInTable,
        SqlInfo::SqlMaxConnections,
        SqlInfo::SqlMaxCursorNameLength,
        SqlInfo::SqlMaxIndexLength,
        SqlInfo::SqlDbSchemaNameLength,
        SqlInfo::SqlMaxProcedureNameLength,
        SqlInfo::SqlMaxCatalogNameLength,
        SqlInfo::SqlMaxRowSize,
        SqlInfo::SqlMaxStatements,
        SqlInfo::SqlMaxTableNameLength,
        SqlInfo::SqlMaxUsernameLength,
    ] {
        infos.append(unlimited, NO_LIMIT);
    }
    infos.append(SqlInfo::SqlMaxRowSizeIncludesBlobs, true);
    infos.append(SqlInfo::SqlMaxStatementLength, number(settings.max_statement_bytes));
    infos.append(SqlInfo::SqlMaxTablesInSelect, number(RELATIONS_MAX));
}

fn of_functions(infos: &mut SqlInfoDataBuilder, session: &SessionContext) {
    let state = session.state();
    let named = |section: &DocSection| {
        let of_section = state.scalar_functions().iter().filter(|(_, function)| {
            function.documentation().is_some_and(|documented| documented.doc_section.label == section.label)
        });
        let mut names: Vec<String> = of_section.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    };
    infos.append(SqlInfo::SqlNumericFunctions, named(&DOC_SECTION_MATH));
    infos.append(SqlInfo::SqlStringFunctions, named(&DOC_SECTION_STRING));
    infos.append(SqlInfo::SqlDatetimeFunctions, named(&DOC_SECTION_DATETIME));
    infos.append(SqlInfo::SqlSystemFunctions, named(&DOC_SECTION_OTHER));
}

/// Nothing can be written in SQL.
fn of_what_writes(infos: &mut SqlInfoDataBuilder) {
    for offered in [
        SqlInfo::SqlDdlCatalog,
        SqlInfo::SqlDdlSchema,
        SqlInfo::SqlDdlTable,
        SqlInfo::SqlSelectForUpdateSupported,
        SqlInfo::SqlStoredProceduresSupported,
        SqlInfo::SqlDataDefinitionCausesTransactionCommit,
        SqlInfo::SqlDataDefinitionsInTransactionsIgnored,
        SqlInfo::SqlBatchUpdatesSupported,
        SqlInfo::SqlSavepointsSupported,
        SqlInfo::SqlNamedParametersSupported,
        SqlInfo::SqlLocatorsUpdateCopy,
        SqlInfo::SqlStoredFunctionsUsingCallSyntaxSupported,
    ] {
        infos.append(offered, false);
    }
    for actions in [
        SqlInfo::SqlSchemasSupportedActions,
        SqlInfo::SqlCatalogsSupportedActions,
        SqlInfo::SqlSupportedPositionedCommands,
    ] {
        infos.append(actions, 0);
    }
}

/// From which type to which `cast` goes, as the planner has it.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use SqlSupportsConvert as Kind;
    let kinds = [
        (Kind::SqlConvertBigint, DataType::Int64),
        (Kind::SqlConvertBinary, DataType::Binary),
        (Kind::SqlConvertBit, DataType::Boolean),
        (Kind::SqlConvertChar, DataType::Utf8),
        (Kind::SqlConvertDate, DataType::Date32),
        (Kind::SqlConvertDecimal, DataType::Decimal128(38, 10)),
        (Kind::SqlConvertFloat, DataType::Float64),
        (Kind::SqlConvertInteger, DataType::Int32),
        (Kind::SqlConvertIntervalDayTime, DataType::Interval(IntervalUnit::DayTime)),
        (Kind::SqlConvertIntervalYearMonth, DataType::Interval(IntervalUnit::YearMonth)),
        (Kind::SqlConvertNumeric, DataType::Decimal128(38, 10)),
        (Kind::SqlConvertReal, DataType::Float32),
        (Kind::SqlConvertSmallint, DataType::Int16),
        (Kind::SqlConvertTime, DataType::Time64(TimeUnit::Nanosecond)),
        (Kind::SqlConvertTimestamp, DataType::Timestamp(TimeUnit::Nanosecond, None)),
        (Kind::SqlConvertTinyint, DataType::Int8),
        (Kind::SqlConvertVarbinary, DataType::Binary),
        (Kind::SqlConvertVarchar, DataType::Utf8),
    ];
    let targets = |from: &DataType| {
        let castable = kinds.iter().filter(|(_, to)| can_cast_types(from, to));
        castable.map(|(kind, _)| *kind as i32).collect()
    };
    kinds.iter().map(|(kind, from)| (*kind as i32, targets(from))).collect()
}

/// The mask in which the bits at these places are set.
fn mask<const N: usize>(places: [i32; N]) -> i32 {
    places.into_iter().fold(0, |mask, place| mask | (1 << place))
}

fn number(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(NO_LIMIT)
}
