//! Figures, their targets, and how a benchmark prints them.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::{Value, json};

/// The arguments that every benchmark takes.
#[derive(Clone, Debug, clap::Args)]
pub struct ReportArgs {
    /// Print one JSON array, to standard output or to FILE, instead of a table.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    json: Option<Option<PathBuf>>,
    /// Measure only what has this word in its name.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
}

impl ReportArgs {
    /// Whether `--only` leaves `name` in.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|word| name.contains(word))
    }

    /// Prints `figures` the way the arguments ask for.
    ///
    /// # Errors
    /// If standard output or the file cannot be written.
    pub fn print(&self, figures: &[Figure]) -> io::Result<()> {
        let array = || Value::Array(figures.iter().map(Figure::to_json).collect());
        match &self.json {
            Some(Some(file)) => {
                std::fs::write(file, format!("{:#}\n", array()))?;
                print_table(figures)
            }
            Some(None) => writeln!(io::stdout(), "{:#}", array()),
            None => print_table(figures),
        }
    }
}

/// Which way a figure gets better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    Higher,
    /// Times and sizes.
    Lower,
}

/// One measured figure: the median of its samples.
#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    unit: &'static str,
    better: Better,
    target: Option<f64>,
    samples: Vec<f64>,
}

impl Figure {
    /// A figure without a target, of at least one sample.
    ///
    /// # Panics
    /// If there is no sample.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        samples: Vec<f64>,
    ) -> Self {
        assert!(!samples.is_empty(), "a figure has at least one sample");
        Self {
            name: name.into(),
            unit,
            better,
            target: None,
            samples,
        }
    }

    /// Adds what the figure has to reach.
    #[must_use]
    pub const fn target(mut self, target: f64) -> Self {
        self.target = Some(target);
        self
    }

    /// The median.
    #[must_use]
    pub fn value(&self) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    /// Whether the target is reached; `None` if there is none.
    #[must_use]
    pub fn met(&self) -> Option<bool> {
        self.target.map(|target| match self.better {
            Better::Higher => self.value() >= target,
            Better::Lower => self.value() <= target,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "value": self.value(),
            "unit": self.unit,
            "target": self.target,
            "met": self.met(),
            "samples": self.samples,
        })
    }
}

fn print_table(figures: &[Figure]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let width = figures.iter().map(|f| f.name.len()).max().unwrap_or(0);
    for figure in figures {
        let (value, unit) = (figure.value(), figure.unit);
        write!(out, "{:<width$}  {value:>14.1} {unit:<10}", figure.name)?;
        match (figure.target, figure.met()) {
            (Some(target), Some(true)) => writeln!(out, "  target {target:.1} met")?,
            (Some(target), _) => writeln!(out, "  target {target:.1} MISSED")?,
            (None, _) => writeln!(out)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_judged_in_the_right_direction() {
        let rate = Figure::new("rate", "1/s", Better::Higher, vec![9.0, 1.0, 5.0]);
        assert_eq!(rate.met(), None);
        assert_eq!(rate.clone().target(5.0).met(), Some(true));
        assert_eq!(rate.target(6.0).met(), Some(false));
        let time = Figure::new("time", "ns", Better::Lower, vec![9.0, 1.0, 5.0]).target(6.0);
        assert_eq!(time.met(), Some(true));
        assert_eq!(time.to_json()["value"], 5.0);
    }
}
