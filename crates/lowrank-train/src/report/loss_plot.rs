//! Plots of a metric over the steps, as PNG and SVG: each value, the smoothed course, and the
//! evaluations as points. Named and smoothed as LLaMA-Factory's `plot_loss` does it.

use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{MetricsHistory, ReportError};
use crate::durable::{DurableFs, RealFs, write_replace};

const SIZE: (u32, u32) = (1000, 600);

/// The letters of ASCII from DejaVu Sans; its licence lies beside it.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-ASCII.ttf");
const FONT_FAMILY: &str = "sans-serif";

const INK: RGBColor = RGBColor(38, 43, 51);
const GRID: RGBColor = RGBColor(223, 226, 231);
const BLUE: RGBColor = RGBColor(31, 99, 181);
const PALE_BLUE: RGBColor = RGBColor(164, 195, 230);
const ORANGE: RGBColor = RGBColor(222, 98, 12);

/// Draws `training_<key>.png` and `training_<key>.svg` in `output_dir` for the metric `key`, with
/// `eval_<key>` as points, and returns their paths; none if neither was measured. (A `/` in the
/// key becomes `_`.)
///
/// # Errors
/// [`ReportError::Plot`] or [`ReportError::Io`] with the path.
pub fn plot(
    output_dir: &Path,
    history: &MetricsHistory,
    key: &str,
) -> Result<Vec<PathBuf>, ReportError> {
    let Some(curves) = Curves::new(history, key) else { return Ok(Vec::new()) };
    let stem = format!("training_{}", key.replace('/', "_"));
    let png = output_dir.join(format!("{stem}.png"));
    write_png(&curves, &png)?;
    let svg = output_dir.join(format!("{stem}.svg"));
    write_svg(&curves, &svg)?;
    Ok(vec![png, svg])
}

/// The exponential moving average of LLaMA-Factory: the more values, the smoother, up to a weight
/// of 0.9 for the past.
pub fn smooth(values: &[f64]) -> Vec<f64> {
    let sigmoid = 1.0 / (1.0 + (-0.05 * values.len() as f64).exp());
    let weight = 1.8 * (sigmoid - 0.5);
    let mut last = values.first().copied().unwrap_or_default();
    let next = values.iter().map(|value| {
        last = last * weight + (1.0 - weight) * value;
        last
    });
    next.collect()
}

/// What is drawn; only finite values.
struct Curves {
    key: String,
    training: Vec<(f64, f64)>,
    smoothed: Vec<(f64, f64)>,
    evaluation: Vec<(f64, f64)>,
}

impl Curves {
    fn new(history: &MetricsHistory, key: &str) -> Option<Self> {
        let finite = |name: &str| -> Vec<(f64, f64)> {
            let points = history.series(name).into_iter().filter(|(_, value)| value.is_finite());
            points.map(|(step, value)| (step as f64, value)).collect()
        };
        let (training, evaluation) = (finite(key), finite(&format!("eval_{key}")));
        if training.is_empty() && evaluation.is_empty() {
            return None;
        }
        let values: Vec<f64> = training.iter().map(|(_, value)| *value).collect();
        let smoothed = training.iter().zip(smooth(&values)).map(|((step, _), v)| (*step, v));
        Some(Self { key: key.to_owned(), smoothed: smoothed.collect(), training, evaluation })
    }

    /// `rewards/accuracies` → `rewards accuracies`.
    fn label(&self) -> String {
        self.key.replace(['/', '_'], " ")
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.training.iter().chain(&self.evaluation)
    }

    /// The legend goes where a curve that ends low, or high, leaves room.
    fn legend_position(&self, (low, high): (f64, f64)) -> SeriesLabelPosition {
        let last = self.smoothed.last().or(self.evaluation.last());
        match last {
            Some((_, value)) if *value > (low + high) / 2.0 => SeriesLabelPosition::LowerRight,
            _ => SeriesLabelPosition::UpperRight,
        }
    }
}

/// The least and greatest of `values`, with room for `share` of their distance around them, or
/// for `alone` if there is no distance.
fn range(values: impl Iterator<Item = f64>, share: f64, alone: f64) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let room = if high > low { (high - low) * share } else { high.abs().mul_add(0.1, alone) };
    (low - room, high + room)
}

fn draw<DB: DrawingBackend>(area: &DrawingArea<DB, Shift>, curves: &Curves) -> Result<(), String> {
    register_font()?;
    draw_chart(area, curves).map_err(|error| error.to_string())?;
    area.present().map_err(|error| error.to_string())
}

