//! One table: what is promised, what was measured, what a peer needed in the same run.

use std::{fs, io};

/// Measurements of one thing, as a median with the spread around it.
#[derive(Clone)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// # Panics
    /// Without a sample: a bench that measured nothing has failed before.
    pub fn of(mut samples: Vec<f64>) -> Spread {
        assert!(!samples.is_empty(), "a bench measures at least once");
        samples.sort_by(f64::total_cmp);
        Spread(samples)
    }

    fn at(&self, percent: usize) -> f64 {
        self.0[(self.0.len() - 1) * percent / 100]
    }

    pub fn median(&self) -> f64 {
        self.at(50)
    }

    fn shown(&self, unit: &str) -> String {
        format!("{} {unit} ({}–{})", number(self.median()), number(self.at(10)), number(self.at(90)))
    }
}

/// Three figures, and no more than are known.
fn number(n: f64) -> String {
    match n {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

pub enum Aim {
    /// In the row's unit.
    AtMost(f64),
    /// As a multiple of the peer's median.
    OfPeer(f64),
    /// Shown for what it is: nothing is promised.
    None,
}

pub struct Row {
    pub promise: &'static str,
    pub aim: Aim,
    pub unit: &'static str,
    pub ours: Spread,
    /// What it is compared with, and that one's measure.
    pub peer: Option<(&'static str, Spread)>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.peer.as_ref().map(|(_, peer)| self.ours.median() / peer.median())
    }

    fn cells(&self) -> [String; 6] {
        let (aim, kept) = match self.aim {
            Aim::AtMost(most) => (format!("≤ {most} {}", self.unit), Some(self.ours.median() <= most)),
            Aim::OfPeer(most) => (format!("≤ {most} × peer"), self.ratio().map(|ratio| ratio <= most)),
            Aim::None => ("none".to_owned(), None),
        };
        let peer = self.peer.as_ref().map(|(name, spread)| format!("{name}: {}", spread.shown(self.unit)));
        [
            self.promise.to_owned(),
            aim,
            self.ours.shown(self.unit),
            peer.unwrap_or_default(),
            self.ratio().map(|r| format!("{r:.2}")).unwrap_or_default(),
            kept.map(|kept| if kept { "kept" } else { "MISSED" }).unwrap_or_default().to_owned(),
        ]
    }
}

/// Prints rows as a table that is readable as text and as Markdown. Spreads are the 10th to the 90th percentile.
pub fn table(rows: &[Row]) {
    let head = ["promise", "aim", "measured: median (p10–p90)", "peer, same run", "ratio", ""].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("| {} |", cells.join(" | "));
        if i == 0 {
            println!("|{}|", widths.map(|w| "-".repeat(w + 2)).join("|"));
        }
    }
}

/// Who else uses this machine: the load averages say how far to trust what stands beside them.
pub fn machine(when: &str) -> io::Result<()> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let load = read("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(2).collect();
    let processors = std::thread::available_parallelism()?;
    println!("{when}: {processors} processors, Linux {}, load {}", read("/proc/sys/kernel/osrelease")?, load.join(" "));
    Ok(())
}
