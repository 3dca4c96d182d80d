//! Functions the models need and the standard library does not have.

pub(crate) use libm::lgamma as ln_gamma;

/// Gauss's hypergeometric function ₂F₁(a, b; c; z) for 0 ≤ z < 1, by Euler's transformation (1−z)^(c−a−b) ₂F₁(c−a, c−b; c; z), whose series ends
/// sooner for what is asked here, c − a and c − b being small.
pub(crate) fn hypergeometric(a: f64, b: f64, c: f64, z: f64) -> f64 {
    let (a, b, power) = (c - a, c - b, c - a - b);
    let (mut term, mut sum) = (1.0_f64, 1.0_f64);
    let mut n = 0.0;
    // The ratio of terms nears z: far fewer than this many for any z that horizons give.
    while n < 100_000.0 && term.abs() > 1e-17 * sum.abs() {
        term *= (a + n) * (b + n) / ((c + n) * (n + 1.0)) * z;
        sum += term;
        n += 1.0;
    }
    (1.0 - z).powf(power) * sum
}

/// ln(1 + eᶻ) without overflow.
pub(crate) fn ln_1p_exp(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

/// ln Γ(start + n) for n = 0, 1, …, `most`.
pub(crate) fn ln_gammas(start: f64, most: u32) -> Vec<f64> {
    (0..=most).map(|n| ln_gamma(start + f64::from(n))).collect()
}

/// Nodes and weights of Gauss and Legendre on −1 to 1, of order 12: one half, the other is its mirror image.
const LEGENDRE: [(f64, f64); 6] = [
    (0.125_233_408_511_468_9, 0.249_147_045_813_402_78),
    (0.367_831_498_998_180_2, 0.233_492_536_538_354_8),
    (0.587_317_954_286_617_4, 0.203_167_426_723_065_92),
    (0.769_902_674_194_304_7, 0.160_078_328_543_346_23),
    (0.904_117_256_370_474_9, 0.106_939_325_995_318_43),
    (0.981_560_634_246_719_2, 0.047_175_336_386_511_83),
];

/// ∫ f from `from` to `to` in `panels` panels of twelve nodes.
pub(crate) fn integral(from: f64, to: f64, panels: u32, f: impl Fn(f64) -> f64) -> f64 {
    let half = (to - from) / f64::from(panels) / 2.0;
    let mut sum = 0.0;
    for panel in 0..panels {
        let middle = from + half * f64::from(2 * panel + 1);
        for (node, weight) in LEGENDRE {
            sum += weight * (f(middle - half * node) + f(middle + half * node));
        }
    }
    sum * half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hypergeometric_has_its_closed_forms() {
        // ₂F₁(1, 1; 2; z) = −ln(1−z) ÷ z and ₂F₁(a, b; b; z) = (1−z)^−a (Abramowitz and Stegun 15.1.3, 15.1.8).
        for z in [0.0_f64, 0.1, 0.5, 0.9, 0.99] {
            let logarithm = if z > 0.0 { -(1.0 - z).ln() / z } else { 1.0 };
            assert!((hypergeometric(1.0, 1.0, 2.0, z) / logarithm - 1.0).abs() < 1e-11, "{z}");
            assert!((hypergeometric(2.5, 3.3, 3.3, z) / (1.0 - z).powf(-2.5) - 1.0).abs() < 1e-12, "{z}");
        }
    }

    #[test]
    fn integral_is_exact_for_polynomials() {
        let value = integral(-1.0, 3.0, 2, |x| x.powi(9) - 4.0 * x.powi(3) + 1.0);
        let expected = (3.0_f64.powi(10) - 1.0) / 10.0 - (81.0 - 1.0) + 4.0;
        assert!((value - expected).abs() < 1e-9 * expected, "{value}, not {expected}");
    }
}
