//! Debian control files: stanzas of `Field: value` lines, apart by blank lines.
//!
//! ```text
//! Package: apt                      a field; names do not depend on case
//! Depends: adduser, gpgv | gpgv2,
//!  libapt-pkg6.0 (>= 2.6.1)         a continuation: starts with a space or a tab
//! ```
//!
//! The reader holds one stanza at a time. A stanza that breaks a rule is reported with its line, and skipped.

use std::collections::BTreeSet;
use std::io::{self, BufRead};

/// Longest stanza. Debian's longest has 76 KB.
pub(crate) const MAX_STANZA_BYTES: usize = 128 << 10;
/// Most bytes that the edges of one stanza may take, so that they fit one transaction: each takes
/// [`EDGE_BYTES`] and four times both names (two ways, in the update and as its key). Debian's largest take 90 KB.
pub(crate) const MAX_EDGE_BYTES: usize = 960 << 10;
/// What an edge takes besides the names.
pub(crate) const EDGE_BYTES: usize = 64;

/// A well-formed stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stanza {
    /// Line of its first field, from 1.
    pub(crate) line: u64,
    /// Its lines.
    pub(crate) text: String,
}

/// What is wrong with a stanza.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// The line, from 1.
    pub(crate) line: u64,
    /// The first rule it breaks.
    pub(crate) why: String,
}

/// A place between two stanzas, to resume from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Bytes before it.
    pub(crate) offset: u64,
    /// Lines before it.
    pub(crate) line: u64,
}

/// Reads stanzas one by one.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    place: Place,
    stanza: Vec<u8>,
    too_long: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads from the beginning.
    pub(crate) fn new(input: R) -> Self {
        Self::resume(input, Place { offset: 0, line: 0 })
    }

    /// Goes on from `place`; `input` must stand there already.
    pub(crate) fn resume(input: R, place: Place) -> Self {
        Self {
            input,
            place,
            stanza: Vec::new(),
            too_long: false,
        }
    }

    /// Behind the last stanza that was read.
    pub(crate) const fn place(&self) -> Place {
        self.place
    }

    /// The next stanza, or what is wrong with it; `None` at the end of the input.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub(crate) fn next_stanza(&mut self) -> io::Result<Option<Result<Stanza, Malformed>>> {
        while let Some(line) = self.read_block()? {
            if let Some(stanza) = check(&self.stanza, self.too_long, line) {
                return Ok(Some(stanza));
            }
        }
        Ok(None)
    }

    /// Reads the lines up to a blank one into `stanza`; answers the first one's number, or `None` at the end.
    fn read_block(&mut self) -> io::Result<Option<u64>> {
        self.stanza.clear();
        self.too_long = false;
        let mut first = None;
        loop {
            match self.read_line()? {
                Line::Text => first = first.or(Some(self.place.line)),
                Line::Blank if first.is_none() => {}
                Line::Blank | Line::End => return Ok(first),
            }
        }
    }

    /// Adds a line to `stanza` unless it is blank or does not fit.
    fn read_line(&mut self) -> io::Result<Line> {
        let start = self.stanza.len();
        let (mut bytes, mut is_blank, mut fits) = (0, true, true);
        loop {
            let buffer = self.input.fill_buf()?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.map_or(buffer.len(), |end| end + 1)];
            let used = part.len();
            is_blank &= part.trim_ascii().is_empty();
            fits &= self.stanza.len() + used <= MAX_STANZA_BYTES;
            if fits {
                self.stanza.extend_from_slice(part);
            }
            self.input.consume(used);
            bytes += used as u64;
            if end.is_some() || used == 0 {
                break;
            }
        }
        if bytes == 0 {
            return Ok(Line::End);
        }
        self.place.offset += bytes;
        self.place.line += 1;
        if is_blank {
            self.stanza.truncate(start);
            return Ok(Line::Blank);
        }
        self.too_long |= !fits;
        Ok(Line::Text)
    }
}

enum Line {
    Text,
    Blank,
    End,
}

/// Checks the lines of a stanza that begins at line `first`; `None` if all of them are comments.
fn check(bytes: &[u8], too_long: bool, first: u64) -> Option<Result<Stanza, Malformed>> {
    let malformed = |line, why: String| Some(Err(Malformed { line, why }));
    if too_long {
        let why = format!("the stanza is longer than {MAX_STANZA_BYTES} bytes");
        return malformed(first, why);
    }
    let line_of =
        |at: usize| first + bytes[..at].iter().filter(|byte| **byte == b'\n').count() as u64;
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return malformed(line_of(error.valid_up_to()), "not UTF-8".to_owned()),
    };
    if let Some(at) = text.find('\0') {
        return malformed(line_of(at), "a NUL byte".to_owned());
    }
    if text.lines().all(|line| line.starts_with('#')) {
        return None;
    }
    match Package::parse(text) {
        Ok(_) => Some(Ok(Stanza {
            line: first,
            text: text.to_owned(),
        })),
        Err(Malformed { line, why }) => malformed(first + line - 1, why),
    }
}

