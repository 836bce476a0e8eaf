use super::*;
use crate::pipeline::TokenizedRow;
use crate::store::TokenRows;

const X: i64 = IGNORE_INDEX;

fn set(rows: &[(&[u32], &[i64])]) -> RowSet {
    let rows = rows.iter().map(|(ids, labels)| TokenizedRow {
        input_ids: ids.to_vec(),
        labels: labels.to_vec(),
        answers: crate::Answers::One,
        file: 0,
        line: 1,
        key: 0,
    });
    RowSet::new(TokenRows::Memory(rows.collect()), &[])
}

fn examples() -> RowSet {
    set(&[
        (&[5u32, 6, 7][..], &[5i64, X, 7][..]),
        (&[8], &[8]),
        (&[9, 10], &[X, 10]),
    ])
}

#[test]
fn lays_documents_end_to_end() {
    let batch = Batch::from_rows(&examples(), &[2, 0, 1]).unwrap();
    let expected = Batch {
        input_ids: vec![9, 10, 5, 6, 7, 8],
        labels: vec![X, 10, 5, X, 7, 8],
        position_ids: vec![0, 1, 0, 1, 2, 0],
        cu_seqlens: vec![0, 2, 5, 6],
        rows: vec![2, 0, 1],
        answers: vec![Answer::Plain; 3],
        margins: vec![0.0; 3],
    };
    assert_eq!(batch, expected);
    assert_eq!(
        (batch.tokens(), batch.documents(), batch.max_seqlen()),
        (6, 3, 3)
    );
}

#[test]
fn the_first_label_of_a_document_is_never_a_target() {
    let batch = Batch::from_rows(&examples(), &[2, 0, 1]).unwrap();
    assert_eq!(batch.targets().collect::<Vec<_>>(), [(0, 10), (3, 7)]);
    assert_eq!(batch.supervised_tokens(), 2);
    assert_eq!(examples().counts().supervised_tokens, 2);
    let empty = Batch::from_rows(&examples(), &[]).unwrap();
    assert_eq!(
        (
            empty.supervised_tokens(),
            empty.max_seqlen(),
            empty.cu_seqlens.as_slice()
        ),
        (0, 0, &[0][..])
    );
}

#[test]
fn cuts_right_padding_away() {
    let ids = [5, 6, 7, 9, 10, 2];
    let mask = [1, 1, 1, 1, 1, 0];
    let labels = [5, X, 7, X, 10, X];
    let batch = Batch::from_rectangular(2, &ids, &mask, &labels).unwrap();
    let mut expected = Batch::from_rows(&examples(), &[0, 2]).unwrap();
    expected.rows = vec![0, 1];
    assert_eq!(batch, expected);
}

#[test]
fn refuses_inconsistent_arrays() {
    type Case<'a> = (usize, &'a [i64], &'a [i64], &'a [i64], &'a str);
    let cases: [Case<'_>; 8] = [
        (
            0,
            &[],
            &[],
            &[],
            "input_ids: expected 0 rows of one width above 0, found 0 numbers",
        ),
        (
            2,
            &[1, 2, 3],
            &[1, 1, 1],
            &[1, 2, 3],
            "input_ids: expected 2 rows of one width above 0, found 3 numbers",
        ),
        (
            1,
            &[1, 2],
            &[1],
            &[1, 2],
            "attention_mask: expected 1 rows of one width above 0, found 1 numbers",
        ),
        (
            1,
            &[1, 2],
            &[0, 1],
            &[X, 2],
            "attention_mask: expected ones, at least one, then zeros (right padding), found [0, 1]",
        ),
        (
            1,
            &[1, 2],
            &[0, 0],
            &[X, X],
            "attention_mask: expected ones, at least one, then zeros (right padding), found [0, 0]",
        ),
        (
            1,
            &[1, -2],
            &[1, 1],
            &[1, 2],
            "input_ids: expected a token id, found -2",
        ),
        (
            1,
            &[1, 2],
            &[1, 0],
            &[1, 2],
            "labels: expected -100 on padding, found [2]",
        ),
        (
            1,
            &[1, 2],
            &[1, 1],
            &[1, -1],
            "label: expected a token id or -100, found -1",
        ),
    ];
    for (rows, ids, mask, labels, expected) in cases {
        assert_eq!(
            Batch::from_rectangular(rows, ids, mask, labels)
                .unwrap_err()
                .to_string(),
            expected
        );
    }
    let error = Batch::from_rows(&examples(), &[3]).unwrap_err().to_string();
    assert_eq!(error, "row: expected a number below 3, found 3");
}

#[test]
fn padding_adds_tokens_that_nothing_predicts() {
    let rows = set(&[(&[1, 2, 3], &[1, 2, 3]), (&[4], &[4])]);
    let batch = Batch::from_rows(&rows, &[1, 0]).unwrap();
    let padded = batch.padded(9).unwrap();
    assert_eq!(padded.input_ids, [4, 9, 9, 1, 2, 3]);
    assert_eq!(padded.labels, [4, IGNORE_INDEX, IGNORE_INDEX, 1, 2, 3]);
    assert_eq!(padded.position_ids, [0, 1, 2, 0, 1, 2]);
    assert_eq!(
        (padded.cu_seqlens, &padded.rows),
        (vec![0, 3, 6], &batch.rows)
    );
    assert_eq!(batch.supervised_tokens(), 2);
    assert_eq!(Batch::empty().padded(9).unwrap(), Batch::empty());
}
