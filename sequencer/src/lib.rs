//! The sequencer core: hands out positions; pure.
