use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::rnn::{LSTMConfig, RNN, lstm};
use candle_nn::{VarBuilder, VarMap};
use holdfast_types::ErrorKind;

use super::network::Inputs;
use super::*;
use crate::testing::{Dice, say};
use crate::{Measure, Scores};

/// Customers who once complained and once got a refund, at two of twelve weeks, among noise; those whose complaint came first leave, but for one in
/// twenty. Sums, means, extremes and deviations of every channel are alike in both classes: order alone tells them apart.
pub(crate) fn complaints_and_refunds(rows: usize, seed: u64) -> (Sequences, Vec<bool>) {
    let (steps, mut dice) = (12, Dice::new(seed));
    let mut values = Vec::new();
    let mut labels = Vec::new();
    for _ in 0..rows {
        let one = place(&mut dice, steps);
        let other = (one + 1 + place(&mut dice, steps - 1)) % steps;
        let mut row = vec![0.0_f32; steps * 3];
        row[one * 3] = 1.0;
        row[other * 3 + 1] = 1.0;
        for step in 0..steps {
            row[step * 3 + 2] = place(&mut dice, 4) as f32;
        }
        values.extend(row);
        labels.push((one < other) != (dice.unit() < 0.05));
    }
    let channels = ["complaints", "refunds", "visits"].map(str::to_owned).to_vec();
    (Sequences::dense(channels, steps, values, None).unwrap(), labels)
}

fn place(dice: &mut Dice, below: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place")]
    let place = (dice.unit() * below as f64) as usize;
    place
}

pub(crate) fn quick() -> SequenceParameters {
    SequenceParameters { hidden: 16, batch: 128, learning_rate: 0.02, epochs: 40, seed: 3, ..Default::default() }
}

fn fit(sequences: &Sequences, labels: &[bool], parameters: &SequenceParameters) -> Result<TrainedSequence> {
    let set = SequenceTrainingSet { sequences, labels, groups: None };
    SequenceModel::fit(&set, parameters, &mut |_| {})
}

fn known(probabilities: Vec<Option<f64>>) -> Vec<f64> {
    probabilities.into_iter().map(Option::unwrap).collect()
}

fn auc(probabilities: &[f64], labels: &[bool]) -> f64 {
    Scores::probabilities(probabilities, labels).unwrap().measure(Measure::Auc).unwrap().unwrap()
}

#[test]
fn what_only_the_order_tells_is_learned() {
    let (train, labels) = complaints_and_refunds(2000, 1);
    let (test, truth) = complaints_and_refunds(1000, 2);
    let mut heard = Vec::new();
    let set = SequenceTrainingSet { sequences: &train, labels: &labels, groups: None };
    let trained = SequenceModel::fit(&set, &quick(), &mut |epoch| heard.push(*epoch)).unwrap();
    let auc = auc(&known(trained.model.probabilities(&test).unwrap()), &truth);
    say(&format!("AUC {auc:.4}, best of {} epochs is {}", heard.len(), trained.model.epochs()));
    assert!(auc > 0.92, "one label in twenty is wrong, so that 0.95 is the ceiling: {auc}");
    assert_eq!(heard, trained.epochs);
    let best = heard.iter().min_by(|one, other| one.held_out_log_loss.total_cmp(&other.held_out_log_loss)).unwrap();
    assert!(best.best && best.epoch == trained.model.epochs(), "the best epoch's weights are kept");
    assert_eq!((trained.useless.len(), trained.without_steps), (0, 0));
}

#[test]
fn a_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let (train, labels) = complaints_and_refunds(400, 4);
    // 300 rows are no multiple of the rows that are worked on together, and 70 units make products large enough for the library's threads.
    for hidden in [8, 70] {
        let with = |threads, seed| {
            let threads = NonZeroUsize::new(threads);
            let parameters = SequenceParameters { hidden, epochs: 2, batch: 300, threads, seed, ..quick() };
            let model = fit(&train, &labels, &parameters).unwrap().model;
            (model.write().unwrap().weights, model.margins(&train).unwrap())
        };
        let one = with(1, 3);
        assert!(one == with(2, 3) && one == with(3, 3), "{hidden} units: other threads, other weights");
        assert!(one.0 != with(1, 4).0, "{hidden} units: the seed decides");
    }
}

