use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many threads the machine runs at once.
pub(crate) fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Works on pieces `0..count`, one thread for each state, and hands the results over in the order of the pieces. A few pieces per thread are held at a
/// time, so memory is bounded by their results.
pub(crate) fn in_order<S: Send, R: Send>(
    states: &mut [S],
    count: usize,
    work: impl Fn(&mut S, usize) -> R + Sync,
    mut take: impl FnMut(usize, R),
) {
    let Some((only, [])) = states.split_first_mut() else {
        let round = states.len() * 8;
        for from in (0..count).step_by(round.max(1)) {
            let to = (from + round).min(count);
            let next = AtomicUsize::new(from);
            let results: Mutex<Vec<Option<R>>> = Mutex::new((from..to).map(|_| None).collect());
            let (work, shared, next) = (&work, &results, &next);
            std::thread::scope(|scope| {
                for state in states.iter_mut() {
                    scope.spawn(move || {
                        loop {
                            let piece = next.fetch_add(1, Ordering::Relaxed);
                            if piece >= to {
                                break;
                            }
                            let result = work(state, piece);
                            let mut results = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                            results[piece - from] = Some(result);
                        }
                    });
                }
            });
            let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
            for (piece, result) in (from..to).zip(results) {
                if let Some(result) = result {
                    take(piece, result);
                }
            }
        }
        return;
    };
    for piece in 0..count {
        let result = work(only, piece);
        take(piece, result);
    }
}
