use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Queries and plans nest as deep as people write them.
const STACK_BYTES: usize = 8 << 20;

/// The answers for all items, in their order, on as many threads as the machine has cores. For work that waits for nothing.
pub(crate) fn side_by_side<Item: Sync, Answer: Send + Sync>(
    items: &[Item],
    look: impl Fn(&Item) -> Answer + Sync,
) -> Vec<Answer> {
    let next = AtomicUsize::new(0);
    let answers: Vec<OnceLock<Answer>> = items.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        while let Some((item, answer)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            items.get(index).zip(answers.get(index))
        } {
            let _ = answer.set(look(item));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            if std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work).is_err() {
                // A machine that gives no thread more: the work is done here.
                work();
            }
        }
    });
    // Each was taken by one thread, and all threads have ended.
    answers.into_iter().filter_map(OnceLock::into_inner).collect()
}
