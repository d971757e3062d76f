#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| milonga_fuzz::run("sequencer", data));
