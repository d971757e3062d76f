//! The world's randomness: one generator for each purpose, all from one seed.

/// splitmix64: small, fast, good enough to draw faults and delays.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `purpose` under `seed`: changing how often one purpose draws leaves the others alone.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        let mut hash = seed ^ 0x6d69_6c6f_6e67_6121;
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut rng = Self(hash);
        rng.next();
        rng
    }

    /// Uniform bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `end`; 0 if `end` is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.next() % end }
    }

    /// Uniform in `from..=to`.
    pub const fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    /// Whether something happens that does so `per_million` times in a million.
    pub const fn happens(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < per_million as u64
    }

    /// One of `choices`.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.index(choices.len())]
    }

    /// About `typical`, rarely ten or a hundred times that: how delays are in the field.
    pub const fn long_tailed(&mut self, typical: u64) -> u64 {
        let factor = match self.below(1_000) {
            0 => 100,
            1..20 => 10,
            _ => 1,
        };
        let half = typical * factor / 2;
        half + self.below(typical * factor + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_are_independent_and_seeds_repeat() {
        let draw = |seed, purpose| Rng::new(seed, purpose).next();
        assert_eq!(draw(1, "net"), draw(1, "net"));
        assert_ne!(draw(1, "net"), draw(1, "disk"));
        assert_ne!(draw(1, "net"), draw(2, "net"));
        let mut rng = Rng::new(3, "");
        assert!((0..1_000).all(|_| (5..=9).contains(&rng.between(5, 9))));
        assert_eq!(rng.below(0), 0);
    }
}
