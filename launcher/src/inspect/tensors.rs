//! A .safetensors file: a table of its tensors with their statistics.

use crate::format;
use anyhow::bail;
use engine::error::During;
use engine::mapped::Mapped;
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A file of tensors, mapped.
pub struct TensorFile {
    map: Mapped,
}

/// Mean, standard deviation and extremes of the finite elements, and how many are not finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    count: usize,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
    nonfinite: usize,
}

impl TensorFile {
    /// Maps a file.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).during("cannot open", path)?;
        Ok(Self { map: Mapped::new(&file, path)? })
    }

    /// Whether all that was read so far was there.
    fn check(&self) -> anyhow::Result<()> {
        Ok(self.map.check_file()?)
    }

    /// Name and content of each tensor, in the order of the file's data.
    pub fn tensors(&self, path: &Path) -> anyhow::Result<Vec<(String, TensorView<'_>)>> {
        let parsed = match SafeTensors::deserialize(&self.map) {
            Ok(parsed) => parsed,
            Err(e) => {
                self.check()?;
                bail!("{}: not a whole safetensors file: {e}", path.display())
            }
        };
        let mut tensors = parsed.tensors();
        tensors.sort_by_key(|(_, view)| view.data().as_ptr() as usize);
        Ok(tensors)
    }
}

impl Statistics {
    const EMPTY: Self =
        Self { count: 0, sum: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY, nonfinite: 0 };

