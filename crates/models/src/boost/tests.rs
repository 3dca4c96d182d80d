use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use holdfast_types::ErrorKind;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;
use crate::{Feature, FeatureKind, Hessboost, Measure, Scores};

/// Customers whose risk depends on two numbers, one of them often missing, and on a city; `noise` tells nothing.
fn shop(rows: usize, seed: u64) -> (RecordBatch, Vec<bool>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || f32::from(u16::try_from(random.next_u64() >> 48).unwrap()) / 65_536.0;
    let (mut recency, mut spend, mut city, mut noise, mut labels) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rows {
        let days = unit();
        let amount = (unit() > 0.2).then(&mut unit);
        let name =
            ["北京", "上海", "成都", "广州", "武汉", "西安"][usize::from(unit() < 0.5) + 2 * usize::from(unit() < 0.5)];
        let risk = 3.0 * days - 2.0 * amount.unwrap_or(1.5) + if name == "成都" { 1.5 } else { 0.0 } - 0.5;
        labels.push(unit() < 1.0 / (1.0 + (-risk).exp()));
        recency.push(days);
        spend.push(amount);
        city.push(name);
        noise.push(unit());
    }
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("recency", Arc::new(Float32Array::from(recency))),
        ("spend", Arc::new(Float32Array::from(spend))),
        ("city", Arc::new(StringArray::from(city))),
        ("noise", Arc::new(Float32Array::from(noise))),
    ];
    (RecordBatch::try_from_iter(columns).unwrap(), labels)
}

fn parameters() -> Parameters {
    Parameters { rounds: 40, max_depth: 3, subsample: 0.8, column_sample: 0.8, seed: 5, ..Parameters::default() }
}

/// A model of 3,000 customers, and others to judge it by.
fn trained(parameters: &Parameters) -> (Model, Matrix, Vec<bool>) {
    let (batch, labels) = shop(3000, 1);
    let signature = Signature::of(&batch).unwrap();
    let features = signature.matrix(&batch).unwrap();
    let set = TrainingSet { features: &features, labels: &labels, weights: None };
    let trained = Model::fit(&Hessboost, &signature, &set, None, parameters).unwrap();
    assert_eq!(trained.useless, []);
    let (batch, labels) = shop(2000, 2);
    (trained.model, signature.matrix(&batch).unwrap(), labels)
}

fn auc(model: &Model, features: &Matrix, labels: &[bool]) -> f64 {
    let scores = Scores::probabilities(&model.probabilities(features).unwrap(), labels).unwrap();
    scores.measure(Measure::Auc).unwrap().unwrap()
}

#[test]
fn trees_learn_what_there_is() {
    let (model, features, labels) = trained(&parameters());
    let auc = auc(&model, &features, &labels);
    assert!(auc > 0.75, "{auc}");
    let recency: Vec<f64> = features.values().iter().step_by(4).map(|&days| f64::from(days)).collect();
    let baseline = Scores::ranking(&recency, &labels).unwrap().measure(Measure::Auc).unwrap().unwrap();
    assert!(auc > baseline + 0.05, "{auc} beside {baseline}");
}

#[test]
fn the_model_does_not_depend_on_the_number_of_threads() {
    let with = |threads| {
        let parameters = Parameters { threads: NonZeroUsize::new(threads), ..parameters() };
        trained(&parameters).0.write(Format::Ubjson).unwrap()
    };
    let one = with(1);
    assert!(one == with(2) && one == with(4), "other threads, other trees");
    let other = trained(&Parameters { seed: 6, ..parameters() }).0.write(Format::Ubjson).unwrap();
    assert!(one != other, "the seed decides which rows a tree sees");
}

#[test]
fn contributions_sum_to_the_margin() {
    let (model, features, _) = trained(&parameters());
    let margins = model.margins(&features).unwrap();
    let contributions = model.contributions(&features).unwrap();
    for (margin, row) in margins.iter().zip(contributions.chunks_exact(5)) {
        assert!((row.iter().sum::<f32>() - margin).abs() < 1e-5, "{row:?} for {margin}");
    }
    let size = |place: usize| contributions.iter().skip(place).step_by(5).map(|value| value.abs()).sum::<f32>();
    assert!(size(0) > 3.0 * size(3), "recency tells more than noise");
}

