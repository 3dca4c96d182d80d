//! Published estimates where the public data set is there, and what must hold for customers made by the models themselves.

use std::collections::HashMap;

use super::special::ln_gamma;
use super::*;
use crate::ModelError;
use crate::testing::{Dice, data};

/// CLVTools' estimates for CDNOW, in weeks.
const BG: BgNbd = BgNbd { r: 0.242_594_5, alpha: 4.413_601_9, a: 0.792_919_9, b: 2.425_888_1 };
/// Fader, Hardie and Lee (2005), table 2.
const PARETO: ParetoNbd = ParetoNbd { r: 0.553, alpha: 10.578, s: 0.606, beta: 11.669 };

#[track_caller]
fn near(value: f64, expected: f64, by: f64) {
    assert!((value - expected).abs() <= by, "{value}, not {expected}");
}

/// CDNOW's first customer: two repeats, the last after 30.43 of 38.86 weeks.
fn first() -> History {
    History::new(2, 30.43, 38.86, 0).unwrap()
}

#[test]
fn expectations_equal_the_published_ones() {
    near(BG.expected_purchases(&first(), 39.0), 1.2259, 5e-5);
    near(BG.alive(&first()), 0.7266, 5e-5);
    near(PARETO.expected_purchases(&first(), 39.0), 1.455, 1e-3);
    near(PARETO.alive(&first()), 0.869, 1e-3);
}

#[test]
fn cdnow_gives_the_published_estimates() {
    let Some(path) = data("cdnow", "cdnow_customers_summary.csv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let cohort = Cohort::new(text.lines().skip(1).enumerate().map(|(row, line)| {
        let cells: Vec<&str> = line.split(',').collect();
        History::new(cells[1].parse().unwrap(), cells[2].parse().unwrap(), cells[3].parse().unwrap(), row).unwrap()
    }));
    let cohort = cohort.unwrap();
    near(cohort.customers(), 2357.0, 0.0);

    let fit = BgNbd::fit(&cohort).unwrap();
    for (value, expected) in fit.model.parameters().into_iter().zip(BG.parameters()) {
        near(value, expected, 1e-3);
    }
    near(fit.log_likelihood, -9582.4256, 0.01);

    let fit = ParetoNbd::fit(&cohort).unwrap();
    near(fit.log_likelihood, -9594.974, 0.01);
}

#[test]
fn cdnow_amounts_give_the_published_estimates() {
    let Some(path) = data("cdnow", "cdnow_customers_summary_with_transactions.csv") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let spends = text.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.split(',').collect();
        Spend { repeats: cells[1].parse().unwrap(), mean: cells[4].parse().unwrap() }
    });
    let spends: Vec<Spend> = spends.collect();
    let (model, log_likelihood) = GammaGamma::fit(&spends).unwrap();
    near(model.p, 6.2488, 1e-3);
    near(model.q, 3.7446, 1e-3);
    near(model.v, 15.4477, 1e-3);
    near(log_likelihood, -4055.92, 0.01);
    near(model.expected_amount(&Spend { repeats: 0, mean: 0.0 }), 35.2, 0.05);
    for (spend, expected) in spends.iter().zip([24.66, 18.91, 35.17, 35.17, 35.17]) {
        near(model.expected_amount(spend), expected, 0.01);
    }
    near(GammaGamma::correlation(&spends).unwrap(), 0.11, 0.01);
}

/// Weeks from the first day of 1997; 1997 and 1998 had no leap day.
fn week(date: &str) -> f64 {
    let number = |range: std::ops::Range<usize>| -> usize { date[range].parse().unwrap() };
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][number(4..6) - 1];
    ((number(0..4) - 1997) * 365 + before + number(6..8) - 1) as f64 / 7.0
}

