use holdfast_types::ErrorKind;

use super::*;
use crate::testing::{data, say};

const GOOD: [&str; 6] = [
    "很好吃，下次还来",
    "送餐很快，服务态度好",
    "Great food, loved it",
    "works perfectly, very happy",
    "房间干净，老板热情",
    "best purchase this year",
];
const BAD: [&str; 6] = [
    "太难吃了，再也不来",
    "等了两个小时，差评",
    "Awful food, never again",
    "broke after a day, don't buy",
    "房间很脏，老板恶劣",
    "worst purchase this year",
];

fn small() -> SentimentModel {
    let texts: Vec<&str> = GOOD.into_iter().chain(BAD).collect();
    let positive: Vec<bool> = (0..12).map(|place| place < 6).collect();
    SentimentModel::fit(&texts, &positive, &SentimentSettings { version: "small".to_owned(), ..Default::default() })
        .unwrap()
}

#[test]
fn both_languages_are_learned_by_one_model() {
    let model = small();
    for (text, tone, language) in [
        ("老板热情，很好吃", Tone::Positive, Language::Chinese),
        ("难吃，差评", Tone::Negative, Language::Chinese),
        ("very happy, great", Tone::Positive, Language::English),
        ("AWFUL! Never buy", Tone::Negative, Language::English),
    ] {
        let answer = model.read(text);
        assert_eq!((answer.tone, answer.language, answer.version), (tone, language, "small"), "{text}: {answer:?}");
        assert!((answer.score.abs() - (2.0 * answer.confidence - 1.0)).abs() < 1e-12);
    }
    assert_eq!(small(), model, "the same texts and seed make the same model");
}

#[test]
fn texts_that_say_nothing_are_neutral() {
    let model = small();
    for text in ["", "   \n", "。。。", "—— ……"] {
        let answer = model.read(text);
        assert_eq!((answer.tone, answer.language), (Tone::Neutral, Language::Unknown), "{text:?}");
        assert!((answer.confidence - 0.5).abs() < 1e-12 && answer.score.abs() < 1e-12);
    }
    assert_eq!(model.read("purchase this year").tone, Tone::Neutral, "as much in good texts as in bad ones");
    for text in ["🙂🙂", "Спасибо, очень хорошо"] {
        let unseen = model.read(text);
        assert_eq!((unseen.tone, unseen.language), (Tone::Neutral, Language::Unknown), "nobody taught {text}");
    }
    let texts: Vec<&str> = GOOD.into_iter().chain(BAD).chain(["👍", "👎"]).collect();
    let positive: Vec<bool> = (0..14).map(|place| place < 6 || place == 12).collect();
    let taught = SentimentModel::fit(&texts, &positive, &SentimentSettings::default()).unwrap();
    assert!(taught.read("👍👍").score > 0.0 && taught.read("👎").score < 0.0);
    let long = "好吃 ".repeat(400_000);
    assert_eq!(model.read(&long).tone, Tone::Positive, "a megabyte is read as its beginning");
}

#[test]
fn copies_are_told_by_their_plain_text() {
    assert_eq!(distinct(&["Good  food!", "ｇｏｏｄ food!", "bad", "good food!", "好吃", "好吃。"]), [0, 2, 4]);
}

#[test]
fn what_cannot_be_learned_is_refused() {
    let fit = |positive: &[bool], settings| SentimentModel::fit(&GOOD[..2], positive, &settings).unwrap_err();
    assert!(matches!(fit(&[true, true], SentimentSettings::default()), ModelError::OneClass { .. }));
    assert!(matches!(fit(&[true], SentimentSettings::default()), ModelError::Length { .. }));
    for wrong in [
        SentimentSettings { bits: 30, ..Default::default() },
        SentimentSettings { epochs: 0, ..Default::default() },
        SentimentSettings { neutral_below: 0.4, ..Default::default() },
    ] {
        assert_eq!(fit(&[true, false], wrong).kind(), ErrorKind::InvalidConfig);
    }
}

#[test]
fn stored_models_come_back_or_are_refused() {
    let model = small();
    let bytes = model.write().unwrap();
    assert_eq!(SentimentModel::decode(&bytes).unwrap(), model);
    for cut in [0, 1, 40, 200, 5000, bytes.len() - 1] {
        let error = SentimentModel::decode(&bytes[..cut]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
    }
    for place in [3, 300, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(SentimentModel::decode(&damaged).is_err(), "byte {place}");
    }
}

/// Share of held-out texts whose class is the likelier one: the fifth by place in the deduplicated set, or a set of its own.
fn accuracy(train: &[(String, bool)], test: &[(String, bool)]) -> f64 {
    let texts: Vec<&str> = train.iter().map(|(text, _)| text.as_str()).collect();
    let positive: Vec<bool> = train.iter().map(|(_, positive)| *positive).collect();
    let model = SentimentModel::fit(&texts, &positive, &SentimentSettings::default()).unwrap();
    let right = test.iter().filter(|(text, positive)| (model.read(text).score > 0.0) == *positive);
    right.count() as f64 / test.len() as f64
}

/// Distinct texts of a file of `label,text`, in an order that has nothing to do with the label.
fn reviews(path: &std::path::Path) -> Vec<(String, bool)> {
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<(String, bool)> = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(',').map(|(label, text)| (text.trim_matches('"').to_owned(), label == "1")))
        .collect();
    let texts: Vec<&str> = rows.iter().map(|(text, _)| text.as_str()).collect();
    let mut kept: Vec<(String, bool)> = distinct(&texts).into_iter().map(|place| rows[place].clone()).collect();
    kept.sort_by_key(|(text, _)| ngrams::hash(text.as_bytes()));
    kept
}

#[test]
fn held_out_chinese_reviews_are_read_rightly() {
    for (file, least) in [("waimai_10k.csv", 0.84), ("ChnSentiCorp_htl_all.csv", 0.84)] {
        let Some(path) = data("sentiment", file) else { return };
        let rows = reviews(&path);
        let (test, train) = rows.split_at(rows.len() / 5);
        let right = accuracy(train, test);
        say(&format!("{file}: {} distinct, {right:.4} of {} held out", rows.len(), test.len()));
        assert!(right >= least, "{file}: {right}");
    }
}

#[test]
fn held_out_english_sentences_are_read_rightly() {
    let read = |name: &str| -> Option<Vec<(String, bool)>> {
        let text = std::fs::read_to_string(data("sentiment", &format!("sst2/{name}.tsv"))?).unwrap();
        let rows = text.lines().filter_map(|line| line.rsplit_once('\t'));
        Some(rows.map(|(text, label)| (text.to_owned(), label.trim() == "1")).collect())
    };
    let (Some(train), Some(test)) = (read("train"), read("test")) else { return };
    let right = accuracy(&train, &test);
    say(&format!("SST-2: {right:.4} of {} held out", test.len()));
    assert!(right >= 0.79, "{right}");
}
