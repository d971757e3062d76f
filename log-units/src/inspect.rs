//! Looking at a directory without changing it.

use bytes::Bytes;

use crate::disk::FileName;
use crate::format::{
    BlockError, Footer, HEADER_BYTES, Owner, STATE, STATE_SLOT, SUPERBLOCK, SegmentHeader, State,
    Superblock, TRAILER_BYTES, Trailer, segment_number, size,
};
use crate::scan::{Content, FoundBatch, has_bytes_from, scan};

/// Describes the files of a unit's directory, one line for each thing found, damage included. Read-only; never
/// fails, whatever the files hold. `files`: names and whole contents.
#[must_use]
pub fn inspect(files: &[(FileName, Bytes)]) -> Vec<String> {
    let mut lines = Vec::new();
    let of = |wanted: &str| files.iter().find(|(name, _)| name == wanted).map(|f| &f.1);
    let Some(bytes) = of(SUPERBLOCK) else {
        return vec![format!(
            "{SUPERBLOCK}: missing: no log unit's directory, or an interrupted beginning"
        )];
    };
    let superblock = match Superblock::decode(bytes) {
        Ok(superblock) => superblock,
        Err(error) => return vec![format!("{SUPERBLOCK}: {}", why(error))],
    };
    lines.push(format!(
        "{SUPERBLOCK}: unit {} ({}), cluster {}",
        superblock.unit, superblock.name, superblock.cluster
    ));
    let owner = Owner {
        cluster: superblock.cluster,
        unit: superblock.unit,
    };
    match of(STATE) {
        None => lines.push(format!("{STATE}: missing")),
        Some(bytes) => {
            for (slot, at) in [(0, 0), (1, STATE_SLOT)] {
                let bytes = bytes.get(size(at)..).unwrap_or_default();
                lines.push(match State::decode(owner, bytes) {
                    Ok(s) => format!(
                        "{STATE} slot {slot}: sequence {}, epoch {}, trimmed below {}, first segment {}",
                        s.sequence, s.epoch, s.trim, s.first_segment
                    ),
                    Err(error) => format!("{STATE} slot {slot}: {}", why(error)),
                });
            }
        }
    }
    let mut segments: Vec<_> = files
        .iter()
        .filter_map(|(name, bytes)| Some((segment_number(name)?, name, bytes)))
        .collect();
    segments.sort_by_key(|s| s.0);
    for (number, name, bytes) in segments {
        inspect_segment(owner, number, name, bytes, &mut lines);
    }
    lines
}

fn why(error: BlockError) -> String {
    match error {
        BlockError::Foreign => "empty, or foreign".to_owned(),
        BlockError::Version(version) => format!("of format version {version}"),
        BlockError::Damaged => "damaged".to_owned(),
    }
}

fn inspect_segment(owner: Owner, number: u64, name: &str, file: &Bytes, lines: &mut Vec<String>) {
    let header = SegmentHeader::decode(owner, file);
    lines.push(match &header {
        Ok(h) => format!(
            "{name}: generation {:016x}, {} of {} bytes, made in epoch {}",
            h.generation,
            file.len(),
            h.size,
            h.epoch
        ),
        Err(error) => format!("{name}: header {}", why(*error)),
    });
    let batches = scan(owner, number, header.ok().map(|h| h.generation), file);
    for batch in &batches {
        lines.push(describe(batch));
    }
    let end = batches.last().map_or(HEADER_BYTES, FoundBatch::end);
    let trailer = file.len().checked_sub(size(TRAILER_BYTES));
    let trailer = trailer.and_then(|at| Trailer::decode(owner, file.get(at..)?));
    match trailer {
        Some(trailer) => {
            let bytes = file.get(size(trailer.offset)..).unwrap_or_default();
            lines.push(match Footer::decode(owner, trailer.generation, bytes) {
                Ok(f) => format!(
                    "  footer: {} entries, {} streams, {} ranges of junk",
                    f.positions.len(),
                    f.streams.len(),
                    f.junk.len()
                ),
                Err(error) => format!("  footer: {}", why(error)),
            });
        }
        None if has_bytes_from(file, end) => {
            lines.push(format!("  bytes behind the last batch, from offset {end}"));
        }
        None => {}
    }
}

fn describe(batch: &FoundBatch) -> String {
    let h = &batch.header;
    let junk = |c: &&crate::scan::FoundRecord| matches!(c.content, Content::Junk(_));
    let mut line = format!(
        "  batch {} after {} at offset {}: epoch {}, {} records ({} of junk), positions from {} below {}, settled {}, high {}",
        h.number,
        h.previous,
        batch.offset,
        h.epoch,
        h.records,
        batch.records.iter().filter(junk).count(),
        h.lowest,
        h.end,
        h.mark,
        h.high
    );
    for (from, to) in &batch.damage {
        line.push_str(&format!("; DAMAGED: {from} to below {to}"));
    }
    line
}