/// What the job wants of a stanza.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Package {
    /// `Package`.
    pub(crate) name: String,
    /// `Architecture`, or nothing.
    pub(crate) architecture: String,
    /// `Version`, or nothing.
    pub(crate) version: String,
    /// `Section`, or nothing.
    pub(crate) section: String,
    /// Every alternative of `Depends` and `Pre-Depends`: names only.
    pub(crate) dependencies: BTreeSet<String>,
}

impl Package {
    /// Takes the text of one stanza apart.
    ///
    /// # Errors
    /// [`Malformed`], with its line counted from the stanza's first line, 1.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut package = Self::default();
        let mut has_name = false;
        for (line, name, value) in fields(text)? {
            let is_single = matches!(
                name.as_str(),
                "package" | "architecture" | "version" | "section"
            );
            if is_single && value.contains('\n') {
                return Err(wrong(
                    line,
                    &format!("the field {name} has more than one line"),
                ));
            }
            match name.as_str() {
                "package" if value.is_empty() => {
                    return Err(wrong(line, "the field Package is empty"));
                }
                "package" => {
                    has_name = true;
                    package.name = value;
                }
                "architecture" => package.architecture = value,
                "version" => package.version = value,
                "section" => package.section = value,
                "depends" | "pre-depends" => package.dependencies.extend(names(&value)),
                _ => {}
            }
        }
        if !has_name {
            return Err(wrong(1, "no field Package"));
        }
        let edge = |name: &String| EDGE_BYTES + 4 * (package.name.len() + name.len());
        if package.dependencies.iter().map(edge).sum::<usize>() > MAX_EDGE_BYTES {
            return Err(wrong(1, "more dependencies than fit one transaction"));
        }
        Ok(package)
    }
}

fn wrong(line: u64, why: &str) -> Malformed {
    Malformed {
        line,
        why: why.to_owned(),
    }
}