#[test]
fn cdnow_held_out_purchases_correlate_as_published() {
    let Some(path) = data("cdnow", "CDNOW_sample.txt") else { return };
    let text = std::fs::read_to_string(path).unwrap();
    let mut purchases: HashMap<&str, Vec<f64>> = HashMap::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split_whitespace().collect();
        purchases.entry(cells[1]).or_default().push(week(cells[2]));
    }
    let end = week("19970930");
    let mut histories = Vec::new();
    let mut later = Vec::new();
    for (row, weeks) in purchases.values_mut().enumerate() {
        weeks.sort_by(f64::total_cmp);
        weeks.dedup();
        let known = weeks.partition_point(|&week| week <= end);
        let (repeats, last) = (u32::try_from(known - 1).unwrap(), weeks[known - 1] - weeks[0]);
        histories.push(History::new(repeats, last, end - weeks[0], row).unwrap());
        later.push((weeks.len() - known) as f64);
    }
    let cohort = Cohort::new(histories.iter().copied()).unwrap();
    let bg = BgNbd::fit(&cohort).unwrap();
    near(bg.log_likelihood, -9582.429, 0.01);
    let correlation = |expected: Vec<f64>| {
        crate::measure::pearson(&expected.into_iter().zip(later.iter().copied()).collect::<Vec<_>>()).unwrap()
    };
    let expected = |of: &dyn Fn(&History) -> f64| correlation(histories.iter().map(of).collect());
    near(expected(&|history| bg.model.expected_purchases(history, 39.0)), 0.626, 0.005);
    // Times are exact here, as they were for the published estimates; in the file of summaries they are cut to two decimals.
    let pareto = ParetoNbd::fit(&cohort).unwrap().model;
    for (value, expected) in pareto.parameters().into_iter().zip(PARETO.parameters()) {
        near(value, expected, 1e-3);
    }
    for (value, expected) in bg.model.parameters().into_iter().zip(BG.parameters()) {
        near(value, expected, 1e-3);
    }
    near(expected(&|history| pareto.expected_purchases(history, 39.0)), 0.630, 0.005);

    // Churn as labels have it: no purchase in the next 13 weeks.
    let quiet = purchases.values().filter(|weeks| !weeks.iter().any(|&week| week > end && week <= end + 13.0)).count();
    let said = histories.iter().map(|history| bg.model.no_purchase(history, 13.0)).sum::<f64>();
    near(said / 2357.0, quiet as f64 / 2357.0, 0.04);
}

/// The likelihood by ₂F₁, as the literature has it, in plain series: for few purchases they agree.
#[test]
fn the_integral_is_what_the_literature_writes_with_a_series() {
    let f = |a: f64, b: f64, c: f64, z: f64| {
        let (mut term, mut sum) = (1.0, 1.0);
        for n in (0..5000).map(f64::from) {
            term *= (a + n) * (b + n) / (c + n) / (n + 1.0) * z;
            sum += term;
        }
        sum
    };
    for (x, last, observed) in
        [(0, 0.0, 38.86), (1, 1.71, 38.86), (2, 30.43, 38.86), (7, 29.43, 38.86), (26, 30.86, 31.0), (12, 3.0, 50.0)]
    {
        let ParetoNbd { r, alpha, s, beta } = PARETO;
        let n = f64::from(x);
        // Equation for alpha ≤ beta (Fader and Hardie, "A note on deriving the Pareto/NBD model", 2005).
        let a0 = |t: f64| {
            let z = (beta - alpha) / (beta + t);
            f(r + s + n, r + n, r + s + n + 1.0, z) / (beta + t).powf(r + s + n)
        };
        let silent = (alpha + observed).powf(-(r + n)) * (beta + observed).powf(-s);
        let whole = silent + s / (r + s + n) * (a0(last) - a0(observed));
        let expected = ln_gamma(r + n) - ln_gamma(r) + r * alpha.ln() + s * beta.ln() + whole.ln();
        let history = History::new(x, last, observed, 0).unwrap();
        let cohort = Cohort::new([history]).unwrap();
        near(PARETO.log_likelihood(&cohort), expected, 1e-8 * expected.abs());
        near(PARETO.alive(&history), silent / whole, 1e-8);
    }
}

/// A customer made by a model: purchases within 39 and 52 weeks of the first.
fn simulate(dice: &mut Dice, rate: f64, mut lives_on: impl FnMut(&mut Dice, f64) -> bool) -> (History, u32) {
    let (mut now, mut repeats, mut last, mut later) = (0.0, 0, 0.0, 0);
    loop {
        now += dice.exponential(rate);
        if now > 52.0 || !lives_on(dice, now) {
            break;
        }
        if now <= 39.0 {
            repeats += 1;
            last = now;
        } else {
            later += 1;
        }
    }
    (History::new(repeats, last, 39.0, 0).unwrap(), later)
}

fn bg_customers(count: usize, seed: u64) -> Vec<(History, u32)> {
    let mut dice = Dice::new(seed);
    let customers = (0..count).map(|_| {
        let rate = dice.gamma(BG.r, BG.alpha);
        let stops = dice.beta(BG.a, BG.b);
        let mut alive = true;
        simulate(&mut dice, rate, |dice, _| {
            let was = alive;
            alive = alive && dice.unit() > stops;
            was
        })
    });
    customers.collect()
}

