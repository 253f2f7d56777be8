//! Softmax, cross-entropy and gradient of one row at a time: `loss = ln(sum exp(x - max)) + max - x[label]`,
//! `dx = (softmax - onehot) scale`. Bound by memory: a row of 30,000 floats stays in the second-level cache.

use crate::backend::CrossEntropy;
use crate::cpu::Cpu;
use crate::cpu::math::{check_indices, grain, max, simd, sum};
use crate::cpu::memory::Scratch;
use crate::error::check_len;
use crate::{Error, Result, Scalar};
use rayon::prelude::*;

pub(super) fn cross_entropy<T: Scalar>(scratch: &Scratch, args: CrossEntropy<'_, Cpu<T>>) -> Result<()> {
    const OP: &str = "cross_entropy";
    let CrossEntropy { logits, labels, classes, stride, scale, sums } = args;
    check_len(OP, "logits", logits.len(), labels.len() * stride)?;
    check_len(OP, "sums", sums.len(), 2)?;
    if classes == 0 || classes > stride {
        let what = format!("{classes} classes in rows of {stride} elements");
        return Err(Error::Unsupported { op: OP, what });
    }
    check_indices(OP, "labels", labels, classes)?;
    // per row: its loss and whether it is right
    scratch.with(labels.len() * 2, |rows: &mut [f64]| {
        logits
            .par_chunks_mut(stride)
            .zip(labels)
            .zip(rows.par_chunks_exact_mut(2))
            .with_min_len(grain(classes))
            .for_each(|((logits, &label), row)| {
                let (loss, right) = simd!(|| one_row(logits, label as usize, classes, scale));
                row[0] = loss.to_f64();
                row[1] = f64::from(u8::from(right));
            });
        for (column, total) in sums.iter_mut().enumerate() {
            *total += T::from_f64(rows.chunks_exact(2).map(|row| row[column]).sum());
        }
    });
    Ok(())
}

/// The loss of one row, and whether its first largest logit is the label.
#[inline(always)]
fn one_row<T: Scalar>(logits: &mut [T], label: usize, classes: usize, scale: Option<f64>) -> (T, bool) {
    let (x, padding) = logits.split_at_mut(classes);
    let at_label = x[label];
    let max = max(x, at_label);
    let right = at_label == max && x[..label].iter().all(|&x| x < max);
    let Some(scale) = scale else {
        let total = sum(x, |x| (x - max).exp());
        return (total.ln() + (max - at_label), right);
    };
    for x in x.iter_mut() {
        *x = (*x - max).exp();
    }
    let total = sum(x, |x| x);
    let scale = T::from_f64(scale);
    let factor = scale / total;
    for x in x.iter_mut() {
        *x *= factor;
    }
    x[label] -= scale;
    padding.fill(T::ZERO);
    (total.ln() + (max - at_label), right)
}
