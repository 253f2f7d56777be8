//! Where a step's time goes: a row for each op, and one for what no kernel took.

use engine::bench::Bench;
use kernels::Backend;
use kernels::collective::Travel;
use kernels::cuda::{Device, OpTime};
use serde_json::{Value, json};
use std::io::Write;

/// Steps that are profiled.
pub(super) const PROFILED: usize = 10;

/// Speeds that nothing exceeds by much, measured in the same run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ceilings {
    /// Bytes a second, read and written, of a copy.
    pub copy: f64,
    /// FLOP/s of a large product.
    pub product: f64,
}

/// One op in a step.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    op: String,
    calls: f64,
    ms: f64,
    bytes: f64,
    flops: f64,
    /// Kernel, launches, milliseconds.
    kernels: Vec<(&'static str, f64, f64)>,
}

impl Row {
    /// What the op's time should be, and what says so; none for an op whose work is not known.
    fn bound(&self, ceilings: &Ceilings) -> Option<(f64, &'static str)> {
        let (moved, computed) = (self.bytes / ceilings.copy * 1e3, self.flops / ceilings.product * 1e3);
        let bound = if computed > moved { (computed, "products") } else { (moved, "memory") };
        (bound.0 > 0.0).then_some(bound)
    }

    /// Share of the ceiling that bounds the op, and which one that is.
    fn share(&self, ceilings: &Ceilings) -> Option<(f64, &'static str)> {
        self.bound(ceilings).map(|(ms, what)| (ms / self.ms, what)).filter(|(share, _)| share.is_finite())
    }
}

/// All ops of a step, the longest first. Their times and that of no kernel add up to the step's.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Breakdown {
    rows: Vec<Row>,
    /// Milliseconds of a step, from one to the next without events around launches.
    step: f64,
    /// Milliseconds of the events around one launch, which were taken off.
    bracket: f64,
    ceilings: Ceilings,
}

impl Breakdown {
    /// Runs a few steps with events around every launch. Without them a step takes `step` seconds, of which gradients and
    /// weights are on their way as `travel` says.
    pub(super) fn measure<B: Backend<Acc = f32>>(
        bench: &mut Bench<'_, B>,
        gpu: &Device,
        step: f64,
        travel: Option<Travel>,
        ceilings: Ceilings,
    ) -> anyhow::Result<Self> {
        let bracket = gpu.time_bracket()?;
        gpu.set_profile(true)?;
        bench.run(PROFILED)?;
        let ops = gpu.profile()?;
        gpu.set_profile(false)?;
        let mut rows: Vec<_> = ops.iter().map(|op| row(op, PROFILED as f64, bracket)).collect();
        // The device has not seen the sequences' lengths.
        let [forward, backward] = bench.attention_flops();
        for row in &mut rows {
            match row.op.as_str() {
                "attention_forward" => row.flops = forward,
                "attention_backward" => row.flops = backward,
                _ => {}
            }
        }
        rows.extend(travel.into_iter().flat_map(waits));
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Ok(Self { rows, step: step * 1e3, bracket, ceilings })
    }

    /// Milliseconds of a step in which no kernel ran: what launches and their gaps cost. Below 0 where the profiled steps
    /// were slower than those without events, as by another clock.
    fn in_no_kernel(&self) -> f64 {
        self.step - self.rows.iter().map(|row| row.ms).sum::<f64>()
    }

    pub(super) fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let line = |name: &str, calls: &str, ms: f64, rest: [String; 4]| {
            let [gb, gflop, bound, share] = rest;
            let of_step = 100.0 * ms / self.step;
            format!(
                "{name:<44} {calls:>7} {ms:>9.3} {of_step:>6.1}% {gb:>9} {gflop:>9} {bound:>8} {share:>8}"
            )
        };
        let head = ["op", "calls", "ms", "of step", "GB", "GFLOP", "bound", "of it"];
        let [op, calls, ms, step, gb, gflop, bound, share] = head;
        writeln!(out, "\n{op:<44} {calls:>7} {ms:>9} {step:>7} {gb:>9} {gflop:>9} {bound:>8} {share:>8}")?;
        let amount = |n: f64| if n > 0.0 { format!("{:.3}", n / 1e9) } else { "-".into() };
        for row in &self.rows {
            let (share, bound) = match row.share(&self.ceilings) {
                Some((share, what)) => (format!("{:.1}%", 100.0 * share), what),
                None => ("-".into(), "-"),
            };
            let rest = [amount(row.bytes), amount(row.flops), bound.into(), share];
            writeln!(out, "{}", line(&row.op, &format!("{:.1}", row.calls), row.ms, rest))?;
        }
        let nothing = || ["-"; 4].map(str::to_owned);
        writeln!(out, "{}", line("in no kernel", "-", self.in_no_kernel(), nothing()))?;
        writeln!(out, "{}", line("step", "-", self.step, nothing()))?;
        self.print_kernels(out)
    }

    /// Ops of several kernels, and what the numbers are.
    fn print_kernels(&self, out: &mut dyn Write) -> std::io::Result<()> {
        for row in self.rows.iter().filter(|row| row.kernels.len() > 1) {
            let each = |(name, calls, ms): &(&str, f64, f64)| format!("{name} {calls:.1} x, {ms:.3} ms");
            let kernels: Vec<_> = row.kernels.iter().map(each).collect();
            writeln!(out, "  {}: {}", row.op, kernels.join("; "))?;
        }
        writeln!(
            out,
            "ceilings of this run: copy {:.1} GB/s, product {:.2} TFLOP/s; {:.2} us for events were taken off each launch",
            self.ceilings.copy / 1e9,
            self.ceilings.product / 1e12,
            self.bracket * 1e3
        )
    }

    pub(super) fn to_json(&self) -> Value {
        let kernel =
            |(name, calls, ms): &(&str, f64, f64)| json!({ "kernel": name, "calls": calls, "ms": ms });
        let row = |row: &Row| {
            let share = row.share(&self.ceilings);
            json!({
                "op": row.op,
                "calls": row.calls,
                "ms": row.ms,
                "bytes": row.bytes,
                "flops": row.flops,
                "bound": share.map(|(_, what)| what),
                "share_of_bound": share.map(|(share, _)| share),
                "kernels": row.kernels.iter().map(kernel).collect::<Vec<_>>(),
            })
        };
        json!({
            "ops": self.rows.iter().map(row).collect::<Vec<_>>(),
            "in_no_kernel_ms": self.in_no_kernel(),
            "step_ms": self.step,
            "bracket_ms": self.bracket,
            "copy_bytes_per_second": self.ceilings.copy,
        })
    }
}

