//! Benchmarks; the peers we are compared with live only here.
