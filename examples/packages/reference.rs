//! What the objects have to hold at the end, counted by separate code: straight through the file, line by line,
//! on bytes, without a notion of a stanza as text. It shares only the limits with the reader of the job.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead};

use crate::control::{EDGE_BYTES, MAX_EDGE_BYTES, MAX_STANZA_BYTES};

/// A direct count of a control file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reference {
    /// Well-formed stanzas.
    pub(crate) stanzas: u64,
    /// The others.
    pub(crate) malformed: u64,
    /// Name and architecture of each package, with every version that a stanza gives.
    pub(crate) packages: BTreeMap<(String, String), BTreeSet<String>>,
    /// Distinct pairs of a package and a name it depends on.
    pub(crate) edges: BTreeSet<(String, String)>,
    /// Stanzas of each section.
    pub(crate) sections: BTreeMap<String, u64>,
}

/// Counts `input`.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn count(mut input: impl BufRead) -> io::Result<Reference> {
    let mut reference = Reference::default();
    let mut open = Open::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            reference.close(open);
            return Ok(reference);
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            reference.close(std::mem::take(&mut open));
        } else {
            open.add(&line);
        }
    }
}

/// The stanza that is being read.
#[derive(Default)]
struct Open {
    bytes: usize,
    is_bad: bool,
    fields: BTreeMap<Vec<u8>, Vec<u8>>,
    last: Option<Vec<u8>>,
}

impl Open {
    fn add(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.is_bad |= std::str::from_utf8(line).is_err() || line.contains(&0);
        if self.bytes > MAX_STANZA_BYTES || line[0] == b'#' {
            return;
        }
        if line[0] == b' ' || line[0] == b'\t' {
            match self
                .last
                .as_ref()
                .and_then(|name| self.fields.get_mut(name))
            {
                Some(value) => value.extend_from_slice(line),
                None => self.is_bad = true,
            }
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            self.is_bad = true;
            return;
        };
        let name = line[..colon].to_ascii_lowercase();
        self.is_bad |= name.is_empty() || name.iter().any(|byte| *byte <= b' ' || *byte == 0x7f);
        self.last = Some(name.clone());
        self.is_bad |= self
            .fields
            .insert(name, line[colon + 1..].to_vec())
            .is_some();
    }

    fn value(&self, name: &str) -> String {
        let value = self
            .fields
            .get(name.as_bytes())
            .map_or(&[][..], Vec::as_slice);
        String::from_utf8_lossy(value).trim_ascii().to_owned()
    }

    /// Every name of both lists of dependencies: the bytes from the start of an alternative up to what ends a name.
    fn dependencies(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for list in [self.value("depends"), self.value("pre-depends")] {
            let mut name = String::new();
            let mut is_over = false;
            for c in list.chars().chain([',']) {
                match c {
                    ',' | '|' => {
                        if !name.is_empty() {
                            names.insert(std::mem::take(&mut name));
                        }
                        is_over = false;
                    }
                    '(' | '[' | '<' | ':' => is_over = true,
                    c if c.is_ascii_whitespace() => is_over |= !name.is_empty(),
                    c if !is_over => name.push(c),
                    _ => {}
                }
            }
        }
        names
    }
}