/// The library's own LSTM and log-loss, step by step, as PyTorch's are: forward and derivative.
#[test]
fn the_network_is_the_librarys_lstm() {
    let (channels, hidden, rows, steps) = (3, 5, 6, 7);
    let mut dice = Dice::new(9);
    #[expect(clippy::cast_possible_truncation, reason = "made-up values")]
    let values: Vec<f32> = (0..rows * steps * channels).map(|_| dice.normal() as f32).collect();
    let names = (0..channels).map(|channel| format!("c{channel}")).collect();
    let sequences = Sequences::dense(names, steps, values, None).unwrap();
    let labels = [true, false, true, true, false, false];
    let parameters = SequenceParameters { hidden, logarithm: false, ..quick() };
    let network = Network::random(channels, &parameters, 0.4).unwrap();
    let scale = Scale { logarithm: false, mean: vec![0.0; channels], factor: vec![1.0; channels] };
    let all: Vec<usize> = (0..rows).collect();
    let ours = network.forward(&Inputs::new(&scale, &sequences, &all).unwrap(), None).unwrap();
    let targets = Tensor::new(labels.map(|label| f32::from(u8::from(label))).as_slice(), &Device::Cpu).unwrap();
    let loss = |margins: &Tensor| {
        let margins = margins.flatten_all().unwrap();
        candle_nn::loss::binary_cross_entropy_with_logit(&margins, &targets).unwrap()
    };
    let gradients = loss(&ours).backward().unwrap();

    let variables = VarMap::new();
    let builder = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let reference = lstm(channels, hidden, LSTMConfig::default(), builder.pp("lstm")).unwrap();
    let set = |name: &str, values: &Tensor| variables.data().lock().unwrap()[name].set(values).unwrap();
    set("lstm.weight_ih_l0", network.of_input.as_tensor());
    set("lstm.weight_hh_l0", network.of_state.as_tensor());
    set("lstm.bias_ih_l0", &network.bias.as_tensor().flatten_all().unwrap());
    let block = Tensor::from_slice(&sequences_values(&sequences), (rows, steps, channels), &Device::Cpu).unwrap();
    let last = reference.seq(&block).unwrap().pop().unwrap();
    let head = network.head.as_tensor().detach().t().unwrap();
    let theirs = last.h().matmul(&head).unwrap().broadcast_add(&network.head_bias.as_tensor().detach()).unwrap();
    let apart = |one: &Tensor, other: &Tensor| {
        let [one, other] = [one, other].map(|tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        one.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
    };
    assert!(apart(&ours, &theirs) < 2e-6, "{}", apart(&ours, &theirs));
    let of_theirs = loss(&theirs).backward().unwrap();
    for (ours, theirs) in
        [(&network.of_input, "weight_ih_l0"), (&network.of_state, "weight_hh_l0"), (&network.bias, "bias_ih_l0")]
    {
        let variable: Var = variables.data().lock().unwrap()[&format!("lstm.{theirs}")].clone();
        let apart = apart(gradients.get(ours).unwrap(), of_theirs.get(&variable).unwrap());
        assert!(apart < 2e-6, "{theirs}: {apart}");
    }
}

fn sequences_values(sequences: &Sequences) -> Vec<f32> {
    let steps = (0..sequences.rows()).flat_map(|row| (0..sequences.steps()).map(move |step| (row, step)));
    steps.flat_map(|(row, step)| sequences.step(row, step).to_vec()).collect()
}

#[test]
fn absent_steps_are_as_if_they_were_not() {
    let (train, labels) = complaints_and_refunds(300, 5);
    let model = fit(&train, &labels, &SequenceParameters { epochs: 2, ..quick() }).unwrap().model;
    // The same five steps at the end, at the beginning, and with gaps of rubbish between them.
    let five: Vec<f32> = sequences_values(&train)[..15].to_vec();
    let laid_out = |places: [usize; 5]| {
        let (mut values, mut present) = (vec![f32::NAN; 36], vec![false; 12]);
        for (step, place) in places.into_iter().enumerate() {
            values[place * 3..][..3].copy_from_slice(&five[step * 3..][..3]);
            present[place] = true;
        }
        (values, present)
    };
    let rows = [[7, 8, 9, 10, 11], [0, 1, 2, 3, 4], [1, 4, 5, 9, 11]].map(laid_out);
    let values = rows.iter().flat_map(|(values, _)| values.clone()).collect();
    let present = rows.iter().flat_map(|(_, present)| present.clone()).collect();
    let sequences = Sequences::dense(train.channels().to_vec(), 12, values, Some(present)).unwrap();
    let margins = model.margins(&sequences).unwrap();
    assert!(margins[0] == margins[1] && margins[0] == margins[2], "{margins:?}");
}

#[test]
fn a_row_is_scored_alone_as_among_others() {
    let (train, labels) = complaints_and_refunds(200, 6);
    let model = fit(&train, &labels, &SequenceParameters { epochs: 1, ..quick() }).unwrap().model;
    let together = model.margins(&train).unwrap();
    for rows in [vec![0], vec![17, 3], vec![5; 3], (40..130).collect(), vec![199]] {
        let alone = model.margins(&train.take(&rows).unwrap()).unwrap();
        let expected: Vec<Option<f32>> = rows.iter().map(|&row| together[row]).collect();
        assert_eq!(alone, expected, "{} rows", rows.len());
    }
}

#[test]
fn rows_without_a_step_have_no_probability() {
    let (train, labels) = complaints_and_refunds(120, 7);
    let mut present = vec![true; 120 * 12];
    present[..24].fill(false);
    let some = Sequences::dense(train.channels().to_vec(), 12, sequences_values(&train), Some(present)).unwrap();
    let trained = fit(&some, &labels, &SequenceParameters { epochs: 1, ..quick() }).unwrap();
    assert_eq!(trained.without_steps, 2);
    let probabilities = trained.model.probabilities(&some).unwrap();
    assert_eq!(probabilities.iter().position(Option::is_some), Some(2));

    let none = Sequences::dense(vec!["visits".to_owned()], 12, vec![0.0; 480], Some(vec![false; 480])).unwrap();
    let error = fit(&none, &labels[..40], &quick()).unwrap_err();
    assert!(matches!(error, ModelError::Empty { .. }), "{error}");
}

#[test]
fn scales_are_learned_from_training_rows_alone() {
    let values = vec![1.0, 5.0, 3.0, 5.0, 1000.0, 7.0];
    let channels = ["spend", "shop"].map(str::to_owned).to_vec();
    let sequences = Sequences::dense(channels, 1, values, None).unwrap();
    let (scale, useless) = Scale::fit(&sequences, &[0, 1], false).unwrap();
    assert!(scale.mean == [2.0, 5.0] && scale.factor == [1.0, 0.0], "{scale:?}");
    assert_eq!(useless.iter().map(|useless| &*useless.feature).collect::<Vec<_>>(), ["shop"]);
    assert!(scale.apply(0, 1000.0) <= 8.0, "an outlier does not carry a row away");
    assert!(scale.apply(1, 7.0).abs() < f32::MIN_POSITIVE, "what did not vary in training tells nothing later");
    let (logarithm, _) = Scale::fit(&sequences, &[0, 1, 2], true).unwrap();
    assert!(logarithm.apply(0, 0.0) < 0.0 && (logarithm.apply(0, -2.0) < logarithm.apply(0, -1.0)));
}

#[test]
fn stored_models_come_back_or_are_refused() {
    let (train, labels) = complaints_and_refunds(150, 8);
    let model = fit(&train, &labels, &SequenceParameters { epochs: 2, ..quick() }).unwrap().model;
    let artefact = model.write().unwrap();
    let again = SequenceModel::read(&artefact).unwrap();
    assert_eq!(again.write().unwrap(), artefact);
    assert_eq!(again.margins(&train).unwrap(), model.margins(&train).unwrap());
    assert_eq!((again.epochs(), again.parameters()), (model.epochs(), model.parameters()));
    let json: serde_json::Value = serde_json::from_slice(&artefact.signature).unwrap();
    assert_eq!(json["signature"]["channels"], serde_json::json!(["complaints", "refunds", "visits"]));

    let refused = |artefact: &SequenceArtefact, what: &str| {
        let error = SequenceModel::read(artefact).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{what}: {error}");
    };
    for (what, length) in [("weights", artefact.weights.len()), ("signature", artefact.signature.len())] {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut artefact = artefact.clone();
            change(if what == "weights" { &mut artefact.weights } else { &mut artefact.signature });
            artefact
        };
        for place in (0..length).step_by(41) {
            refused(&with(&|bytes| bytes.truncate(place)), &format!("{what} cut at {place}"));
            refused(&with(&|bytes| bytes[place] ^= 1), &format!("{what} changed at {place}"));
        }
    }
    let other = fit(&train, &labels, &SequenceParameters { epochs: 1, seed: 99, ..quick() }).unwrap().model;
    let mixed = SequenceArtefact { weights: other.write().unwrap().weights, ..artefact };
    let error = SequenceModel::read(&mixed).unwrap_err().to_string();
    assert!(error.contains("another model's"), "{error}");
}

