//! The learning rate of each step.

use crate::config::{ScheduleConfig, ScheduleKind};

/// Learning rate of step `step` (from 0) of a run of `steps`.
///
/// Warmup is linear from `start_warmup_step`: `lr (s - start) / warmup` while `s - start < warmup`. Then, with N the
/// total steps and s capped at N:
/// - `polynomial`: `(lr - end) (1 - s/N)^power + end`, MLPerf's, the decay not offset by the warmup;
/// - `linear`: straight from lr at the warmup's end to `end` at N;
/// - `cosine`: half a cosine over the same way;
/// - `constant`: lr.
pub fn learning_rate(config: &ScheduleConfig, step: u64, steps: u64) -> f64 {
    let total = if config.total_steps > 0 { config.total_steps } else { steps };
    let since = step as i64 - config.start_warmup_step;
    if since < config.warmup_steps {
        return config.lr * since as f64 / config.warmup_steps as f64;
    }
    let warm_end = (config.start_warmup_step + config.warmup_steps).max(0) as f64;
    let after = ((step as f64 - warm_end) / (total as f64 - warm_end).max(1.0)).min(1.0);
    let span = config.lr - config.end_lr;
    match config.kind {
        ScheduleKind::Constant => config.lr,
        ScheduleKind::Linear => config.end_lr + span * (1.0 - after),
        ScheduleKind::Cosine => config.end_lr + span * 0.5 * (1.0 + (std::f64::consts::PI * after).cos()),
        ScheduleKind::Polynomial => {
            let left = 1.0 - step.min(total) as f64 / total.max(1) as f64;
            config.end_lr + span * left.powf(config.power)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig { kind, lr: 0.01, warmup_steps: 3, ..ScheduleConfig::default() }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-15, "{a} {b}");
    }

    #[test]
    fn polynomial_is_the_golden_files_schedule() {
        let c = ScheduleConfig { total_steps: 12, ..config(ScheduleKind::Polynomial) };
        close(learning_rate(&c, 0, 10), 0.0);
        close(learning_rate(&c, 2, 10), 0.01 * 2.0 / 3.0);
        close(learning_rate(&c, 3, 10), 0.01 * (1.0 - 3.0 / 12.0));
        close(learning_rate(&c, 20, 10), 0.0);
    }

    /// NVIDIA's trick of MLPerf v3.0: the warmup starts far below 0, so step 0 is at 99.8 % of the base rate.
    #[test]
    fn warmup_may_start_below_zero() {
        let c = ScheduleConfig {
            warmup_steps: 200_330,
            start_warmup_step: -200_000,
            ..config(ScheduleKind::Polynomial)
        };
        close(learning_rate(&c, 0, 700), 0.01 * 200_000.0 / 200_330.0);
        close(learning_rate(&c, 330, 700), 0.01 * (1.0 - 330.0 / 700.0));
    }

    #[test]
    fn linear_and_cosine_reach_their_ends() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let c = ScheduleConfig { end_lr: 0.001, ..config(kind) };
            close(learning_rate(&c, 3, 11), 0.01);
            close(learning_rate(&c, 7, 11), 0.0055);
            close(learning_rate(&c, 11, 11), 0.001);
            close(learning_rate(&c, 99, 11), 0.001);
        }
        close(learning_rate(&config(ScheduleKind::Constant), 1_000_000, 10), 0.01);
    }
}
