//! Tests of the whole: conformance, crashes, clusters of real processes.