fn pareto_customers(count: usize, seed: u64) -> Vec<(History, u32)> {
    let mut dice = Dice::new(seed);
    let customers = (0..count).map(|_| {
        let rate = dice.gamma(PARETO.r, PARETO.alpha);
        let death = dice.gamma(PARETO.s, PARETO.beta);
        let life = dice.exponential(death);
        simulate(&mut dice, rate, |_, now| now < life)
    });
    customers.collect()
}

/// What the model expects of its own customers comes true, also among those with equally many repeats.
#[track_caller]
fn comes_true<M: RepeatBuying>(model: &M, customers: &[(History, u32)]) {
    for repeats in [0..=0, 1..=1, 2..=4, 5..=u32::MAX] {
        let group = || customers.iter().filter(|(history, _)| repeats.contains(&history.repeats));
        let count = group().count() as f64;
        let expected = group().map(|(history, _)| model.expected_purchases(history, 13.0)).sum::<f64>() / count;
        let bought = group().map(|(_, later)| f64::from(*later)).sum::<f64>() / count;
        near(expected, bought, 0.04 * bought + 0.004);
        let expected = group().map(|(history, _)| model.no_purchase(history, 13.0)).sum::<f64>() / count;
        let quiet = group().filter(|(_, later)| *later == 0).count() as f64 / count;
        near(expected, quiet, 0.01);
    }
    let of_new = customers.iter().map(|(history, _)| f64::from(history.repeats)).sum::<f64>() / customers.len() as f64;
    near(model.expected_of_new(39.0), of_new, 0.03 * of_new);
}

#[test]
fn what_is_expected_of_customers_comes_true() {
    comes_true(&BG, &bg_customers(200_000, 1));
    comes_true(&PARETO, &pareto_customers(200_000, 2));
}

#[test]
fn parameters_are_found_again_and_the_covariance_says_how_nearly() {
    let histories = bg_customers(20_000, 3).into_iter().map(|(history, _)| history);
    let fit = BgNbd::fit(&Cohort::new(histories).unwrap()).unwrap();
    let covariance = fit.covariance.unwrap();
    for (place, (value, truth)) in fit.model.parameters().into_iter().zip(BG.parameters()).enumerate() {
        let error = covariance[place][place].sqrt();
        assert!(error < 0.2, "{}: {error}", BgNbd::NAMES[place]);
        near((value / truth).ln(), 0.0, 3.5 * error);
    }
    let histories = pareto_customers(4000, 4).into_iter().map(|(history, _)| history);
    let fit = ParetoNbd::fit(&Cohort::new(histories).unwrap()).unwrap();
    let covariance = fit.covariance.unwrap();
    for (place, (value, truth)) in fit.model.parameters().into_iter().zip(PARETO.parameters()).enumerate() {
        near((value / truth).ln(), 0.0, 3.5 * covariance[place][place].sqrt());
    }
}

#[test]
fn customers_who_buy_all_the_time_overflow_nothing() {
    for history in
        [History::new(5000, 10.0, 500.0, 0), History::new(5000, 499.9, 500.0, 0), History::new(1, 1e-6, 1e6, 0)]
    {
        let history = history.unwrap();
        let cohort = Cohort::new([history]).unwrap();
        for value in [
            BG.log_likelihood(&cohort),
            BG.alive(&history),
            BG.expected_purchases(&history, 39.0),
            BG.no_purchase(&history, 39.0),
            PARETO.log_likelihood(&cohort),
            PARETO.alive(&history),
            PARETO.expected_purchases(&history, 39.0),
            PARETO.no_purchase(&history, 39.0),
        ] {
            assert!(value.is_finite(), "{history:?}: {value}");
        }
        for value in [BG.no_purchase(&history, 39.0), PARETO.no_purchase(&history, 39.0)] {
            assert!((0.0..=1.0).contains(&value), "{history:?}: {value}");
        }
    }
}

#[test]
fn limits_where_formulas_divide_by_zero() {
    let at = |a| BgNbd { a, ..BG }.expected_purchases(&first(), 39.0);
    near(at(1.0), 0.5 * (at(0.999) + at(1.001)), 1e-5);
    let at = |s| ParetoNbd { s, ..PARETO }.expected_purchases(&first(), 39.0);
    near(at(1.0), 0.5 * (at(0.999) + at(1.001)), 1e-5);
}

