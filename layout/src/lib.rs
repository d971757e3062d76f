//! The layout: its history, and the reconfiguration that makes the next one.