/// Line, name in lower case and value of each field.
fn fields(text: &str) -> Result<Vec<(u64, String, String)>, Malformed> {
    let mut fields: Vec<(u64, String, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (line, content) in (1..).zip(text.lines()) {
        if content.starts_with('#') {
            continue;
        }
        if content.starts_with([' ', '\t']) {
            let Some((_, _, value)) = fields.last_mut() else {
                return Err(wrong(line, "a continuation without a field before it"));
            };
            value.push('\n');
            value.push_str(content.trim_ascii());
            continue;
        }
        let Some((name, value)) = content.split_once(':') else {
            return Err(wrong(line, "no colon behind the name of a field"));
        };
        if name.is_empty()
            || name.contains(|c: char| c.is_ascii_whitespace() || c.is_ascii_control())
        {
            return Err(wrong(line, "the name of a field is not one word"));
        }
        let name = name.to_ascii_lowercase();
        if !seen.insert(name.clone()) {
            return Err(wrong(line, &format!("the field {name} is there twice")));
        }
        fields.push((line, name, value.trim_ascii().to_owned()));
    }
    Ok(fields)
}

/// The names in a list of dependencies: `a (>= 1) [amd64] <!nocheck> | b:any, c`.
fn names(list: &str) -> impl Iterator<Item = String> {
    list.split([',', '|'])
        .map(|alternative| {
            let alternative = alternative.trim_ascii();
            let ends = |c: char| c.is_ascii_whitespace() || "([<:".contains(c);
            alternative[..alternative.find(ends).unwrap_or(alternative.len())].to_owned()
        })
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<Result<Stanza, Malformed>> {
        // A tiny buffer, so that every line spans several.
        let mut reader = Reader::new(io::BufReader::with_capacity(7, input));
        std::iter::from_fn(|| reader.next_stanza().expect("memory can be read")).collect()
    }

    fn only(input: &str) -> Package {
        let stanzas = read(input.as_bytes());
        let [Ok(stanza)] = stanzas.as_slice() else {
            panic!("one stanza: {stanzas:?}")
        };
        Package::parse(&stanza.text).expect("checked")
    }

    fn error(input: &[u8]) -> (u64, String) {
        let stanzas = read(input);
        let [Err(malformed)] = stanzas.as_slice() else {
            panic!("one malformed stanza: {stanzas:?}")
        };
        (malformed.line, malformed.why.clone())
    }

    #[test]
    fn fields_are_found_whatever_their_case_and_place() {
        let package = only(
            "\n \t\npackage: a\nVERSION:1:2.0-1\nDescription: short\n long: text\n .\n more\r\nSection:  net \narchitecture: all",
        );
        assert_eq!(package.name, "a");
        assert_eq!(package.version, "1:2.0-1");
        assert_eq!(package.section, "net");
        assert_eq!(package.architecture, "all");
        assert!(package.dependencies.is_empty());
    }

    #[test]
    fn every_alternative_counts_once_without_versions_and_architectures() {
        let package = only(
            "Package: a\nPre-Depends: dpkg (>= 1.17), x\nDepends: x | y:any (<< 2~) , z(>=1)[amd64 i386] <!nocheck>,\n w<x>,\n\t v [arm64],, |\n",
        );
        let names: Vec<_> = package.dependencies.iter().map(String::as_str).collect();
        assert_eq!(names, ["dpkg", "v", "w", "x", "y", "z"]);
    }

    #[test]
    fn stanzas_are_apart_by_blank_lines_and_keep_their_line() {
        let stanzas = read(b"Package: a\n\n\n\nPackage: b\n  \nPackage: c");
        let lines: Vec<_> = stanzas.iter().map(|s| s.as_ref().map(|s| s.line)).collect();
        assert_eq!(lines, [Ok(1), Ok(5), Ok(7)]);
        assert!(read(b"").is_empty());
        assert!(read(b"\n\n \n").is_empty());
        assert!(read(b"# only\n# comments\n\n").is_empty());
    }

    #[test]
    fn what_is_malformed_is_named_by_line_and_skipped() {
        assert_eq!(error(b"Version: 1\n"), (1, "no field Package".into()));
        assert_eq!(
            error(b"Package:\n"),
            (1, "the field Package is empty".into())
        );
        assert_eq!(
            error(b"\n\n x\nPackage: a"),
            (3, "a continuation without a field before it".into())
        );
        assert_eq!(
            error(b"Package: a\nnonsense\n"),
            (2, "no colon behind the name of a field".into())
        );
        assert_eq!(
            error(b"Package: a\n: b\n"),
            (2, "the name of a field is not one word".into())
        );
        assert_eq!(
            error(b"Package: a\nSome text: b\n"),
            (2, "the name of a field is not one word".into())
        );
        assert_eq!(error(b"\n\nPackage: b\nx: \xff"), (4, "not UTF-8".into()));
        assert_eq!(
            error(b"Package: a\nX: 1\npackage: b\n"),
            (3, "the field package is there twice".into())
        );
        assert_eq!(
            error(b"Package: a\n b\n"),
            (1, "the field package has more than one line".into())
        );
        assert_eq!(error(b"Package: a\nx: y\0z"), (2, "a NUL byte".into()));
    }

    #[test]
    fn an_endless_stanza_costs_no_memory_and_ends_at_the_next_blank_line() {
        let mut input = b"Package: a\nX: ".to_vec();
        input.resize(3 * MAX_STANZA_BYTES, b'x');
        input.extend_from_slice(b"\ny: z\n\nPackage: b\n");
        input.resize(input.len() + 2 * MAX_STANZA_BYTES, b' ');
        input.extend_from_slice(b"\nPackage: c\n");
        let mut reader = Reader::new(input.as_slice());
        let mut next = || reader.next_stanza().expect("memory can be read");
        assert!(matches!(next(), Some(Err(Malformed { line: 1, .. }))));
        assert!(matches!(next(), Some(Ok(Stanza { line: 5, .. }))));
        assert!(matches!(next(), Some(Ok(Stanza { line: 7, .. }))));
        assert_eq!(next(), None);
        assert!(reader.stanza.capacity() <= 2 * MAX_STANZA_BYTES);
    }

    #[test]
    fn reading_resumes_behind_any_stanza() {
        let input = b"Package: a\n\n\nPackage: b\n\nbad\n\nPackage: c\n";
        let all = read(input);
        let mut reader = Reader::new(input.as_slice());
        for read_before in 0..=all.len() {
            let place = reader.place();
            let rest = &input[usize::try_from(place.offset).expect("small")..];
            let mut resumed = Reader::resume(rest, place);
            for expected in &all[read_before..] {
                assert_eq!(
                    resumed.next_stanza().expect("memory").as_ref(),
                    Some(expected)
                );
            }
            assert_eq!(resumed.next_stanza().expect("memory"), None);
            reader.next_stanza().expect("memory");
        }
    }
}