    /// Of a tensor's elements; none where the type has no plain numbers.
    pub fn of(view: &TensorView<'_>) -> Option<Self> {
        let bytes = view.data();
        Some(match view.dtype() {
            Dtype::F64 => gather(bytes, f64::from_le_bytes),
            Dtype::F32 => gather(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => gather(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => gather(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
            Dtype::I64 => gather(bytes, |b| i64::from_le_bytes(b) as f64),
            Dtype::I32 => gather(bytes, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::I16 => gather(bytes, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::I8 => gather(bytes, |b| f64::from(i8::from_le_bytes(b))),
            Dtype::U8 | Dtype::BOOL => gather(bytes, |b: [u8; 1]| f64::from(b[0])),
            _ => return None,
        })
    }

    /// Of both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            nonfinite: self.nonfinite + other.nonfinite,
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    fn std(&self) -> f64 {
        (self.squares / self.count.max(1) as f64 - self.mean().powi(2)).max(0.0).sqrt()
    }

    /// The four columns of the table.
    fn columns(&self) -> String {
        if self.count == 0 {
            return format!("{:>11} {:>11} {:>11} {:>11}", "-", "-", "-", "-") + &self.warning();
        }
        let [mean, std, min, max] = [self.mean(), self.std(), self.min, self.max].map(number);
        format!("{mean:>11} {std:>11} {min:>11} {max:>11}") + &self.warning()
    }

    fn warning(&self) -> String {
        if self.nonfinite > 0 {
            format!("  {} NOT FINITE", format::count(self.nonfinite as u64))
        } else {
            String::new()
        }
    }
}

fn gather<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f64 + Sync) -> Statistics {
    /// Bytes for one thread at a time; a multiple of every element's size.
    const PIECE: usize = 1 << 20;
    let piece = |bytes: &[u8]| {
        let (elements, _) = bytes.as_chunks::<N>();
        elements.iter().map(|&b| read(b)).fold(Statistics::EMPTY, |s, x| {
            if x.is_finite() {
                Statistics {
                    count: s.count + 1,
                    sum: s.sum + x,
                    squares: s.squares + x * x,
                    min: s.min.min(x),
                    max: s.max.max(x),
                    ..s
                }
            } else {
                Statistics { nonfinite: s.nonfinite + 1, ..s }
            }
        })
    };
    // collected in order first, so that the sums do not depend on the threads
    let pieces: Vec<Statistics> = bytes.par_chunks(PIECE).map(piece).collect();
    pieces.into_iter().fold(Statistics::EMPTY, Statistics::and)
}

/// Four digits, with an exponent where the number is very small or large.
fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        "0".to_owned()
    } else if (1e-3..1e5).contains(&size) {
        format!("{x:.4}")
    } else {
        format!("{x:.3e}")
    }
}

/// Prints the table and a line of totals.
pub fn print_table(path: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let file = TensorFile::open(path)?;
    let tensors = file.tensors(path)?;
    let width = tensors.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(6);
    writeln!(
        out,
        "{:<width$}  {:<14} {:<5} {:>11} {:>11} {:>11} {:>11}",
        "tensor", "shape", "type", "mean", "std", "min", "max"
    )?;
    let (mut elements, mut bytes) = (0, 0);
    for (name, view) in &tensors {
        let statistics = Statistics::of(view).map_or(String::new(), |s| s.columns());
        writeln!(
            out,
            "{name:<width$}  {:<14} {:<5} {statistics}",
            shape(view),
            format!("{:?}", view.dtype())
        )?;
        elements += view.shape().iter().product::<usize>();
        bytes += view.data().len();
    }
    file.check()?;
    let (tensors, elements) = (format::count(tensors.len() as u64), format::count(elements as u64));
    writeln!(out, "{tensors} tensors, {elements} elements, {}B", format::short(bytes as f64))?;
    Ok(())
}

fn shape(view: &TensorView<'_>) -> String {
    let sizes: Vec<String> = view.shape().iter().map(usize::to_string).collect();
    if sizes.is_empty() { "scalar".to_owned() } else { sizes.join(" x ") }
}

/// Statistics over all tensors whose name starts with `prefix`, as one line.
pub fn summary(path: &Path, prefix: &str) -> anyhow::Result<String> {
    let file = TensorFile::open(path)?;
    let tensors = file.tensors(path)?;
    let chosen = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
    let all = chosen.filter_map(|(_, view)| Statistics::of(view)).fold(Statistics::EMPTY, Statistics::and);
    file.check()?;
    let count = format::count((all.count + all.nonfinite) as u64);
    if all.count == 0 {
        return Ok(format!("{count} elements{}", all.warning()));
    }
    let [mean, std, min, max] = [all.mean(), all.std(), all.min, all.max].map(number);
    Ok(format!("{count} elements, mean {mean}, std {std}, min {min}, max {max}{}", all.warning()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dtype: Dtype, shape: Vec<usize>, bytes: &[u8]) -> TensorView<'_> {
        TensorView::new(dtype, shape, bytes).unwrap()
    }

    #[test]
    fn statistics_leave_out_what_is_not_finite_and_count_it() {
        let bytes: Vec<u8> =
            [1.0f32, -3.0, f32::NAN, 5.0, f32::INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
        let s = Statistics::of(&view(Dtype::F32, vec![5], &bytes)).unwrap();
        assert_eq!((s.count, s.mean(), s.min, s.max, s.nonfinite), (3, 1.0, -3.0, 5.0, 2));
        assert!((s.std() - (32.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!(s.columns().ends_with("2 NOT FINITE"));
    }

    #[test]
    fn every_type_is_read_at_its_width() {
        let two = |dtype, bytes: &[u8]| {
            let s = Statistics::of(&view(dtype, vec![2], bytes)).unwrap();
            (s.count, s.min, s.max)
        };
        assert_eq!(two(Dtype::BF16, &[0x80, 0x3f, 0x00, 0x40]), (2, 1.0, 2.0));
        assert_eq!(two(Dtype::F16, &[0x00, 0x3c, 0x00, 0x40]), (2, 1.0, 2.0));
        assert_eq!(two(Dtype::I16, &[0xff, 0xff, 3, 0]), (2, -1.0, 3.0));
        assert_eq!(two(Dtype::U8, &[255, 3]), (2, 3.0, 255.0));
        assert_eq!(two(Dtype::F64, [0.5f64, 7.0].map(f64::to_le_bytes).as_flattened()), (2, 0.5, 7.0));
    }
}
