use holdfast_synth::{GenerateOptions, generate};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let options = GenerateOptions {
        out: a[1].clone().into(),
        customers: a[2].parse().unwrap(),
        days: a[3].parse().unwrap(),
        seed: a[4].parse().unwrap(),
        end: GenerateOptions::default_end(),
        dirty_share: 0.002,
        threads: a.get(5).map_or(2, |t| t.parse().unwrap()),
    };
    let start = std::time::Instant::now();
    match generate(&options, &|_| {}) {
        Ok(s) => {
            for x in &s.sources {
                println!(
                    "{:18} files {:4} rows {:9} dirty {:6} bytes {:11}",
                    x.source, x.files, x.rows, x.dirty_rows, x.bytes
                );
            }
            println!(
                "rows {} bytes {} churned {}/{} present {} in {:?}",
                s.rows(),
                s.bytes(),
                s.churned_customers,
                s.customers,
                s.already_present,
                start.elapsed()
            );
            let m = std::fs::read_to_string("/proc/self/status").unwrap();
            for l in m.lines().filter(|l| l.starts_with("VmHWM")) {
                println!("{l}");
            }
        }
        Err(e) => {
            println!("{e} ({:?})", e.kind());
            std::process::exit(1)
        }
    }
}