#[test]
fn one_row_is_scored_as_in_a_batch() {
    let (model, features, _) = trained(&parameters());
    let batch = model.probabilities(&features).unwrap();
    for (row, expected) in features.values().chunks_exact(4).zip(batch) {
        assert_eq!(model.probability(row).unwrap().to_bits(), expected.to_bits());
    }
    assert!(model.probability(&[0.0; 3]).unwrap_err().to_string().contains("3 values where 4"));
}

#[test]
fn artefacts_come_back_as_they_were() {
    let (model, features, _) = trained(&parameters());
    let expected = model.margins(&features).unwrap();
    for format in [Format::Json, Format::Ubjson] {
        let bytes = model.write(format).unwrap();
        assert_eq!(Format::of(&bytes).unwrap(), format);
        let again = Model::read(&Hessboost, &bytes).unwrap();
        assert_eq!(again.signature(), model.signature(), "names, kinds and categories are in it");
        assert_eq!(again.margins(&features).unwrap(), expected);
        assert_eq!(again.write(format).unwrap(), bytes);
        assert!(Model::read_for(&Hessboost, &bytes, model.signature()).is_ok());
    }
}

#[test]
fn an_artefact_for_other_features_is_refused() {
    let (model, ..) = trained(&parameters());
    let mut features = model.signature().features().to_vec();
    features.swap(0, 1);
    let other = Signature::new(features.clone()).unwrap();
    let bytes = model.write(Format::Ubjson).unwrap();
    let error = Model::read_for(&Hessboost, &bytes, &other).unwrap_err();
    assert!(error.to_string().contains(r#"column 1 is "recency" where "spend" belongs"#), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    features.swap(0, 1);
    features[2].kind = FeatureKind::Category(vec!["上海".to_owned()]);
    let error = Model::read_for(&Hessboost, &bytes, &Signature::new(features.clone()).unwrap()).unwrap_err();
    assert!(error.to_string().contains("other categories"), "{error}");
    features.pop();
    assert!(Model::read_for(&Hessboost, &bytes, &Signature::new(features).unwrap()).is_err());
}

#[test]
fn damaged_artefacts_are_refused_wherever_they_are_cut() {
    let (model, features, _) = trained(&Parameters { rounds: 3, ..parameters() });
    for format in [Format::Json, Format::Ubjson] {
        let bytes = model.write(format).unwrap();
        for cut in (0..bytes.len()).step_by(97).chain([0, 1, bytes.len() - 1]) {
            let error = Model::read(&Hessboost, &bytes[..cut]).expect_err("cut short");
            assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
        }
        // A byte changed: refused, or a model whose answers are numbers or refused; never a panic or NaN.
        for place in (0..bytes.len()).step_by(31) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x55;
            if let Ok(model) = Model::read(&Hessboost, &damaged)
                && let Ok(margins) = model.margins(&features)
            {
                assert!(margins.iter().all(|margin| margin.is_finite()));
            }
        }
    }
    let error = Model::read(&Hessboost, b"\x80\x04\x95 pickle").unwrap_err().to_string();
    assert!(error.contains("pickle"), "{error}");
    let error = Model::read(&Hessboost, b"{}").unwrap_err().to_string();
    assert!(error.contains("neither JSON nor UBJSON"), "{error}");
}

#[test]
fn models_of_other_objectives_are_refused() {
    let (model, ..) = trained(&Parameters { rounds: 2, ..parameters() });
    let text = String::from_utf8(model.write(Format::Json).unwrap()).unwrap();
    let other = text.replace("binary:logistic", "reg:squarederror");
    let error = Model::read(&Hessboost, other.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("its objective is reg:squarederror"), "{error}");
    let unnamed = text.replace(r#"["recency","spend","city","noise"]"#, "[]");
    let error = Model::read(&Hessboost, unnamed.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("does not name its features"), "{error}");
    assert!(Model::read_for(&Hessboost, unnamed.as_bytes(), model.signature()).is_ok());
}

#[test]
fn early_stopping_keeps_the_best_round() {
    let (batch, labels) = shop(400, 3);
    let (held_out, held_out_labels) = shop(400, 4);
    let signature = Signature::of(&batch).unwrap();
    let (features, held_out) = (signature.matrix(&batch).unwrap(), signature.matrix(&held_out).unwrap());
    let train = TrainingSet { features: &features, labels: &labels, weights: None };
    let validation = TrainingSet { features: &held_out, labels: &held_out_labels, weights: None };
    let fit = |rounds, stop_after| {
        let parameters = Parameters { rounds, stop_after, max_depth: 6, learning_rate: 0.3, ..Parameters::default() };
        Model::fit(&Hessboost, &signature, &train, Some(&validation), &parameters).unwrap().model
    };
    let loss = |model: &Model| {
        let scores = Scores::probabilities(&model.probabilities(&held_out).unwrap(), &held_out_labels).unwrap();
        scores.measure(Measure::LogLoss).unwrap().unwrap()
    };
    let best = fit(300, NonZeroUsize::new(10));
    assert!((1..100).contains(&best.rounds()), "{} rounds", best.rounds());
    for rounds in [best.rounds() - 1, best.rounds() + 1, best.rounds() + 9].into_iter().filter(|&rounds| rounds > 0) {
        assert!(loss(&best) <= loss(&fit(rounds, None)) + 1e-9, "{rounds} rounds are better than {}", best.rounds());
    }
    let error = Model::fit(
        &Hessboost,
        &signature,
        &train,
        None,
        &Parameters { stop_after: NonZeroUsize::new(5), ..parameters() },
    );
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidConfig);
}

#[test]
fn weights_count_as_copies_do() {
    let (batch, labels) = shop(500, 7);
    let signature = Signature::of(&batch).unwrap();
    let features = signature.matrix(&batch).unwrap();
    let weights: Vec<f32> = (0_u8..=255).cycle().take(500).map(|row| f32::from(row % 3 + 1)).collect();
    let (mut copies, mut copied_labels) = (Vec::new(), Vec::new());
    for (row, (values, &label)) in features.values().chunks_exact(4).zip(&labels).enumerate() {
        for _ in 0..row % 256 % 3 + 1 {
            copies.extend_from_slice(values);
            copied_labels.push(label);
        }
    }
    let copies = signature.matrix_of(copies).unwrap();
    let parameters = Parameters { rounds: 20, max_depth: 3, bins: 512, ..Parameters::default() };
    let weighted = TrainingSet { features: &features, labels: &labels, weights: Some(&weights) };
    let copied = TrainingSet { features: &copies, labels: &copied_labels, weights: None };
    let one = Model::fit(&Hessboost, &signature, &weighted, None, &parameters).unwrap().model;
    let other = Model::fit(&Hessboost, &signature, &copied, None, &parameters).unwrap().model;
    for (one, other) in one.margins(&features).unwrap().into_iter().zip(other.margins(&features).unwrap()) {
        assert!((one - other).abs() < 1e-3, "{one} and {other}");
    }
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let (batch, labels) = shop(50, 8);
    let signature = Signature::of(&batch).unwrap();
    let features = signature.matrix(&batch).unwrap();
    let fit = |labels: &[bool], weights: Option<&[f32]>, parameters: &Parameters| {
        let set = TrainingSet { features: &features, labels, weights };
        Model::fit(&Hessboost, &signature, &set, None, parameters).map(|trained| trained.model.rounds()).unwrap_err()
    };
    let usual = Parameters::default();
    assert!(fit(&[false; 50], None, &usual).to_string().contains("one class only: all 50 labels are 0"));
    assert!(fit(&labels[1..], None, &usual).to_string().contains("49 values where 50"));
    let mut weights: Vec<f32> = labels.iter().map(|&label| f32::from(u8::from(label))).collect();
    assert!(fit(&labels, Some(&weights), &usual).to_string().contains("one class only"), "no negative row counts");
    weights[3] = -1.0;
    assert!(fit(&labels, Some(&weights), &usual).to_string().contains("row 3 is negative"));
    for wrong in [
        Parameters { rounds: 0, ..Parameters::default() },
        Parameters { learning_rate: f64::NAN, ..Parameters::default() },
        Parameters { max_depth: 0, ..Parameters::default() },
        Parameters { subsample: 0.0, ..Parameters::default() },
        Parameters { column_sample: 1.5, ..Parameters::default() },
        Parameters { bins: 1, ..Parameters::default() },
        Parameters { l2: -1.0, ..Parameters::default() },
        Parameters { positive_weight: 0.0, ..Parameters::default() },
    ] {
        assert_eq!(fit(&labels, None, &wrong).kind(), ErrorKind::InvalidConfig, "{wrong:?}");
    }
}

#[test]
fn features_that_tell_nothing_are_named() {
    let feature = |name: &str| Feature { name: name.to_owned(), kind: FeatureKind::Number };
    let signature =
        Signature::new(vec![feature("empty"), feature("constant"), feature("half"), feature("days")]).unwrap();
    let rows: Vec<[f32; 4]> =
        (0..40_u8).map(|row| [f32::NAN, 7.0, if row % 2 == 0 { 1.0 } else { f32::NAN }, f32::from(row)]).collect();
    let labels: Vec<bool> = (0..40).map(|row| row >= 17).collect();
    let features = signature.matrix_of(rows.concat()).unwrap();
    let set = TrainingSet { features: &features, labels: &labels, weights: None };
    let trained = Model::fit(&Hessboost, &signature, &set, None, &Parameters::default()).unwrap();
    let useless = |feature: &str, why| Useless { feature: feature.to_owned(), why };
    assert_eq!(
        trained.useless,
        [useless("empty", UselessBecause::AllMissing), useless("constant", UselessBecause::Constant)]
    );
    assert!(auc(&trained.model, &features, &labels) > 0.999);
    let contributions = trained.model.contributions(&features).unwrap();
    assert!(contributions.chunks_exact(5).all(|row| row[0].abs() + row[1].abs() < 1e-12));

    let nothing = Signature::new(vec![feature("empty"), feature("constant")]).unwrap();
    let features = nothing.matrix_of([f32::NAN, 7.0].repeat(40)).unwrap();
    let set = TrainingSet { features: &features, labels: &labels, weights: None };
    let error = Model::fit(&Hessboost, &nothing, &set, None, &Parameters::default()).unwrap_err();
    assert!(error.to_string().contains("no feature varies"), "{error}");
}

/// An engine whose trees answer NaN for the second row.
#[derive(Debug)]
struct Broken;

impl Engine for Broken {
    fn fit(
        &self,
        _: &Signature,
        _: &TrainingSet<'_>,
        _: Option<&TrainingSet<'_>>,
        _: &Parameters,
    ) -> Result<Box<dyn Booster>> {
        Ok(Box::new(Self))
    }

    fn read(&self, _: &[u8], _: Format) -> Result<Box<dyn Booster>> {
        Ok(Box::new(Self))
    }

    fn read_lightgbm(&self, _: &[u8]) -> Result<Box<dyn Booster>> {
        Ok(Box::new(Self))
    }
}

impl Booster for Broken {
    fn columns(&self) -> usize {
        4
    }

    fn rounds(&self) -> usize {
        1
    }

    fn margins(&self, features: &Matrix) -> Result<Vec<f32>> {
        Ok((0..features.rows()).map(|row| if row == 1 { f32::NAN } else { 0.0 }).collect())
    }

    fn margin(&self, _: &[f32]) -> Result<f32> {
        Ok(f32::NAN)
    }

    fn contributions(&self, features: &Matrix) -> Result<Vec<f32>> {
        let mut values = vec![0.0; features.rows() * 5];
        values[7] = f32::NAN;
        Ok(values)
    }

    fn write(&self, _: Format) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

#[test]
fn predictions_that_are_no_numbers_get_no_further() {
    let (batch, labels) = shop(50, 9);
    let signature = Signature::of(&batch).unwrap();
    let features = signature.matrix(&batch).unwrap();
    let set = TrainingSet { features: &features, labels: &labels, weights: None };
    let model = Model::fit(&Broken, &signature, &set, None, &Parameters::default()).unwrap().model;
    for error in [
        model.probabilities(&features).unwrap_err(),
        model.contributions(&features).unwrap_err(),
        model.probability(&features.values()[..4]).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::CorruptData);
        assert!(error.to_string().contains("is not a number"), "{error}");
    }
    assert!(model.margins(&features).unwrap_err().to_string().contains("row 1"));
}
