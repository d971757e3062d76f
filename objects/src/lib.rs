//! Replicated objects: deterministic state machines that replay the log; pure.