/// The rows in which no op runs, as what ranks exchange is on its way.
fn waits(travel: Travel) -> [Row; 2] {
    let row = |op: &str, seconds: f64| Row {
        op: op.into(),
        calls: 1.0,
        ms: 1e3 * seconds,
        bytes: 0.0,
        flops: 0.0,
        kernels: Vec::new(),
    };
    [
        row("gradients on their way after backward", travel.exposed),
        row("weights on their way", travel.weights),
    ]
}

/// A row of one of `steps` steps, less what the events around its launches took.
fn row(op: &OpTime, steps: f64, bracket: f64) -> Row {
    let net = |calls: u64, ms: f64| (ms - calls as f64 * bracket).max(0.0) / steps;
    let kernels: Vec<_> =
        op.kernels.iter().map(|k| (k.name, k.calls as f64 / steps, net(k.calls, k.milliseconds))).collect();
    Row {
        op: op.name.clone(),
        calls: op.calls as f64 / steps,
        ms: kernels.iter().map(|(_, _, ms)| ms).sum(),
        bytes: op.work.bytes as f64 / steps,
        flops: op.work.flops as f64 / steps,
        kernels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::cuda::{KernelTime, Work};

    fn breakdown() -> Breakdown {
        let kernel = |name, calls, milliseconds| KernelTime { name, calls, milliseconds };
        let op = |name: &str, work, kernels: Vec<KernelTime>| OpTime {
            name: name.into(),
            calls: 4,
            work,
            milliseconds: kernels.iter().map(|k| k.milliseconds).sum(),
            kernels,
        };
        let ops = [
            op("rows", Work { bytes: 8_000_000, flops: 0 }, vec![kernel("a", 4, 16.4), kernel("b", 8, 8.8)]),
            op("product", Work { bytes: 1_000, flops: 4_000_000 }, vec![kernel("c", 4, 8.4)]),
            op("unknown", Work::default(), vec![kernel("d", 4, 0.2)]),
        ];
        let ceilings = Ceilings { copy: 1e9, product: 1e9 };
        Breakdown {
            rows: ops.iter().map(|op| row(op, 4.0, 0.1)).collect(),
            step: 10.0,
            bracket: 0.1,
            ceilings,
        }
    }

    #[test]
    fn rows_and_what_no_kernel_took_add_up_to_the_step() {
        let b = breakdown();
        let ms: Vec<f64> = b.rows.iter().map(|row| row.ms).collect();
        // 16.4 and 8.8 ms less 12 brackets, 8.4 less 4, and never less than nothing
        let want = [(16.0 + 8.0) / 4.0, 8.0 / 4.0, 0.0];
        assert!(ms.iter().zip(want).all(|(ms, want)| (ms - want).abs() < 1e-9), "{ms:?}");
        assert!((b.in_no_kernel() - (10.0 - 6.0 - 2.0)).abs() < 1e-9);
        let close = |share: Option<(f64, &'static str)>, want: f64, what| {
            share.is_some_and(|(share, of)| (share - want).abs() < 1e-9 && of == what)
        };
        // 2 MB at 1 GB/s in 6 ms; 1 MFLOP at 1 GFLOP/s in 2 ms
        assert!(close(b.rows[0].share(&b.ceilings), 2.0 / 6.0, "memory"));
        assert!(close(b.rows[1].share(&b.ceilings), 1.0 / 2.0, "products"));
        assert_eq!(b.rows[2].share(&b.ceilings), None);
    }

    #[test]
    fn the_table_ends_with_the_step() {
        let mut text = Vec::new();
        breakdown().print(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for line in ["rows ", "in no kernel ", "step ", "  rows: a 1.0 x, 4.000 ms; b 2.0 x, 2.000 ms"] {
            assert!(text.lines().any(|l| l.starts_with(line)), "{line:?} in\n{text}");
        }
        assert!(text.contains("33.3%") && text.contains("50.0%") && text.contains("copy 1.0 GB/s"), "{text}");
        let told = breakdown().to_json();
        let sum: f64 = told["ops"].as_array().unwrap().iter().map(|op| op["ms"].as_f64().unwrap()).sum();
        assert!((sum + told["in_no_kernel_ms"].as_f64().unwrap() - 10.0).abs() < 1e-9);
    }
}