/// A signature is right about itself and wrong about the weights: shapes are looked at, too.
#[test]
fn weights_of_another_shape_are_refused() {
    let (train, labels) = complaints_and_refunds(150, 8);
    let model = fit(&train, &labels, &SequenceParameters { epochs: 1, ..quick() }).unwrap().model;
    let artefact = SequenceModel { parameters: SequenceParameters { hidden: 17, ..quick() }, ..model }.write();
    assert!(artefact.is_err() || SequenceModel::read(&artefact.unwrap()).is_err());
}

#[test]
fn sequences_of_other_channels_or_steps_are_refused() {
    let (train, labels) = complaints_and_refunds(150, 10);
    let model = fit(&train, &labels, &SequenceParameters { epochs: 1, ..quick() }).unwrap().model;
    let refused = |channels: &[&str], steps: usize, because: &str| {
        let channels: Vec<String> = channels.iter().map(|&name| name.to_owned()).collect();
        let values = vec![0.0; steps * channels.len()];
        let error = model.probabilities(&Sequences::dense(channels, steps, values, None).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(because), "{error}");
    };
    refused(&["refunds", "complaints", "visits"], 12, r#"channel 0 is "refunds" where "complaints" belongs"#);
    refused(&["complaints", "refunds"], 12, "2 channels where the model has 3");
    refused(&["complaints", "refunds", "visits"], 52, "52 steps where the model has 12");
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let (train, labels) = complaints_and_refunds(60, 11);
    let refused = |labels: &[bool], parameters: &SequenceParameters, kind, because: &str| {
        let error = fit(&train, labels, parameters).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(because), "{error}");
    };
    refused(&[true; 60], &quick(), ErrorKind::InvalidInput, "one class only: all 60 labels are 1");
    refused(&labels[1..], &quick(), ErrorKind::InvalidInput, "59 values where 60");
    let mut lonely = vec![false; 60];
    lonely[5] = true;
    refused(&lonely, &quick(), ErrorKind::InvalidConfig, "customers of each class with a step = 1");
    let constant = Sequences::dense(vec!["shop".to_owned()], 2, vec![7.0; 120], None).unwrap();
    let error = fit(&constant, &labels, &quick()).unwrap_err();
    assert!(error.to_string().contains("no channel of the sequences varies"), "{error}");
    for wrong in [
        SequenceParameters { hidden: 0, ..quick() },
        SequenceParameters { epochs: 0, ..quick() },
        SequenceParameters { batch: 0, ..quick() },
        SequenceParameters { learning_rate: f64::NAN, ..quick() },
        SequenceParameters { dropout: 1.0, ..quick() },
        SequenceParameters { gradient_norm: 0.0, ..quick() },
        SequenceParameters { held_out: 0.9, ..quick() },
    ] {
        assert_eq!(fit(&train, &labels, &wrong).unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong:?}");
    }
}

