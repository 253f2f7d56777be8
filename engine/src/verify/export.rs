//! A batch and the losses computed on it as a file, for comparing them with other software.

use crate::data::Batch;
use crate::files::write_new;
use crate::model::EvalSums;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// Writes `batch` in the golden files' format, padded with 0 to its longest sequence: `batch0.input_ids`,
/// `.attention_mask`, `.token_type_ids`, `.labels` (B, S) and `.next_sentence_label` (B), i64, labels -100 where nothing
/// is predicted; and the means of `sums`, the losses on this very batch: `mlm_loss`, `nsp_loss` (1), f64. Without
/// next-sentence labels, their two tensors are left out; without masked tokens, `mlm_loss`.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn write_batch(path: &Path, batch: &Batch, sums: &EvalSums) -> Result<()> {
    let (rows, cols) = (batch.sequences(), batch.max_length);
    let shape = vec![rows, cols];
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = padded(batch)
        .into_iter()
        .map(|(name, values)| (name, Dtype::I64, shape.clone(), integers(values)))
        .collect();
    if !batch.nsp_labels.is_empty() {
        let labels = integers(batch.nsp_labels.iter().map(|&l| i64::from(l)));
        tensors.push(("batch0.next_sentence_label", Dtype::I64, vec![rows], labels));
        tensors.push(("nsp_loss", Dtype::F64, vec![1], sums.nsp_mean().to_le_bytes().to_vec()));
    }
    if !batch.mlm_labels.is_empty() {
        tensors.push(("mlm_loss", Dtype::F64, vec![1], sums.mlm_mean().to_le_bytes().to_vec()));
    }
    let refused =
        |e: safetensors::SafeTensorError| Error::file(path, format!("cannot describe the batch: {e}"));
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(refused)?;
    let bytes = safetensors::serialize(views, None).map_err(refused)?;
    write_new(path, &bytes)
}

/// The four tensors (B, S), row by row.
fn padded(batch: &Batch) -> [(&'static str, Vec<i64>); 4] {
    let (rows, cols) = (batch.sequences(), batch.max_length);
    let [mut ids, mut mask, mut types] = [(); 3].map(|()| vec![0; rows * cols]);
    let mut labels = vec![-100; rows * cols];
    // where a packed token lies in the padded tensors
    let mut place = Vec::with_capacity(batch.token_count());
    for (row, ends) in batch.cu_seqlens.windows(2).enumerate() {
        place.extend((0..(ends[1] - ends[0]) as usize).map(|position| row * cols + position));
    }
    for (token, &at) in place.iter().enumerate() {
        ids[at] = i64::from(batch.tokens[token]);
        types[at] = i64::from(batch.types[token]);
        mask[at] = 1;
    }
    for (&row, &label) in batch.mlm_rows.iter().zip(&batch.mlm_labels) {
        labels[place[batch.rows[row as usize] as usize]] = i64::from(label);
    }
    [
        ("batch0.input_ids", ids),
        ("batch0.attention_mask", mask),
        ("batch0.token_type_ids", types),
        ("batch0.labels", labels),
    ]
}

fn integers(values: impl IntoIterator<Item = i64>) -> Vec<u8> {
    values.into_iter().flat_map(i64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sequence;
    use safetensors::SafeTensors;

    fn sequences(nsp: bool) -> [Sequence; 2] {
        let first = Sequence {
            tokens: vec![2, 7, 3],
            types: vec![0, 0, 1],
            mlm_positions: vec![0, 2],
            mlm_labels: vec![9, 8],
            nsp_label: nsp.then_some(1),
        };
        let second =
            Sequence { tokens: vec![5, 4], types: vec![0, 1], nsp_label: nsp.then_some(0), ..first.clone() };
        [first, Sequence { mlm_positions: vec![1], mlm_labels: vec![6], ..second }]
    }

    fn written(nsp: bool) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batch.safetensors");
        let sums =
            EvalSums { mlm_loss: 6.0, mlm_count: 3, nsp_loss: 1.0, nsp_count: 2, ..EvalSums::default() };
        write_batch(&path, &Batch::pack(&sequences(nsp), 0, 16), &sums).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_batch_is_written_padded_with_its_losses() {
        let bytes = written(true);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |name: &str| {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        assert_eq!(file.tensor("batch0.labels").unwrap().shape(), [2, 3]);
        assert_eq!(numbers("batch0.input_ids"), [2, 7, 3, 5, 4, 0]);
        assert_eq!(numbers("batch0.attention_mask"), [1, 1, 1, 1, 1, 0]);
        assert_eq!(numbers("batch0.token_type_ids"), [0, 0, 1, 0, 1, 0]);
        assert_eq!(numbers("batch0.labels"), [9, -100, 8, -100, 6, -100]);
        assert_eq!(numbers("batch0.next_sentence_label"), [1, 0]);
        assert_eq!(file.tensor("mlm_loss").unwrap().data(), 2f64.to_le_bytes());
        assert_eq!(file.tensor("nsp_loss").unwrap().data(), 0.5f64.to_le_bytes());
    }

    #[test]
    fn what_a_batch_lacks_is_left_out() {
        let bytes = written(false);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort_unstable();
        let ids = ["batch0.attention_mask", "batch0.input_ids", "batch0.labels", "batch0.token_type_ids"];
        assert_eq!(names, [&ids[..], &["mlm_loss"]].concat());
    }

    #[test]
    fn an_unwritable_file_is_named() {
        let path = Path::new("no-such-folder/batch.safetensors");
        let error =
            write_batch(path, &Batch::pack(&sequences(true), 0, 16), &EvalSums::default()).unwrap_err();
        assert!(error.to_string().starts_with("no-such-folder/batch.safetensors: cannot write"), "{error}");
    }
}