impl Reference {
    fn close(&mut self, stanza: Open) {
        let is_split = ["package", "architecture", "version", "section"]
            .iter()
            .filter_map(|name| stanza.fields.get(name.as_bytes()))
            .any(|raw| {
                raw.iter()
                    .position(|byte| *byte == b'\n')
                    .is_some_and(|at| at + 1 < raw.len())
            });
        let has_fields = stanza.last.is_some();
        if !has_fields && !stanza.is_bad && stanza.bytes <= MAX_STANZA_BYTES {
            return; // nothing, or comments
        }
        let name = stanza.value("package");
        let dependencies = stanza.dependencies();
        let letters: usize = dependencies.iter().map(String::len).sum();
        if stanza.is_bad
            || is_split
            || stanza.bytes > MAX_STANZA_BYTES
            || name.is_empty()
            || dependencies.len() * (EDGE_BYTES + 4 * name.len()) + 4 * letters > MAX_EDGE_BYTES
        {
            self.malformed += 1;
            return;
        }
        self.stanzas += 1;
        *self.sections.entry(stanza.value("section")).or_default() += 1;
        let key = (name.clone(), stanza.value("architecture"));
        self.packages
            .entry(key)
            .or_default()
            .insert(stanza.value("version"));
        self.edges
            .extend(dependencies.into_iter().map(|to| (name.clone(), to)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Package, Reader};

    /// The job's reader and the reference have to agree on any input.
    fn agree(input: &[u8]) {
        let reference = count(input).expect("memory can be read");
        let mut other = Reference::default();
        let mut reader = Reader::new(input);
        while let Some(stanza) = reader.next_stanza().expect("memory can be read") {
            let Ok(stanza) = stanza else {
                other.malformed += 1;
                continue;
            };
            let package = Package::parse(&stanza.text).expect("checked by the reader");
            other.stanzas += 1;
            *other.sections.entry(package.section).or_default() += 1;
            let names = package.dependencies.into_iter();
            other
                .edges
                .extend(names.map(|to| (package.name.clone(), to)));
            let versions = other
                .packages
                .entry((package.name, package.architecture))
                .or_default();
            versions.insert(package.version);
        }
        assert_eq!(reference, other, "{}", String::from_utf8_lossy(input));
    }

    #[test]
    fn counts_what_is_there() {
        let input = "Package: a\nArchitecture: amd64\nSection: net\nDepends: b | c (>= 1), b:any\n\n\
                     Package: a\nArchitecture: amd64\nSection: net\nDepends: c, d\n\nbad\n\n\
                     Package: a\nArchitecture: i386\n";
        let reference = count(input.as_bytes()).expect("memory can be read");
        assert_eq!((reference.stanzas, reference.malformed), (3, 1));
        assert_eq!(reference.packages.len(), 2);
        assert_eq!(reference.edges.len(), 3);
        assert_eq!(reference.sections["net"], 2);
    }

    #[test]
    fn agrees_with_the_reader_on_anything() {
        // Every sequence of these pieces up to a length, and long random ones.
        let pieces: [&[u8]; 14] = [
            b"Package: a\n",
            b"package: b\r\n",
            b"Package:\n",
            b"\n",
            b" \t\n",
            b" x, y\n",
            b"# c: d\n",
            b"nothing\n",
            b"Depends: p (>= 1) | q:any,, r[x] <y>\n",
            b"Pre-Depends: p,\n",
            b"Section: net\n",
            b"a b: c\n",
            b"x: \xff\n",
            b"y: \0",
        ];
        for a in pieces {
            for b in pieces {
                for c in pieces {
                    agree(&[a, b, c].concat());
                }
            }
        }
        let mut state = 1_u64;
        for _ in 0..300 {
            let mut input = Vec::new();
            for _ in 0..60 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let piece = usize::try_from(state >> 33).expect("31 bits") % pieces.len();
                input.extend_from_slice(pieces[piece]);
            }
            agree(&input);
        }
    }

    #[test]
    fn agrees_on_limits() {
        let mut long = b"Package: a\nX: ".to_vec();
        long.resize(MAX_STANZA_BYTES - 1, b'x');
        long.extend_from_slice(b"\n\nPackage: b\n");
        agree(&long);
        long.insert(20, b'x');
        agree(&long);
        // Names of five letters, for a package of one: the first list just fits.
        let most = MAX_EDGE_BYTES / (EDGE_BYTES + 4 * 6);
        for (names, fits) in [(most, 1), (most + 1, 0)] {
            let list: Vec<_> = (0..names).map(|n| format!("{n:05}")).collect();
            let input = format!("Package: a\nDepends: {}, 00000\n", list.join(",\n "));
            agree(input.as_bytes());
            let stanzas = count(input.as_bytes()).expect("memory can be read").stanzas;
            assert_eq!(stanzas, fits, "{names} names");
        }
    }
}
