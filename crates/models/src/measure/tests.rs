use super::*;

/// Twelve rows with two ties. The expected values are scikit-learn's (`roc_auc_score`, `average_precision_score`, `brier_score_loss`,
/// `log_loss`) and numpy's (`corrcoef`); the others are worked by hand.
const P: [f64; 12] = [0.95, 0.9, 0.8, 0.8, 0.8, 0.6, 0.55, 0.4, 0.3, 0.3, 0.1, 0.0];
const Y: [u8; 12] = [1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0];

fn labels(y: &[u8]) -> Vec<bool> {
    y.iter().map(|&y| y == 1).collect()
}

#[track_caller]
fn expect(measure: Measure, expected: f64) {
    let value = Scores::probabilities(&P, &labels(&Y)).unwrap().measure(measure).unwrap().unwrap();
    assert!((value - expected).abs() < 1e-12, "{}: {value}, not {expected}", measure.name());
}

#[test]
fn measures_equal_scikit_learns() {
    expect(Measure::Auc, 0.819_444_444_444_444_5);
    expect(Measure::PrAuc, 0.819_047_619_047_619);
    expect(Measure::Brier, 0.170_416_666_666_666_66);
    expect(Measure::LogLoss, 0.491_945_037_118_846_46);
    expect(Measure::PointBiserial, 0.571_759_408_623_196_6);
    expect(Measure::Accuracy { threshold: 0.5 }, 0.75);
}

#[test]
fn measures_equal_what_is_worked_by_hand() {
    expect(Measure::BrierSkill, 1.0 - 0.170_416_666_666_666_66 / 0.25);
    // Three rows: both first ones, and a third of the tie of three that holds two positives.
    expect(Measure::Lift { share: 0.25 }, (2.0 + 2.0 / 3.0) / 3.0 / 0.5);
    expect(Measure::Recall { share: 0.25 }, (2.0 + 2.0 / 3.0) / 6.0);
    expect(Measure::Lift { share: 1.0 }, 1.0);
    expect(Measure::Precision { threshold: 0.7 }, 0.8);
    expect(Measure::Flagged { threshold: 0.7 }, 5.0 / 12.0);
    // Bins of four rows: |3.45 − 10/3|, |2.35 − 5/3|, |0.7 − 1|.
    expect(Measure::Ece { bins: 3 }, ((3.45 - 10.0 / 3.0) + (2.35 - 5.0 / 3.0) + 0.3) / 12.0);
}

#[test]
fn the_order_of_rows_means_nothing() {
    let mut rows: Vec<(f64, u8)> = P.into_iter().zip(Y).collect();
    rows.reverse();
    rows.swap(2, 7);
    let (p, y): (Vec<f64>, Vec<u8>) = rows.into_iter().unzip();
    let (one, other) =
        (Scores::probabilities(&P, &labels(&Y)).unwrap(), Scores::probabilities(&p, &labels(&y)).unwrap());
    for measure in Measure::USUAL {
        assert_eq!(one.measure(measure).unwrap(), other.measure(measure).unwrap(), "{}", measure.name());
    }
}

#[test]
fn deciles_of_a_calibrated_score_correlate_where_rows_do_not() {
    // Per hundred rows of probability p, 100 p positives.
    let (mut p, mut y) = (Vec::new(), Vec::new());
    for percent in 1..100_u32 {
        for row in 0..100 {
            p.push(f64::from(percent) / 100.0);
            y.push(row < percent);
        }
    }
    let scores = Scores::probabilities(&p, &y).unwrap();
    let value = |measure| scores.measure(measure).unwrap().unwrap();
    assert!((value(Measure::DecileCorrelation) - 1.0).abs() < 1e-9);
    // Var(p) ÷ (sd(p) · sd(y)) = sd(p) ÷ 0.5, with sd(p) = sqrt((99² − 1) ÷ 12) ÷ 100.
    let expected = ((99.0_f64.powi(2) - 1.0) / 12.0).sqrt() / 100.0 / 0.5;
    assert!((value(Measure::PointBiserial) - expected).abs() < 1e-9);
    assert!(value(Measure::Ece { bins: 10 }) < 1e-9);
}

#[test]
fn one_score_for_all_ranks_nobody() {
    let scores = Scores::probabilities(&[0.4; 5], &labels(&[1, 0, 0, 1, 0])).unwrap();
    assert_eq!(scores.measure(Measure::Auc).unwrap(), Some(0.5));
    assert_eq!(scores.measure(Measure::PrAuc).unwrap(), Some(0.4));
    assert_eq!(scores.measure(Measure::PointBiserial).unwrap(), None);
    assert_eq!(scores.measure(Measure::DecileCorrelation).unwrap(), None);
    assert_eq!(scores.measure(Measure::Precision { threshold: 0.7 }).unwrap(), None);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    use holdfast_types::ErrorKind;
    let error = Scores::probabilities(&[0.1, 0.2], &[true, true]).unwrap_err();
    assert!(error.to_string().contains("one class only"), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(Scores::probabilities(&[], &[]).unwrap_err().to_string().contains("empty"));
    assert!(Scores::probabilities(&[0.1], &[true, false]).unwrap_err().to_string().contains("needed"));
    for wrong in [f64::NAN, 1.5, -0.1] {
        let error = Scores::probabilities(&[0.1, wrong], &[true, false]).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
    }
    assert!(Scores::ranking(&[0.1, f64::INFINITY], &[true, false]).is_err());
    let scores = Scores::ranking(&[0.1, 3.0], &[true, false]).unwrap();
    assert_eq!(scores.measure(Measure::Brier).unwrap(), None);
    for wrong in [Measure::Lift { share: 0.0 }, Measure::Ece { bins: 0 }, Measure::Precision { threshold: 2.0 }] {
        assert_eq!(scores.measure(wrong).unwrap_err().kind(), ErrorKind::InvalidConfig);
    }
}
