use std::collections::HashSet;

use super::*;
use crate::conversation::{Conversation, Message, Record, Role};
use crate::format::Format;

const SEED: u64 = 42;

#[test]
fn a_seed_gives_these_rows_for_ever() {
    let shown = |split| {
        let text = |row: &Row| format!("{} {}", row.sentence, row.answer);
        rows(split, 2, SEED).iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(Split::Train),
        [
            r#"Laigoucean Vophoutear booked a room with Lailock Ltd for 10.78 USD on 22 August 2024. {"name":"Laigoucean Vophoutear","company":"Lailock Ltd","amount":10.78,"currency":"USD","date":"2024-08-22"}"#,
            r#"Order of 25 August 2023: Lagadex Vogel buys a bicycle from Willow Trading, total £729.31. {"name":"Lagadex Vogel","company":"Willow Trading","amount":729.31,"currency":"GBP","date":"2023-08-25"}"#,
        ]
    );
    assert_eq!(
        shown(Split::Test),
        [
            r#"A transfer of 953.03 EUR from Henry Lewis reached Fountain Trading on March 26, 2019. {"name":"Henry Lewis","company":"Fountain Trading","amount":953.03,"currency":"EUR","date":"2019-03-26"}"#,
            r#"On 6 December 2024 Phoenix Group billed Leo Berg £770.72 for a laptop. {"name":"Leo Berg","company":"Phoenix Group","amount":770.72,"currency":"GBP","date":"2024-12-06"}"#,
        ]
    );
}

#[test]
fn fewer_rows_are_the_beginning_of_more_and_seeds_differ() {
    let many = rows(Split::Train, 50, SEED);
    assert_eq!(rows(Split::Train, 20, SEED), many[..20]);
    assert_ne!(rows(Split::Train, 50, SEED + 1), many);
    let sentences: HashSet<_> = many.iter().map(|row| &row.sentence).collect();
    assert_eq!(sentences.len(), many.len());
}

#[test]
fn test_rows_share_no_person_company_or_form_with_training() {
    let (train, test) = (words::pools(Split::Train), words::pools(Split::Test));
    let shared =
        |one: &[&str], other: &[&str]| one.iter().filter(|word| other.contains(word)).count();
    assert_eq!(shared(train.first_names, test.first_names), 0);
    assert_eq!(shared(train.last_names, test.last_names), 0);
    assert_eq!(shared(train.companies, test.companies), 0);
    assert_eq!(shared(train.forms, test.forms), 0);
    assert!(train.forms.len() >= 12);
}

#[test]
fn train_and_test_rows_are_disjoint_whatever_the_seeds() {
    let value = |row: &Row, key: &str| {
        let answer: serde_json::Value = serde_json::from_str(&row.answer).unwrap();
        answer[key].as_str().unwrap().to_owned()
    };
    let mut seen = HashSet::new();
    for row in rows(Split::Train, 2_000, SEED) {
        let company = value(&row, "company");
        seen.extend(value(&row, "name").split(' ').map(str::to_owned));
        seen.insert(company.split(' ').next().unwrap().to_owned());
        seen.extend([row.sentence, company]);
    }
    for row in rows(Split::Test, 500, SEED) {
        assert!(!seen.contains(&row.sentence));
        assert!(
            value(&row, "name")
                .split(' ')
                .all(|word| !seen.contains(word)),
            "{row:?}"
        );
        assert!(
            !seen.contains(value(&row, "company").split(' ').next().unwrap()),
            "{row:?}"
        );
    }
}

#[test]
fn every_answer_is_json_with_the_fields_and_can_be_read_off_the_sentence() {
    for split in [Split::Train, Split::Test] {
        for row in rows(split, 1_000, 7) {
            let answer: serde_json::Map<_, _> = serde_json::from_str(&row.answer).unwrap();
            assert!(answer.keys().map(String::as_str).eq(FIELDS), "{row:?}");
            assert!(
                row.sentence.contains(answer["name"].as_str().unwrap()),
                "{row:?}"
            );
            assert!(
                row.sentence.contains(answer["company"].as_str().unwrap()),
                "{row:?}"
            );
            assert!(
                row.sentence
                    .contains(&format!("{:.2}", answer["amount"].as_f64().unwrap())),
                "{row:?}"
            );
            assert!(
                row.sentence
                    .contains(&answer["date"].as_str().unwrap()[..4]),
                "{row:?}"
            );
            assert!(!row.sentence.contains(['{', '}']), "{row:?}");
            let same = score(&row.answer, &row.answer);
            assert_eq!(
                same,
                Score {
                    exact: true,
                    valid_json: true,
                    fields_right: 5,
                    fields: 5
                }
            );
        }
    }
}

#[test]
fn lines_are_messages_rows() {
    let rows = rows(Split::Test, 5, 1);
    for (line, row) in to_jsonl(&rows).lines().zip(&rows) {
        let record = Format::Messages
            .read(serde_json::from_str(line).unwrap())
            .unwrap();
        let expected = Conversation::new(vec![
            Message::new(Role::User, format!("Extract as JSON: {}", row.sentence)),
            Message::new(Role::Assistant, row.answer.clone()),
        ]);
        assert_eq!(record, Record::Conversation(expected));
    }
}