#[test]
fn the_value_is_purchases_times_amount_discounted() {
    let amounts = GammaGamma { p: 6.25, q: 3.74, v: 15.44 };
    let spend = Spend { repeats: 2, mean: 22.35 };
    let horizon = Horizon { periods: 3, period: 13.0, discount: 0.03, margin: 0.4 };
    let value = lifetime_value(&BG, &amounts, &first(), &spend, &horizon).unwrap();
    let amount = 6.25 * (15.44 + 2.0 * 22.35) / (6.25 * 2.0 + 3.74 - 1.0);
    near(value.amount, amount, 1e-9);
    let until = [0.0, 13.0, 26.0, 39.0].map(|time| BG.expected_purchases(&first(), time));
    near(value.purchases, until[3], 1e-12);
    let discounted = (1..=3_u32).map(|period| {
        let place = period as usize;
        (until[place] - until[place - 1]) / 1.03_f64.powi(i32::try_from(period).unwrap())
    });
    near(value.value, 0.4 * amount * discounted.sum::<f64>(), 1e-9);
    for wrong in [
        Horizon { periods: 0, ..horizon },
        Horizon { period: 0.0, ..horizon },
        Horizon { discount: -1.0, ..horizon },
        Horizon { margin: f64::NAN, ..horizon },
    ] {
        let error = lifetime_value(&BG, &amounts, &first(), &spend, &wrong).unwrap_err();
        assert!(matches!(error, ModelError::Parameter { .. }), "{error}");
    }
    let endless = GammaGamma { q: 0.9, ..amounts };
    let unknown = Spend { repeats: 0, mean: 0.0 };
    assert!(lifetime_value(&BG, &endless, &first(), &unknown, &horizon).unwrap_err().to_string().contains("q = 0.9"));
}

/// The interval from the information matrix beside that of fitting resampled customers again.
#[test]
fn intervals_of_the_total_equal_those_of_resampling() {
    let histories: Vec<History> = bg_customers(4000, 5).into_iter().map(|(history, _)| history).collect();
    let horizon = Horizon { periods: 1, period: 39.0, discount: 0.0, margin: 1.0 };
    let customers: Vec<(History, f64)> = histories.iter().map(|&history| (history, 1.0)).collect();
    let fit = BgNbd::fit(&Cohort::new(histories.iter().copied()).unwrap()).unwrap();
    let total = total_value(&fit, &customers, &horizon, 400, 1).unwrap();
    assert!(total.low < total.value && total.value < total.high, "{total:?}");
    assert_eq!(total_value(&fit, &customers, &horizon, 400, 1).unwrap(), total);

    let mut dice = Dice::new(6);
    let mut totals: Vec<f64> = (0..80)
        .map(|_| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "below the number of histories"
            )]
            let drawn = histories.iter().map(|_| histories[(dice.unit() * histories.len() as f64) as usize]);
            let model = BgNbd::fit(&Cohort::new(drawn.collect::<Vec<_>>()).unwrap()).unwrap().model;
            histories.iter().map(|history| model.expected_purchases(history, 39.0)).sum()
        })
        .collect();
    totals.sort_by(f64::total_cmp);
    let resampled = totals[77] - totals[2];
    let ratio = (total.high - total.low) / resampled;
    assert!((0.7..1.4).contains(&ratio), "{} beside {resampled}", total.high - total.low);
}

#[test]
fn customers_that_cannot_be_are_refused() {
    for (repeats, last, observed, because) in [
        (0, 1.0, 5.0, "no repeat"),
        (1, 0.0, 5.0, "purchases of one day are one"),
        (1, 6.0, 5.0, "after the end"),
        (1, f64::NAN, 5.0, "not finite"),
        (0, 0.0, -1.0, "after the end"),
    ] {
        let error = History::new(repeats, last, observed, 4).unwrap_err().to_string();
        assert!(error.contains(because) && error.contains("row 4"), "{error}");
    }
    assert!(matches!(Cohort::new([]), Err(ModelError::Empty { .. })));
    let never = Cohort::new([History::new(0, 0.0, 9.0, 0).unwrap(); 20]).unwrap();
    assert!(BgNbd::fit(&never).unwrap_err().to_string().contains("no customer has bought twice"));
    let refund = [Spend { repeats: 1, mean: -3.0 }];
    assert!(GammaGamma::fit(&refund).unwrap_err().to_string().contains("row 0"));
    let alike = [Spend { repeats: 1, mean: 3.0 }; 50];
    assert!(matches!(GammaGamma::fit(&alike), Err(ModelError::NotConverged { .. })));
}
