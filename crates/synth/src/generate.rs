//! A generation from options to files, shard by shard on a few threads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use chrono::{DateTime, Datelike, TimeZone, Utc};

use crate::bots::write_bots;
use crate::calendar::{Window, month_name};
use crate::catalogue;
use crate::error::SynthError;
use crate::life::Life;
use crate::manifest::{self, Folder, Manifest, ManifestFile, Opened, TRUTH};
use crate::number;
use crate::rows::{Chunk, Source};
use crate::till::write_walk_ins;
use crate::truth;
use crate::world::World;
use crate::write::{FilePlan, WrittenFile, write_file};

/// Customers whose rows wait in memory together over a year: what decides how much memory a generation takes.
const SHARD_CUSTOMERS: u64 = 16_000;
/// Customers that a thread takes up at a time.
const CHUNK_CUSTOMERS: u64 = 250;
/// Identifiers keep sixteen bits for the things of one customer.
const MAX_CUSTOMERS: u64 = 1_000_000_000;
const MAX_DAYS: u32 = 3_660;

/// What to generate. All but `out` and `threads` decide over the bytes.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The folder to generate into; created when it is missing.
    pub out: PathBuf,
    pub customers: u64,
    /// Days up to `end`.
    pub days: u32,
    pub seed: u64,
    /// The moment at which all that is generated is known; nothing happens at or after it.
    pub end: DateTime<Utc>,
    /// The share of rows in CSV and NDJSON files that are dirty.
    pub dirty_share: f64,
    pub threads: usize,
}

impl GenerateOptions {
    pub const DEFAULT_DIRTY_SHARE: f64 = 0.002;

    /// The default end: the first moment of 2026.
    pub fn default_end() -> DateTime<Utc> {
        Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).single().unwrap_or_default()
    }
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateProgress {
    pub customers_done: u64,
    pub customers_total: u64,
    pub bytes: u64,
}

/// What was generated, or was there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateSummary {
    /// The folder held this very generation before; nothing was touched.
    pub already_present: bool,
    pub sources: Vec<SourceSummary>,
    /// Files of all sources and of the truth.
    pub files: u64,
    pub customers: u64,
    /// Customers who were lost by the end.
    pub churned_customers: u64,
}

