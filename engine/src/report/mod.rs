//! `RUN/report.html`: a run's curves, settings and results in one file that needs nothing else.

mod chart;

use crate::checkpoint::staging::replace_file;
use crate::error::Result;
use crate::metrics;
use chart::{Colour, Mark, Series};
use serde_json::{Map, Value};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// What the report says besides the curves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportSummary {
    /// The page's title, the run's name for example.
    pub title: String,
    /// One sentence: what was reached.
    pub outcome: String,
    /// Final figures, name and value.
    pub results: Vec<(String, String)>,
    /// Settings, name and value.
    pub settings: Vec<(String, String)>,
    /// Entropy of the text's token frequencies, nats: what a model reaches that ignores context.
    pub unigram_entropy: Option<f64>,
    /// MLM accuracy that ends the run.
    pub target_accuracy: Option<f64>,
}

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #d8dde3; --soft: #5c6670; --back: #ffffff; --text: #1c2126; }
@media (prefers-color-scheme: dark) {
  :root { --line: #343a41; --soft: #9aa4ae; --back: #15181c; --text: #e6e9ec; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 0; }
p { color: var(--soft); margin: .2rem 0 .6rem; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--line); padding: .25rem .5rem .25rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--soft); width: 40%; }
.key { display: inline-block; width: 1.4em; height: .2em; vertical-align: middle; margin: 0 .4em 0 1em; }
";

/// With what every report begins; its title follows.
pub(crate) const BEGINNING: &[u8] = BEGIN.as_bytes();
const BEGIN: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" \
                     content=\"width=device-width, initial-scale=1\"/>\n<title>";

/// Writes the report from `metrics.jsonl` and the summary, in place of an earlier one.
///
/// # Errors
/// What the system answers.
pub fn write(run: &Path, summary: &ReportSummary) -> Result<PathBuf> {
    let records = metrics::read(run)?;
    let path = run.join("report.html");
    replace_file(&path, page(&records, summary)?.as_bytes())?;
    Ok(path)
}

/// The values of a key over the steps.
fn points(records: &[Map<String, Value>], key: &str) -> Vec<(f64, f64)> {
    let point = |r: &Map<String, Value>| Some((r.get("step")?.as_f64()?, r.get(key)?.as_f64()?));
    records.iter().filter_map(point).collect()
}

/// Titles and lines of all charts.
fn charts(records: &[Map<String, Value>], summary: &ReportSummary) -> Vec<(&'static str, Vec<Series>)> {
    let line = |label: &str, key: &str, mark: Mark, colour: Colour| Series {
        label: label.to_owned(),
        mark,
        colour,
        points: points(records, key),
    };
    let train = |label, key| line(label, key, Mark::Curve, Colour::TRAIN);
    let eval = |label, key| line(label, key, Mark::Dots, Colour::EVAL);
    let level = |label: &str, value: Option<f64>| Series {
        label: format!("{label} {:.3}", value.unwrap_or_default()),
        mark: Mark::Level,
        colour: Colour::LEVEL,
        points: value.map(|v| (0.0, v)).into_iter().collect(),
    };
    vec![
        (
            "MLM loss (nats)",
            vec![
                level("unigram entropy", summary.unigram_entropy),
                train("training", "mlm_loss"),
                eval("held out", "eval_mlm_loss"),
            ],
        ),
        (
            "MLM accuracy",
            vec![
                level("target", summary.target_accuracy),
                train("training", "mlm_accuracy"),
                eval("held out", "eval_mlm_accuracy"),
            ],
        ),
        (
            "Next-sentence accuracy",
            vec![train("training", "nsp_accuracy"), eval("held out", "eval_nsp_accuracy")],
        ),
        ("Learning rate", vec![train("learning rate", "lr")]),
        ("Gradient norm before clipping", vec![train("gradient norm", "grad_norm")]),
        ("Tokens per second", vec![train("tokens/s", "tokens_per_second")]),
    ]
}

