//! The plot: small panels over one logarithmic axis of files, each with its own unit from 0 and its bound as a dashed
//! line. One self-contained file that follows the reader's light or dark scheme.

use super::figures::{self, Figures, Row, mib};

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 215.0;
const COLUMNS: usize = 3;
/// The plotting area within a panel: left, top, width, height.
const AREA: (f64, f64, f64, f64) = (52.0, 34.0, 262.0, 140.0);

const STYLE: &str = "
  .back { fill: #ffffff } .text { fill: #24292f; font: 11px sans-serif } .title { font-weight: bold; font-size: 12px }
  .grid { stroke: #d0d7de; stroke-width: 1 } .bound { stroke: #cf222e; stroke-dasharray: 5 4; stroke-width: 1.5 }
  .bound-text { fill: #cf222e } .line { fill: none; stroke-width: 2 }
  .s0 { stroke: #0969da } .s1 { stroke: #bc4c00 } .s2 { stroke: #1a7f37 }
  .f0 { fill: #0969da } .f1 { fill: #bc4c00 } .f2 { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .text { fill: #e6edf3 } .grid { stroke: #30363d }
    .bound { stroke: #ff7b72 } .bound-text { fill: #ff7b72 }
    .s0 { stroke: #58a6ff } .s1 { stroke: #f0883e } .s2 { stroke: #56d364 }
    .f0 { fill: #58a6ff } .f1 { fill: #f0883e } .f2 { fill: #56d364 }
  }
";

type Curve = (&'static str, fn(&Row) -> f64);

struct Panel {
    title: &'static str,
    curves: Vec<Curve>,
    bound: Option<f64>,
}

pub fn draw(f: &Figures) -> String {
    let panels = [
        Panel {
            title: "creating a file of 1 KiB, one writer (µs)",
            curves: vec![("one file", |r| r.create_us)],
            bound: Some(f.rows[0].create_us * figures::CREATE_RATIO_MAX),
        },
        Panel {
            title: "files created a second, four writers",
            curves: vec![("since the last mark", |r| r.creates_per_s)],
            bound: None,
        },
        Panel {
            title: "mounting (s)",
            curves: vec![
                ("clean", |r| r.mount_clean_s),
                ("after kill -9", |r| r.mount_killed_s),
                ("cold disk", |r| r.mount_cold_s),
            ],
            bound: Some(figures::MOUNT_S_MAX),
        },
        Panel {
            title: "fsync of one small change (ms)",
            curves: vec![("median", |r| r.sync_ms), ("worst of 31", |r| r.sync_worst_ms)],
            bound: None,
        },
        Panel {
            title: "memory of the daemon, most (MiB)",
            curves: vec![("filling", |r| mib(r.fill_rss)), ("find", |r| mib(r.find_rss))],
            bound: Some(mib(figures::RSS_MAX)),
        },
        Panel {
            title: "store: bytes a file of 1 KiB",
            curves: vec![("all", Row::bytes_a_file), ("catalog", |r| r.catalog_bytes as f64 / r.files as f64)],
            bound: Some(f.bytes_a_file_max()),
        },
    ];
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * panels.len().div_ceil(COLUMNS) as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         role=\"img\">\n<title>How ssefs grows with the number of files</title>\n<style>{STYLE}</style>\n\
         <rect class=\"back\" width=\"{width}\" height=\"{height}\"/>\n"
    );
    for (i, p) in panels.iter().enumerate() {
        let (x, y) = ((i % COLUMNS) as f64 * WIDTH, (i / COLUMNS) as f64 * HEIGHT);
        out += &format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", panel(p, &f.rows));
    }
    out + "</svg>\n"
}

fn panel(p: &Panel, rows: &[Row]) -> String {
    let (left, top, width, height) = AREA;
    let most = rows.iter().flat_map(|r| p.curves.iter().map(|c| c.1(r))).chain(p.bound).fold(0.0, f64::max);
    let (step, most) = scale(most);
    let (first, last) = ((rows[0].mark as f64).log10(), (rows[rows.len() - 1].mark as f64).log10());
    let x = |files: u64| left + ((files as f64).log10() - first) / (last - first) * width;
    let y = |v: f64| top + height - v / most * height;
    let right = left + width;
    let mut out = format!("<text class=\"text title\" x=\"{left}\" y=\"20\">{}</text>\n", p.title);
    let mut text = |x: f64, y: f64, class: &str, anchor: &str, s: &str| {
        out += &format!("<text class=\"text {class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{s}</text>\n");
    };
    for i in 0..=(most / step).round() as u32 {
        let v = f64::from(i) * step;
        text(left - 6.0, y(v) + 4.0, "", "end", &number(v));
    }
    for r in rows {
        let name = match r.mark {
            m if m % 1_000_000 == 0 => format!("{}M", m / 1_000_000),
            m => format!("{}k", m / 1000),
        };
        text(x(r.mark), top + height + 15.0, "", "middle", &name);
    }
    let mut at = left;
    for (i, (name, _)) in p.curves.iter().enumerate() {
        text(at, top + height + 32.0, &format!("f{i}"), "start", name);
        at += name.chars().count() as f64 * 6.5 + 16.0;
    }
    if let Some(b) = p.bound {
        text(right, y(b) - 4.0, "bound-text", "end", &format!("bound {}", number(b)));
    }
    for i in 0..=(most / step).round() as u32 {
        let v = y(f64::from(i) * step);
        out += &format!("<path class=\"grid\" d=\"M{left} {v:.1}H{right}\"/>\n");
    }
    if let Some(b) = p.bound {
        out += &format!("<path class=\"bound\" d=\"M{left} {:.1}H{right}\"/>\n", y(b));
    }
    for (i, (_, value)) in p.curves.iter().enumerate() {
        let points: Vec<String> = rows.iter().map(|r| format!("{:.1},{:.1}", x(r.mark), y(value(r)))).collect();
        out += &format!("<polyline class=\"line s{i}\" points=\"{}\"/>\n", points.join(" "));
        for r in rows {
            out += &format!("<circle class=\"f{i}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>\n", x(r.mark), y(value(r)));
        }
    }
    out
}

/// A round step and the top of an axis that shows `most`.
fn scale(most: f64) -> (f64, f64) {
    let raw = most.max(1e-9) * 1.1 / 4.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw).unwrap_or(10.0 * power);
    (step, step * (most * 1.1 / step).ceil())
}

fn number(v: f64) -> String {
    match v {
        v if v >= 10_000.0 => format!("{:.0}k", v / 1000.0),
        v if v >= 10.0 || v == v.round() => format!("{v:.0}"),
        v => format!("{v:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    }
}