fn draw_chart<DB: DrawingBackend>(
    area: &DrawingArea<DB, Shift>,
    curves: &Curves,
) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let text = |size: u32| (FONT_FAMILY, size).into_font().color(&INK);
    let centred = text(22).pos(Pos::new(HPos::Center, VPos::Center));
    area.fill(&WHITE)?;
    let title = format!("Training {}", curves.label());
    area.draw(&Text::new(title, (SIZE.0 as i32 / 2 + 20, 24), centred))?;

    let (x, y) = (
        range(curves.points().map(|(step, _)| *step), 0.0, 1.0),
        range(curves.points().map(|(_, value)| *value), 0.06, 1e-9),
    );
    let mut chart = ChartBuilder::on(area)
        .margin(14)
        .margin_top(46)
        .margin_right(28)
        .x_label_area_size(52)
        .y_label_area_size(74)
        .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(curves.label())
        .x_labels(10)
        .y_labels(9)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(text(15))
        .axis_desc_style(text(17))
        .x_label_formatter(&|step| step_label(*step))
        .y_label_formatter(&|value| value_label(*value, y))
        .draw()?;

    if !curves.training.is_empty() {
        chart
            .draw_series(LineSeries::new(curves.training.iter().copied(), PALE_BLUE))?
            .label(curves.label())
            .legend(|(x, y)| PathElement::new([(x, y), (x + 26, y)], PALE_BLUE.stroke_width(2)));
        if let [alone] = curves.training[..] {
            chart.draw_series([Circle::new(alone, 4, BLUE.filled())])?;
        }
        let line = BLUE.stroke_width(3);
        chart
            .draw_series(LineSeries::new(curves.smoothed.iter().copied(), line))?
            .label(format!("{} (smoothed)", curves.label()))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], line));
    }
    if !curves.evaluation.is_empty() {
        let dot = |at| Circle::new(at, 5, ORANGE.filled());
        chart
            .draw_series(curves.evaluation.iter().map(|at| dot(*at)))?
            .label(format!("eval {}", curves.label()))
            .legend(|(x, y)| Circle::new((x + 13, y), 5, ORANGE.filled()));
    }
    chart
        .configure_series_labels()
        .position(curves.legend_position(y))
        .margin(16)
        .legend_area_size(36)
        .background_style(WHITE.mix(0.9))
        .border_style(GRID)
        .label_font(text(16))
        .draw()
}

/// Steps are whole; a grid line between two of them has no label.
fn step_label(step: f64) -> String {
    if step.fract() == 0.0 { step.to_string() } else { String::new() }
}

/// A label with as many digits as tell the grid lines of this range apart.
fn value_label(value: f64, (low, high): (f64, f64)) -> String {
    let (size, width) = (low.abs().max(high.abs()), high - low);
    if (1e-2..1e6).contains(&size) {
        let places = (1.0 - width.log10().floor()).clamp(0.0, 12.0) as usize;
        format!("{value:.places$}")
    } else {
        let places = (1.0 + (size / width).log10().ceil()).clamp(1.0, 12.0) as usize;
        format!("{value:.places$e}")
    }
}

fn register_font() -> Result<(), String> {
    let registered = plotters::style::register_font(FONT_FAMILY, FontStyle::Normal, FONT);
    registered.map_err(|_| "the built-in font cannot be read".to_owned())
}

fn write_png(curves: &Curves, path: &Path) -> Result<(), ReportError> {
    // The backend writes a file itself, unsynced, and goes by the ending of its name.
    let unfinished = path.with_extension("unfinished.png");
    let drawn = draw(&BitMapBackend::new(&unfinished, SIZE).into_drawing_area(), curves);
    let bytes = drawn
        .map_err(|reason| ReportError::Plot { path: path.to_owned(), reason })
        .and_then(|()| Ok(RealFs.read(&unfinished)?));
    RealFs.remove(&unfinished)?;
    Ok(write_replace(&RealFs, path, &bytes?)?)
}

fn write_svg(curves: &Curves, path: &Path) -> Result<(), ReportError> {
    let mut svg = String::new();
    let drawn = draw(&SVGBackend::with_string(&mut svg, SIZE).into_drawing_area(), curves);
    drawn.map_err(|reason| ReportError::Plot { path: path.to_owned(), reason })?;
    Ok(write_replace(&RealFs, path, svg.as_bytes())?)
}