fn page(records: &[Map<String, Value>], summary: &ReportSummary) -> Result<String> {
    let mut body = format!("<h1>{}</h1>\n<p>{}</p>\n", escape(&summary.title), escape(&summary.outcome));
    table(&mut body, "Results", &summary.results);
    for (title, series) in charts(records, summary) {
        let Some(svg) = chart::svg(&series)? else { continue };
        let mut legend = String::new();
        for s in series.iter().filter(|s| !s.points.is_empty()) {
            let Colour(r, g, b) = s.colour;
            let label = escape(&s.label);
            push(
                &mut legend,
                format_args!("<span class=\"key\" style=\"background:rgb({r},{g},{b})\"></span>{label}"),
            );
        }
        push(&mut body, format_args!("<h2>{title}</h2>\n<p>{legend}</p>\n{svg}\n"));
    }
    if records.is_empty() {
        body.push_str("<p>No step has been logged yet.</p>\n");
    }
    table(&mut body, "Settings", &summary.settings);
    Ok(format!(
        "{BEGIN}{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(&summary.title)
    ))
}

fn table(body: &mut String, title: &str, rows: &[(String, String)]) {
    if rows.is_empty() {
        return;
    }
    push(body, format_args!("<h2>{title}</h2>\n<table>\n"));
    for (name, value) in rows {
        push(body, format_args!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value)));
    }
    body.push_str("</table>\n");
}

fn push(text: &mut String, what: std::fmt::Arguments) {
    text.write_fmt(what).expect("writing to a String cannot fail");
}

/// Text for HTML; control characters, which no document may hold, become spaces.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{EvalRecord, MetricsLog, TrainRecord};
    use roxmltree::{Document, ParsingOptions};
    use tempfile::TempDir;

    fn summary() -> ReportSummary {
        ReportSummary {
            title: "quick<start> & \"more\"".into(),
            outcome: "MLM loss 5.2\u{7} at step 200".into(),
            results: vec![("Held-out MLM loss".into(), "5.312".into())],
            settings: vec![("model.hidden".into(), "128".into())],
            unigram_entropy: Some(6.1),
            target_accuracy: None,
        }
    }

    fn logged() -> TempDir {
        let run = TempDir::new().unwrap();
        let mut log = MetricsLog::open(run.path(), None).unwrap();
        for step in (10..=200).step_by(10) {
            let loss = 5.0 + 5.0 * (-(step as f64) / 60.0).exp();
            let mlm_loss = if step == 50 { f64::NAN } else { loss };
            let nsp_accuracy = None;
            let lr = 1e-4 * (1.0 - step as f64 / 200.0);
            let record = TrainRecord {
                step,
                loss,
                mlm_loss,
                nsp_accuracy,
                lr,
                grad_norm: 1.5,
                mlm_accuracy: 0.2,
                tokens_per_second: 12_345.0 + (step % 30) as f64,
                ..TrainRecord::default()
            };
            log.train(&record).unwrap();
            if step % 100 == 0 {
                let record = EvalRecord {
                    step,
                    eval_mlm_loss: loss + 0.1,
                    eval_mlm_accuracy: 0.19,
                    ..EvalRecord::default()
                };
                log.eval(&record).unwrap();
            }
        }
        run
    }

    #[test]
    fn the_page_is_well_formed_and_shows_what_was_logged() {
        let run = logged();
        let path = write(run.path(), &summary()).unwrap();
        let html = std::fs::read_to_string(path).unwrap();
        let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
        let page = Document::parse_with_options(&html, options).unwrap();
        let named = |name: &'static str| page.descendants().filter(move |n| n.tag_name().name() == name);
        let headings: Vec<_> = named("h2").filter_map(|n| n.text()).collect();
        assert_eq!(
            headings,
            [
                "Results",
                "MLM loss (nats)",
                "MLM accuracy",
                "Learning rate",
                "Gradient norm before clipping",
                "Tokens per second",
                "Settings"
            ]
        );
        assert_eq!(named("svg").count(), 5);
        assert_eq!(named("circle").count(), 4, "two evaluations in two charts");
        assert_eq!(named("title").next().unwrap().text(), Some("quick<start> & \"more\""));
        assert!(html.contains("unigram entropy 6.100"));
        assert!(
            !html.contains("http://") || html.matches("http").count() == html.matches("www.w3.org").count()
        );
    }

    #[test]
    fn a_run_without_metrics_has_a_report_and_it_is_replaced_later() {
        let run = TempDir::new().unwrap();
        let path = write(run.path(), &summary()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("No step has been logged yet"));
        std::fs::copy(logged().path().join("metrics.jsonl"), run.path().join("metrics.jsonl")).unwrap();
        write(run.path(), &summary()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("<svg"));
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 2);
    }
}
