//! Mutations that are the same in every run.

/// Draws mutations of inputs.
#[derive(Debug)]
pub struct Mutator(u64);

/// Values at the edges of integers.
const EDGES: [u8; 6] = [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff];

impl Mutator {
    /// Draws from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Changes `input` in a few places; `other` is another input to take pieces from.
    pub fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(input.len());
            match (self.below(8), input.get_mut(at)) {
                (0, Some(byte)) => *byte ^= 1 << (self.next() % 8),
                (1, Some(byte)) => *byte = EDGES[self.below(EDGES.len())],
                (2, Some(byte)) => *byte = self.byte(),
                (3, Some(_)) => input.truncate(at),
                (4, Some(_)) => drop(input.remove(at)),
                (5, _) => input.insert(at, self.byte()),
                (6, Some(_)) => {
                    let end = at + self.below(input.len() - at).min(64);
                    let piece = input[at..end].to_vec();
                    input.splice(end..end, piece);
                }
                _ => {
                    let from = self.below(other.len());
                    let piece = &other[from..][..self.below(other.len() - from).min(256)];
                    let end = (at + piece.len()).min(input.len());
                    input.splice(at..end, piece.iter().copied());
                }
            }
        }
    }
}
