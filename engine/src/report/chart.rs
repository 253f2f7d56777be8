//! One chart as SVG. Lines and text take the page's colours, so that a chart reads in light and in dark.

use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::fmt::Display;

const SIZE: (u32, u32) = (900, 380);
/// Most points of a curve; neighbours are averaged beyond.
const MAX_POINTS: usize = 800;
/// Stands for the text's colour until the SVG is complete.
const TEXT: RGBColor = RGBColor(1, 2, 3);
/// Grid and axes: mid grey shows on white and on black.
const AXIS: RGBColor = RGBColor(128, 128, 128);

/// A colour with its name for CSS.
#[derive(Clone, Copy)]
pub(super) struct Colour(pub(super) u8, pub(super) u8, pub(super) u8);

impl Colour {
    pub(super) const TRAIN: Self = Self(31, 119, 200);
    pub(super) const EVAL: Self = Self(226, 112, 20);
    pub(super) const LEVEL: Self = Self(40, 150, 80);

    fn rgb(self) -> RGBColor {
        RGBColor(self.0, self.1, self.2)
    }
}

/// What is drawn over the steps.
pub(super) enum Mark {
    /// Joined points.
    Curve,
    /// Joined points, each with a dot.
    Dots,
    /// A dashed horizontal line at the first point's height.
    Level,
}

/// One line of a chart.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) mark: Mark,
    pub(super) colour: Colour,
    /// `(step, value)`.
    pub(super) points: Vec<(f64, f64)>,
}

/// Averages neighbours until at most [`MAX_POINTS`] remain, and leaves out what is not finite. Values that a diverged
/// run may have are bounded: beyond, the drawing crate does not find the axis' labels.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    const BOUND: f64 = 1e30;
    let finite = points.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
    let finite: Vec<_> = finite.map(|&(x, y)| (x, y.clamp(-BOUND, BOUND))).collect();
    let group = finite.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0 / n).sum(), part.iter().map(|p| p.1 / n).sum())
    };
    finite.chunks(group).map(mean).collect()
}

/// A range that holds all values with some air, never empty.
fn range(values: impl Iterator<Item = f64>, air: f64) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let least = (low.abs().max(high.abs()) * 1e-3).max(1e-12);
    let air = ((high - low) * air).max(if high - low < least { least } else { 0.0 });
    low - air..high + air
}

/// A number as short as it can be read, with three digits below one: 12k, 0.25, 0.0012, 3e-5.
fn short(value: &f64) -> String {
    let size = value.abs();
    let trimmed = |v: f64, unit: &str| {
        let places = if size < 0.01 {
            5
        } else if size < 0.1 {
            4
        } else {
            3
        };
        let text = format!("{v:.places$}");
        format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match size {
        0.0 => "0".to_owned(),
        s if !(1e-3..1e12).contains(&s) => {
            let text = format!("{value:.2e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        s if s >= 1e9 => trimmed(value / 1e9, "G"),
        s if s >= 1e6 => trimmed(value / 1e6, "M"),
        s if s >= 1e4 => trimmed(value / 1e3, "k"),
        _ => trimmed(*value, ""),
    }
}

/// Draws the series that have points; none if there is nothing to draw.
pub(super) fn svg(series: &[Series]) -> Result<Option<String>> {
    let thin: Vec<(&Series, Vec<(f64, f64)>)> =
        series.iter().map(|s| (s, thinned(&s.points))).filter(|(_, p)| !p.is_empty()).collect();
    if thin.iter().all(|(s, _)| matches!(s.mark, Mark::Level)) {
        return Ok(None);
    }
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, &thin).map_err(|e| Error::Training(format!("cannot draw the report's chart: {e}")))?;
    }
    Ok(Some(text.replace("#010203", "currentColor")))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(area: &Area, thin: &[(&Series, Vec<(f64, f64)>)]) -> std::result::Result<(), impl Display + use<>> {
    let moving = thin.iter().filter(|(s, _)| !matches!(s.mark, Mark::Level));
    let x = range(moving.flat_map(|(_, p)| p.iter().map(|p| p.0)), 0.0);
    let y = range(thin.iter().flat_map(|(_, p)| p.iter().map(|p| p.1)), 0.05);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(40)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x.clone(), y)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(AXIS.mix(0.3))
        .light_line_style(AXIS.mix(0.0))
        .axis_style(AXIS)
        .label_style(("sans-serif", 17, &TEXT))
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .x_labels(8)
        .y_labels(6)
        .x_desc("step")
        .draw()?;
    for (series, points) in thin {
        let colour = series.colour.rgb();
        match series.mark {
            Mark::Curve => drop(chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?),
            Mark::Dots => {
                chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
                chart.draw_series(points.iter().map(|&p| Circle::new(p, 5, colour.filled())))?;
            }
            Mark::Level => {
                let level = [(x.start, points[0].1), (x.end, points[0].1)];
                chart.draw_series(DashedLineSeries::new(level, 8, 6, colour.stroke_width(2)))?;
            }
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: Vec<(f64, f64)>) -> Series {
        Series { label: "a".into(), mark: Mark::Curve, colour: Colour::TRAIN, points }
    }

    #[test]
    fn any_numbers_give_well_formed_svg() {
        let extremes = [f64::NAN, f64::INFINITY, 0.0, 1e-300, 1e300, -1e300, f64::MAX, 5.0, 5.0];
        for n in 1..=extremes.len() {
            for skip in 0..n {
                let points = extremes[skip..n].iter().enumerate().map(|(i, &y)| (i as f64, y)).collect();
                if let Some(svg) = svg(&[curve(points)]).unwrap() {
                    roxmltree::Document::parse(&svg).unwrap();
                }
            }
        }
    }

    #[test]
    fn values_close_together_far_from_zero_are_drawn() {
        let points = (0..9).map(|i| (1e15 + i as f64, 1e9 + i as f64 * 1e-7)).collect();
        roxmltree::Document::parse(&svg(&[curve(points)]).unwrap().unwrap()).unwrap();
    }

    #[test]
    fn nothing_to_draw_gives_no_chart() {
        let level = Series { mark: Mark::Level, ..curve(vec![(0.0, 1.0)]) };
        assert!(svg(&[level, curve(vec![(1.0, f64::NAN)])]).unwrap().is_none());
    }

    #[test]
    fn long_runs_are_thinned_and_keep_their_mean() {
        let points: Vec<_> = (0..100_000).map(|i| (i as f64, (i % 2) as f64)).collect();
        let thin = thinned(&points);
        assert!(thin.len() <= MAX_POINTS);
        assert!(thin.iter().all(|p| (p.1 - 0.5).abs() < 0.01));
    }

    #[test]
    fn numbers_are_short() {
        let shown = [0.0, 0.25, 12_000.0, 3.5e6, 3e-5, 1500.0, -2.0].map(|v| short(&v));
        assert_eq!(shown, ["0", "0.25", "12k", "3.5M", "3e-5", "1500", "-2"]);
        // neighbours on an axis of learning rates or accuracies stay apart
        assert_eq!([8e-4, 1e-3, 1.2e-3, 0.0125].map(|v| short(&v)), ["8e-4", "0.001", "0.0012", "0.0125"]);
    }
}
