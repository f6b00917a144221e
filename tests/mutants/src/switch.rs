//! Writes a source file in which every defect is behind a switch.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::points::{Kind, Point};

/// A defect by its number, which is unique in a build.
pub(crate) type Number = u32;

/// A source file with switches.
pub(crate) struct Switched {
    pub(crate) text: String,
    /// Which bytes of the text exist because of which defects.
    parts: Vec<(Range<usize>, Vec<Number>)>,
}

impl Switched {
    /// The defects that an error of the compiler at these bytes is due to: those of the smallest
    /// part around it.
    pub(crate) fn defects_at(&self, bytes: &Range<usize>) -> &[Number] {
        let around = self.parts.iter().filter(|(part, _)| part.start <= bytes.start && bytes.end <= part.end);
        around.min_by_key(|(part, _)| part.len()).map_or(&[], |(_, numbers)| numbers)
    }
}

/// The file with all its defects, where the first has the given number. Those in `without` are left
/// out.
pub(crate) fn switched(
    source: &str,
    points: &[Point],
    first: Number,
    without: &BTreeSet<Number>,
) -> Switched {
    let mut numbered = Vec::new();
    let mut next = first;
    for point in points {
        let numbers = next..next + point.defects.len() as Number;
        next = numbers.end;
        numbered.push(Numbered { point, numbers });
    }
    // The outermost first, and a statement before the expression that it consists of.
    numbered.sort_by_key(|numbered| {
        let range = &numbered.point.range;
        (range.start, std::cmp::Reverse(range.end), numbered.point.kind != Kind::Statement)
    });
    let mut writer = Writer { source, without, out: String::new(), parts: Vec::new() };
    writer.write(0..source.len(), &numbered);
    Switched { text: writer.out, parts: writer.parts }
}

struct Numbered<'a> {
    point: &'a Point,
    numbers: Range<Number>,
}

struct Writer<'a> {
    source: &'a str,
    without: &'a BTreeSet<Number>,
    out: String,
    parts: Vec<(Range<usize>, Vec<Number>)>,
}

impl Writer<'_> {
    /// Writes a part of the source with the points inside of it.
    fn write(&mut self, part: Range<usize>, mut points: &[Numbered<'_>]) {
        let mut at = part.start;
        while let Some((numbered, rest)) = points.split_first() {
            let range = numbered.point.range.clone();
            let inside = rest.iter().take_while(|other| other.point.range.start < range.end).count();
            let (inside, after) = rest.split_at_checked(inside).unwrap_or((rest, &[]));
            self.copy(at..range.start);
            self.write_point(numbered, inside);
            at = range.end;
            points = after;
        }
        self.copy(at..part.end);
    }

    fn write_point(&mut self, numbered: &Numbered<'_>, inside: &[Numbered<'_>]) {
        let Point { range, kind, defects, .. } = numbered.point;
        let wanted: Vec<_> = numbered
            .numbers
            .clone()
            .zip(defects)
            .filter(|(number, _)| !self.without.contains(number))
            .collect();
        if wanted.is_empty() {
            return self.write(range.clone(), inside);
        }
        let start = self.out.len();
        match kind {
            Kind::Body => {
                for (number, text) in &wanted {
                    self.out.push_str(&format!(" if {}", asks(*number)));
                    self.write_defect(*number, text);
                }
            }
            Kind::Statement => {
                for (number, _) in &wanted {
                    self.out.push_str(&format!("if !{} {{ ", asks(*number)));
                }
                self.write(range.clone(), inside);
                self.out.push_str(" }");
            }
            Kind::Expression => {
                self.out.push('(');
                for (number, text) in &wanted {
                    self.out.push_str(&format!("if {}", asks(*number)));
                    self.write_defect(*number, text);
                    self.out.push_str(" else ");
                }
                self.out.push_str("{ ");
                self.write(range.clone(), inside);
                self.out.push_str(" })");
            }
        }
        self.parts.push((start..self.out.len(), wanted.iter().map(|(number, _)| *number).collect()));
    }

    fn write_defect(&mut self, number: Number, text: &str) {
        let start = self.out.len();
        self.out.push_str(&format!(" {{ {text} }}"));
        self.parts.push((start..self.out.len(), vec![number]));
    }

    fn copy(&mut self, part: Range<usize>) {
        self.out.push_str(self.source.get(part).unwrap_or_default());
    }
}

fn asks(number: Number) -> String {
    format!("crate::mutant::is({number})")
}

/// The module that a crate gets. A test process plants the defect that `LARDER_MUTANT` names, and
/// appends the numbers of the defects that it comes by to the file `LARDER_MUTANTS_REACHED`.
pub(crate) fn module(end: Number) -> String {
    format!(
        r#"
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod mutant {{
    use std::io::Write;
    use std::sync::LazyLock;
    use std::sync::atomic::{{AtomicBool, Ordering}};

    static WANTED: LazyLock<Option<u32>> =
        LazyLock::new(|| std::env::var("LARDER_MUTANT").ok().and_then(|number| number.parse().ok()));
    static REACHED: LazyLock<Option<std::fs::File>> = LazyLock::new(|| {{
        let path = std::env::var_os("LARDER_MUTANTS_REACHED")?;
        std::fs::OpenOptions::new().create(true).append(true).open(path).ok()
    }});
    static SEEN: [AtomicBool; {end}] = [const {{ AtomicBool::new(false) }}; {end}];

    #[inline(never)]
    pub fn is(number: u32) -> bool {{
        if let Some(mut file) = REACHED.as_ref()
            && !SEEN[number as usize].swap(true, Ordering::Relaxed)
        {{
            let _ = file.write_all(format!("{{number}}\n").as_bytes());
        }}
        *WANTED == Some(number)
    }}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::points::points_of;

    fn all(source: &str, without: &[Number]) -> String {
        switched(source, &points_of(source).unwrap(), 7, &without.iter().copied().collect()).text
    }

    #[test]
    fn points_inside_of_points_keep_their_own_switches() {
        assert_eq!(
            all("fn f() { g(!a, 1); }", &[]),
            "fn f() { if !crate::mutant::is(7) { g((if crate::mutant::is(8) { a } else { !a }), \
             (if crate::mutant::is(9) { 2 } else { 1 })); } }"
        );
    }

    #[test]
    fn a_defect_that_does_not_compile_is_left_out_alone() {
        assert_eq!(
            all("fn f() { g(!a, 1); }", &[7, 9]),
            "fn f() { g((if crate::mutant::is(8) { a } else { !a }), 1); }"
        );
    }
}
