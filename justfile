# The verbs of daily work.
default:
    @just --list

# Does everything compile?
check:
    cargo check --workspace --all-targets

# All tests, or those of one crate: `just test -p milonga-objects`
test *ARGS='--workspace':
    cargo test {{ARGS}}

# Format everything
fmt:
    cargo fmt --all

# clippy as CI runs it, and the dependency rules
lint:
    .ci/run clippy purity

# Documentation of the workspace, opened in a browser
doc:
    cargo doc --workspace --no-deps --open

# One benchmark: `just bench state --only imbl`
bench NAME *ARGS:
    cargo run --release -p milonga-benches --bin {{NAME}} -- {{ARGS}}

# The main job: `just job --processes 4 --kill`
job *ARGS:
    cargo run --release --example packages -- {{ARGS}}

# A cluster of local processes: `just cluster up`
cluster *ARGS:
    scripts/cluster {{ARGS}}

# Seeded worlds: `just world --seeds 1000`, `just world --seed 7 --trace`
world *ARGS:
    cargo run --release -p milonga-tests --bin world -- {{ARGS}}

# Property tests with many more cases
long:
    PROPTEST_CASES=20000 cargo test --workspace --release

# Everything that has to be green, or some parts: `just ci fmt clippy`
ci *PARTS:
    .ci/run {{PARTS}}
