//! `eval` and `fill-mask` with `--device cuda`.

use super::emulated;
use crate::cli::Workplace;

/// The number behind a label of eval's report.
#[track_caller]
fn number(report: &str, label: &str) -> f64 {
    let line = report.lines().find_map(|line| line.strip_prefix(label));
    line.and_then(|rest| rest.trim().parse().ok()).unwrap_or_else(|| panic!("no {label} in {report}"))
}

/// The probabilities that fill-mask prints, in percent.
fn probabilities(said: &str) -> Vec<f64> {
    said.lines().map(|line| line.split('%').next().unwrap().trim().parse().unwrap()).collect()
}

#[test]
fn a_model_predicts_as_on_the_cpu() {
    let place = Workplace::with_corpus();
    place.line("--config tiny.toml").done();
    let eval = "eval --model run --data shards --batch-sequences 7";
    let cpu = place.line(&format!("{eval} --device cpu")).done();
    for (precision, band) in [("f32", 1e-4), ("bf16", 0.02)] {
        let line = format!("{eval} --device cuda --precision {precision}");
        let Some(ran) = emulated(&place, &line, &[]) else { return };
        let gpu = ran.done();
        for label in ["MLM loss", "NSP loss"] {
            let (gpu, cpu) = (number(&gpu, label), number(&cpu, label));
            // four digits are printed
            assert!((gpu - cpu).abs() <= band * cpu + 1e-4, "{precision}, {label}: {gpu}, on the CPU {cpu}");
        }
        let first = |said: &str| said.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(first(&gpu), first(&cpu), "model and data");
    }

    let fill = "fill-mask --model run --top 4 [MASK]";
    let cpu = probabilities(&place.line(&format!("{fill} --device cpu")).done());
    let gpu = probabilities(&emulated(&place, &format!("{fill} --device cuda"), &[]).unwrap().done());
    assert_eq!(gpu.len(), 4);
    for (gpu, cpu) in gpu.iter().zip(&cpu) {
        assert!((gpu - cpu).abs() <= 0.03 * cpu + 0.01, "{gpu} %, on the CPU {cpu} %");
    }

    // auto takes what there is, and says so
    let Some(ran) = emulated(&place, eval, &[]) else { return };
    assert!(ran.stderr.contains("device auto: GPU 0"), "{}", ran.stderr);
    ran.done();
    let error = place.line(&format!("{eval} --device cpu --precision bf16")).failed();
    assert!(error.starts_with("--precision: bf16 is for GPUs"), "{error}");
}