impl GenerateSummary {
    pub fn rows(&self) -> u64 {
        self.sources.iter().map(|source| source.rows).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes).sum()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSummary {
    pub source: &'static str,
    pub files: u64,
    /// Rows, the dirty ones included.
    pub rows: u64,
    pub dirty_rows: u64,
    pub bytes: u64,
}

/// Generates the sources and the truth about them into the folder.
///
/// The same options give the same bytes on any number of threads. Files appear in their places when all are written;
/// an interrupted generation begins anew when it is called again, a finished one is left as it is.
///
/// # Errors
/// Options out of range, a folder with other contents or another generation, and what the file system refuses.
pub fn generate(
    options: &GenerateOptions,
    progress: &(dyn Fn(GenerateProgress) + Sync),
) -> Result<GenerateSummary, SynthError> {
    generate_in_shards(options, progress, shard_customers(options.days))
}

/// As [`generate`], with so many customers a shard.
pub(crate) fn generate_in_shards(
    options: &GenerateOptions,
    progress: &(dyn Fn(GenerateProgress) + Sync),
    shard_customers: u64,
) -> Result<GenerateSummary, SynthError> {
    check(options)?;
    let folder = match manifest::open(options)? {
        Opened::Finished(manifest) => return Ok(summary(options, &manifest, true)),
        Opened::Ready(folder) => folder,
    };
    let window = Window::new(options.end.timestamp_millis(), options.days);
    let world = World::new(options.seed, options.customers, window);
    let generation = Generation {
        options,
        world: &world,
        folder: &folder,
        shard_customers,
        progress,
        done: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    let manifest = generation.run()?;
    folder.publish(&manifest)?;
    Ok(summary(options, &manifest, false))
}

fn check(options: &GenerateOptions) -> Result<(), SynthError> {
    let refuse = |option, value: String, remedy| Err(SynthError::InvalidOption { option, value, remedy });
    if !(1..=MAX_CUSTOMERS).contains(&options.customers) {
        return refuse("customers", options.customers.to_string(), "give a number from 1 to 1000000000");
    }
    if !(1..=MAX_DAYS).contains(&options.days) {
        return refuse("days", options.days.to_string(), "give a number from 1 to 3660");
    }
    if !(0.0..=0.5).contains(&options.dirty_share) {
        return refuse("dirty_share", options.dirty_share.to_string(), "give a share from 0 to 0.5");
    }
    if !(1990..=2200).contains(&options.end.year()) || options.end.timestamp_subsec_nanos() != 0 {
        return refuse("end", options.end.to_rfc3339(), "give a whole second of a year from 1990 to 2200");
    }
    Ok(())
}

/// Longer windows leave more rows a customer, so fewer customers wait together.
fn shard_customers(days: u32) -> u64 {
    (SHARD_CUSTOMERS * 365 / u64::from(days.max(365))).max(CHUNK_CUSTOMERS)
}

struct Generation<'a> {
    options: &'a GenerateOptions,
    world: &'a World,
    folder: &'a Folder,
    shard_customers: u64,
    progress: &'a (dyn Fn(GenerateProgress) + Sync),
    done: AtomicU64,
    bytes: AtomicU64,
}

impl Generation<'_> {
    fn run(&self) -> Result<Manifest, SynthError> {
        let shard_size = self.shard_customers;
        let shards = self.options.customers.div_ceil(shard_size);
        let mut truth = TruthFiles::create(self.folder)?;
        truth.products.append(&catalogue::truth(self.world))?;
        let mut files = Vec::new();
        let mut churned = 0;
        for shard in 0..shards {
            let first = shard * shard_size;
            let last = (first + shard_size).min(self.options.customers);
            let chunks = self.live(first, last)?;
            let names = self.plan(shard, shards);
            let written = self.write(&chunks, shard, &names)?;
            churned += chunks.iter().map(|chunk| chunk.churned).sum::<u64>();
            truth.append(&chunks, &written)?;
            for ((_, _, path), file) in names.into_iter().zip(written) {
                files.push(ManifestFile { path, rows: file.rows, dirty_rows: file.dirty_rows, bytes: file.bytes });
            }
        }
        files.extend(truth.finish()?);
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Manifest::new(self.options, churned, files))
    }

    /// The lives of some customers, in their order.
    fn live(&self, first: u64, last: u64) -> Result<Vec<Chunk>, SynthError> {
        let count = number::index((last - first).div_ceil(CHUNK_CUSTOMERS));
        self.in_parallel(count, |place| {
            let from = first + place as u64 * CHUNK_CUSTOMERS;
            let to = (from + CHUNK_CUSTOMERS).min(last);
            let mut chunk = Chunk::new(self.world.window);
            for index in from..to {
                Life::live(self.world, index, &mut chunk);
                write_walk_ins(self.world, index, &mut chunk);
                write_bots(self.world, index, &mut chunk);
            }
            self.done.fetch_add(to - from, Ordering::Relaxed);
            self.report();
            Ok(chunk.finish())
        })
    }

    /// The files of a shard: a month each, the largest source first so that no thread ends up alone with it.
    fn plan(&self, shard: u64, shards: u64) -> Vec<(Source, i64, String)> {
        let mut sources = Source::ALL;
        sources.sort_by_key(|source| *source != Source::Events);
        let suffix = if shards > 1 { format!("-{shard:04}") } else { String::new() };
        let months = |source: Source| self.world.window.months(source.offset_ms());
        sources
            .into_iter()
            // The article list does not grow with the customers.
            .filter(|source| shard == 0 || *source != Source::Products)
            .flat_map(|source| months(source).map(move |month| (source, month)))
            .map(|(source, month)| {
                let name = format!("{}/{}{suffix}.{}", source.name(), month_name(month), source.extension());
                (source, month, name)
            })
            .collect()
    }

    fn write(
        &self,
        chunks: &[Chunk],
        shard: u64,
        names: &[(Source, i64, String)],
    ) -> Result<Vec<WrittenFile>, SynthError> {
        self.in_parallel(names.len(), |place| {
            let (source, month, name) = &names[place];
            let path = self.folder.staging().join(name);
            let plan = FilePlan {
                source: *source,
                month: *month,
                shard,
                name: name.clone(),
                path: &path,
                dirty_share: self.options.dirty_share,
            };
            let written = write_file(self.world, chunks, &plan)?;
            self.bytes.fetch_add(written.bytes, Ordering::Relaxed);
            self.report();
            Ok(written)
        })
    }

    fn report(&self) {
        (self.progress)(GenerateProgress {
            customers_done: self.done.load(Ordering::Relaxed),
            customers_total: self.options.customers,
            bytes: self.bytes.load(Ordering::Relaxed),
        });
    }

    /// The results of numbered pieces of work, in their order, whichever thread did them.
    fn in_parallel<T: Send>(
        &self,
        count: usize,
        work: impl Fn(usize) -> Result<T, SynthError> + Sync,
    ) -> Result<Vec<T>, SynthError> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<Result<T, SynthError>>>>());
        let lost = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.options.threads.clamp(1, count.max(1)))
                .map(|_| {
                    scope.spawn(|| {
                        loop {
                            let place = next.fetch_add(1, Ordering::Relaxed);
                            if place >= count {
                                break;
                            }
                            let result = work(place);
                            if result.is_err() {
                                // What is not begun yet need not be: the generation has failed.
                                next.store(count, Ordering::Relaxed);
                            }
                            if let Ok(mut results) = results.lock() {
                                results[place] = Some(result);
                            }
                        }
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        let results = results.into_inner().map_err(|_| SynthError::WorkerLost)?;
        if lost > 0 {
            return Err(SynthError::WorkerLost);
        }
        // Report the failure itself rather than a piece that was not begun because of it.
        let (mut done, mut skipped) = (Vec::with_capacity(count), false);
        for result in results {
            match result {
                Some(result) => done.push(result?),
                None => skipped = true,
            }
        }
        if skipped { Err(SynthError::WorkerLost) } else { Ok(done) }
    }
}

/// The files of the truth, which grow shard by shard.
struct TruthFiles {
    customers: TruthFile,
    identifiers: TruthFile,
    hard_cases: TruthFile,
    records: TruthFile,
    products: TruthFile,
    dirty: TruthFile,
}

impl TruthFiles {
    fn create(folder: &Folder) -> Result<Self, SynthError> {
        Ok(Self {
            customers: TruthFile::create(folder, "customers.csv", truth::CUSTOMERS_HEADER)?,
            identifiers: TruthFile::create(folder, "identifiers.csv", truth::IDENTIFIERS_HEADER)?,
            hard_cases: TruthFile::create(folder, "hard_cases.csv", truth::HARD_CASES_HEADER)?,
            records: TruthFile::create(folder, "records.csv", truth::RECORDS_HEADER)?,
            products: TruthFile::create(folder, "products.csv", truth::PRODUCTS_HEADER)?,
            dirty: TruthFile::create(folder, "dirty.csv", truth::DIRTY_HEADER)?,
        })
    }

    fn append(&mut self, chunks: &[Chunk], written: &[WrittenFile]) -> Result<(), SynthError> {
        for chunk in chunks {
            self.customers.append(&chunk.truth_customers)?;
            self.identifiers.append(&chunk.truth_identifiers)?;
            self.hard_cases.append(&chunk.truth_hard_cases)?;
            self.records.append(&chunk.truth_records)?;
        }
        written.iter().try_for_each(|file| self.dirty.append(&file.dirty_lines))
    }

    fn finish(self) -> Result<Vec<ManifestFile>, SynthError> {
        [self.customers, self.identifiers, self.hard_cases, self.records, self.products, self.dirty]
            .into_iter()
            .map(TruthFile::finish)
            .collect()
    }
}

struct TruthFile {
    path: PathBuf,
    out: BufWriter<File>,
    described: ManifestFile,
}

impl TruthFile {
    fn create(folder: &Folder, name: &str, header: &str) -> Result<Self, SynthError> {
        let path = folder.staging().join(TRUTH).join(name);
        let file = File::create(&path).map_err(SynthError::io("create", &path))?;
        let described = ManifestFile { path: format!("{TRUTH}/{name}"), rows: 0, dirty_rows: 0, bytes: 0 };
        let mut truth = Self { path, out: BufWriter::new(file), described };
        truth.append(header.as_bytes())?;
        truth.described.rows = 0;
        Ok(truth)
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), SynthError> {
        self.out.write_all(lines).map_err(SynthError::io("write", &self.path))?;
        self.described.bytes += lines.len() as u64;
        self.described.rows += lines.split(|byte| *byte == b'\n').count() as u64 - 1;
        Ok(())
    }

    fn finish(mut self) -> Result<ManifestFile, SynthError> {
        self.out.flush().map_err(SynthError::io("write", &self.path))?;
        Ok(self.described)
    }
}

fn summary(options: &GenerateOptions, manifest: &Manifest, already_present: bool) -> GenerateSummary {
    let sources = Source::ALL.map(|source| {
        let folder = format!("{}/", source.name());
        let mut sum = SourceSummary { source: source.name(), files: 0, rows: 0, dirty_rows: 0, bytes: 0 };
        for file in manifest.files.iter().filter(|file| file.path.starts_with(&folder)) {
            sum.files += 1;
            sum.rows += file.rows;
            sum.dirty_rows += file.dirty_rows;
            sum.bytes += file.bytes;
        }
        sum
    });
    GenerateSummary {
        already_present,
        sources: sources.into(),
        files: manifest.files.len() as u64,
        customers: options.customers,
        churned_customers: manifest.churned_customers,
    }
}