fn layout(gaps: Gaps) -> SequenceLayout {
    let channels = ["orders", "spend"].map(str::to_owned).to_vec();
    SequenceLayout { keys: vec!["customer_id".to_owned()], step: "week".to_owned(), channels, steps: 4, gaps }
}

/// Key, week, orders and spend.
type Week<'a> = (&'a str, Option<i32>, Option<i64>, Option<f64>);

fn history(rows: &[Week<'_>]) -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("week", Arc::new(rows.iter().map(|row| row.1).collect::<Int32Array>())),
        ("customer_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0)))),
        ("spend", Arc::new(rows.iter().map(|row| row.3).collect::<Float64Array>())),
        ("orders", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

fn wanted(keys: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([("customer_id", Arc::new(StringArray::from(keys.to_vec())) as ArrayRef)]).unwrap()
}

#[test]
fn arrow_rows_become_sequences_in_the_wanted_order() {
    let batches = [
        history(&[("b", Some(1), Some(2), Some(9.5)), ("a", Some(3), Some(1), Some(4.0)), ("x", Some(9), None, None)]),
        history(&[("b", Some(3), Some(0), Some(-1.0))]),
    ];
    let quiet = Sequences::of_batches(&layout(Gaps::Quiet), &wanted(&["a", "b", "c"]), &batches).unwrap();
    assert_eq!((quiet.rows(), quiet.steps()), (3, 4));
    assert_eq!((0..3).map(|row| quiet.length(row)).collect::<Vec<_>>(), [1, 3, 0], "quiet weeks after the first");
    assert_eq!(
        (quiet.step(0, 3), quiet.step(1, 1), quiet.step(1, 3)),
        (&[1.0, 4.0][..], &[2.0, 9.5][..], &[0.0, -1.0][..])
    );
    let unknown = Sequences::of_batches(&layout(Gaps::Unknown), &wanted(&["a", "b", "c"]), &batches).unwrap();
    assert_eq!((0..3).map(|row| unknown.length(row)).collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(quiet.take(&[1, 1]).unwrap().length(1), 3);
}

#[test]
fn arrow_rows_that_do_not_fit_are_refused() {
    let refused = |keys: &[&str], rows: &[_], because: &str| {
        let error = Sequences::of_batches(&layout(Gaps::Quiet), &wanted(keys), &[history(rows)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(because), "{error}");
    };
    let usual = ("a", Some(1), Some(1), Some(1.0));
    refused(&["a", "a"], &[usual], "the key: row 1 is wanted twice");
    refused(&["a"], &[usual, usual], "row 1 is there twice for its key");
    refused(&["a"], &[("a", Some(4), Some(1), Some(1.0))], "row 0 is null, below 0 or not below the number of steps");
    refused(&["a"], &[("a", None, Some(1), Some(1.0))], "row 0 is null");
    refused(&["a"], &[("a", Some(0), None, Some(1.0))], r#"channel "orders", step 0: row 0 is null"#);
    refused(
        &["a"],
        &[("a", Some(0), Some(1), Some(f64::NAN))],
        r#"channel "spend", step 0: row 0 is null or not finite"#,
    );
    let missing = SequenceLayout { step: "month".to_owned(), ..layout(Gaps::Quiet) };
    let error = Sequences::of_batches(&missing, &wanted(&["a"]), &[history(&[usual])]).unwrap_err().to_string();
    assert!(error.contains(r#"column "month" is missing"#), "{error}");
    let texts = SequenceLayout { channels: vec!["customer_id".to_owned()], ..layout(Gaps::Quiet) };
    let error = Sequences::of_batches(&texts, &wanted(&["a"]), &[history(&[usual])]).unwrap_err().to_string();
    assert!(error.contains("is Utf8 where a number is needed"), "{error}");
    let error = Sequences::dense(vec!["a".to_owned()], 2, vec![1.0, f32::NAN], None).unwrap_err().to_string();
    assert!(error.contains(r#"channel "a", step 1: row 0"#), "{error}");
}

#[test]
fn folds_keep_customers_together_and_score_every_row_once() {
    let (train, labels) = complaints_and_refunds(240, 12);
    let groups: Vec<u64> = (0..240).map(|row| row / 3).collect();
    let set = SequenceTrainingSet { sequences: &train, labels: &labels, groups: Some(&groups) };
    let parameters = SequenceParameters { epochs: 1, ..quick() };
    let mut epochs: HashMap<usize, usize> = HashMap::new();
    let scored =
        out_of_fold(&set, &Folds::Grouped(4), &parameters, &mut |fold, _| *epochs.entry(fold).or_default() += 1);
    let scored = scored.unwrap();
    assert!(scored.probabilities.iter().all(Option::is_some));
    assert!(scored.folds.iter().all(|fold| fold.rows_trained + fold.rows_scored == 240 && fold.skipped.is_none()));
    assert_eq!(epochs, HashMap::from([(0, 1), (1, 1), (2, 1), (3, 1)]));
    for wrong in [0, 1, 200] {
        assert!(out_of_fold(&set, &Folds::Grouped(wrong), &parameters, &mut |_, _| {}).is_err());
    }
}

/// Labels that nothing tells: a model that has seen a row knows it, one that has not must not.
#[test]
fn scores_out_of_fold_do_not_know_the_labels() {
    let mut dice = Dice::new(13);
    #[expect(clippy::cast_possible_truncation, reason = "made-up values")]
    let values: Vec<f32> = (0..300 * 6 * 4).map(|_| dice.normal() as f32).collect();
    let labels: Vec<bool> = (0..300).map(|_| dice.unit() < 0.5).collect();
    let noise = Sequences::dense(["a", "b", "c", "d"].map(str::to_owned).to_vec(), 6, values, None).unwrap();
    let patient = NonZeroUsize::new(60).unwrap();
    let parameters = SequenceParameters { epochs: 60, patience: patient, dropout: 0.0, held_out: 0.02, ..quick() };
    let set = SequenceTrainingSet { sequences: &noise, labels: &labels, groups: None };
    let scored = out_of_fold(&set, &Folds::Grouped(3), &parameters, &mut |_, _| {}).unwrap();
    let honest = auc(&known(scored.probabilities), &labels);
    assert!((0.4..0.6).contains(&honest), "{honest}");
}

#[test]
fn forward_folds_learn_from_what_was_known_alone() {
    let (train, labels) = complaints_and_refunds(400, 14);
    let periods: Vec<i64> = (0..400).map(|row| row / 100).collect();
    let set = SequenceTrainingSet { sequences: &train, labels: &labels, groups: None };
    let parameters = SequenceParameters { epochs: 1, ..quick() };
    let folds = Folds::Forward { periods: periods.clone(), purge: 2 };
    let scored = out_of_fold(&set, &folds, &parameters, &mut |_, _| {}).unwrap();
    let trained: Vec<usize> = scored.folds.iter().map(|fold| fold.rows_trained).collect();
    assert_eq!(trained, [0, 0, 100, 200], "periods 0 and 1 have nothing two periods before them");
    assert!(scored.folds[1].skipped.is_some() && scored.folds[2].skipped.is_none());
    assert_eq!(scored.probabilities.iter().position(Option::is_some), Some(200));
    // What comes later, and what was not known yet, changes nothing.
    let mut later = labels.clone();
    later[100..].iter_mut().for_each(|label| *label = !*label);
    let set = SequenceTrainingSet { sequences: &train, labels: &later, groups: None };
    let again = out_of_fold(&set, &folds, &parameters, &mut |_, _| {}).unwrap();
    assert_eq!(scored.probabilities[200..300], again.probabilities[200..300]);
    assert_ne!(scored.probabilities[300..], again.probabilities[300..]);

    for (periods, purge) in [(periods.clone(), 0), (periods.clone(), 9), (periods[1..].to_vec(), 1)] {
        assert!(out_of_fold(&set, &Folds::Forward { periods, purge }, &parameters, &mut |_, _| {}).is_err());
    }
}
